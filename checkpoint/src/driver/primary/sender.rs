//! The `sender` thread: posts what `capture` hands over and frees memory once it has left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use romulus_transport::{TransportError, Write};

use super::jobs::{Job, Kind};
use super::link::Link;
use super::round::{Order, Rounds};
use super::shared::Shared;
use crate::PAGE_BYTES;
use crate::metrics::{Counter, Phase};
use crate::primary::PlacedEpoch;
use crate::wire::message::PART_MARKER;
use crate::wire::slot;

/// Longest wait for completions before new jobs are looked for.
const COMPLETION_WAIT: Duration = Duration::from_millis(1);
/// Longest wait for a job.
const JOB_WAIT: Duration = Duration::from_millis(500);

/// A job whose data is on its way.
struct InFlight {
    job: Job,
    marker: u64,
    link: Arc<Link>,
}

/// The thread's own state.
pub(super) struct Sender {
    shared: Arc<Shared>,
    in_flight: VecDeque<InFlight>,
    rounds: Rounds,
    parts: u64,
}

impl Sender {
    pub fn new(shared: Arc<Shared>) -> Self {
        let rounds = Rounds::new(&shared);
        Self { shared, in_flight: VecDeque::with_capacity(16), rounds, parts: 0 }
    }

    /// Works until the driver is over.
    pub fn run(&mut self) {
        loop {
            let seen = self.shared.jobs.wake_sender.seen();
            if let Some(job) = self.shared.jobs.next() {
                self.take(job);
            } else if !self.in_flight.is_empty() {
                self.reap(COMPLETION_WAIT);
            } else if self.shared.is_over() {
                break;
            } else {
                self.shared.jobs.wake_sender.wait(seen, JOB_WAIT);
            }
        }
        self.shared.jobs.close();
    }

    fn take(&mut self, mut job: Job) {
        match job.kind {
            Kind::Round { identity, round, everything } => {
                self.wait_until_reaped();
                let link = self.shared.link().filter(|link| link.carries(&identity));
                let order = Order { round, everything, extents: &job.extents };
                let marker = self.rounds.send(&self.shared, link.as_deref(), &order);
                job.staging_end = self.shared.staging.taken();
                match (marker, link) {
                    (Some(marker), Some(link)) => self.in_flight.push_back(InFlight { job, marker, link }),
                    _ => self.free(job),
                }
            }
            Kind::Part(placed) | Kind::Epoch(placed) => {
                let link = self.shared.link().filter(|link| link.carries(&placed.identity));
                let posted = match &link {
                    Some(link) => self.post(link, &mut job, &placed),
                    None => Ok(None),
                };
                match (posted, link) {
                    (Ok(Some(marker)), Some(link)) => {
                        self.in_flight.push_back(InFlight { job, marker, link })
                    }
                    (outcome, link) => self.abandon(job, link, outcome.err()),
                }
            }
        }
    }

    /// A job that was not, or not completely, posted. Its epoch cannot commit on this connection,
    /// so the connection ends; the machine repeats the pages on the next.
    fn abandon(&mut self, job: Job, link: Option<Arc<Link>>, error: Option<TransportError>) {
        if let (Some(link), Some(error)) = (link, error) {
            self.shared.note(&format!("sending an epoch failed: {error}"));
            link.endpoint.close();
        }
        self.wait_until_reaped();
        self.free(job);
    }

    /// The job's memory is no longer read.
    fn free(&self, job: Job) {
        if job.staging_end > 0 {
            self.shared.staging.release(job.staging_end);
        }
        self.shared.jobs.finish(job);
    }

    /// Posts one job; returns the marker behind it.
    fn post(
        &mut self,
        link: &Link,
        job: &mut Job,
        placed: &PlacedEpoch,
    ) -> Result<Option<u64>, TransportError> {
        let shared = &*self.shared;
        let began = std::time::Instant::now();
        let mut bytes: u64 = job.writes.iter().map(|write| write.len_bytes).sum();
        shared.metrics.count(Counter::PagesSent, bytes / PAGE_BYTES);
        link.endpoint.write(&job.writes)?;
        let marker = if let Kind::Epoch(_) = job.kind {
            bytes += post_slot(shared, link, job, placed)?;
            self.rounds.count_placed(&job.transfers);
            placed.epoch.0
        } else {
            self.parts += 1;
            PART_MARKER | self.parts
        };
        link.endpoint.mark(marker)?;
        shared.metrics.count(Counter::BytesSent, bytes);
        if let Kind::Epoch(_) = job.kind {
            shared.count_posted(placed.epoch);
            shared.call(|primary, now, actions| primary.epoch_posted(placed, now, actions));
            shared.perform();
            shared.metrics.record(Phase::Post, began.elapsed());
        }
        Ok(Some(marker))
    }

    /// Frees the jobs whose data has left, waiting up to `timeout` for the oldest.
    fn reap(&mut self, timeout: Duration) {
        let Some(oldest) = self.in_flight.front() else { return };
        let done = match oldest.link.endpoint.completed(oldest.marker, timeout) {
            // Markers complete in the order posted.
            Ok(last) => self
                .in_flight
                .iter()
                .position(|flight| flight.marker == last && Arc::ptr_eq(&flight.link, &oldest.link))
                .map_or(0, |position| position + 1),
            Err(_) => {
                // After `close` nothing reads local memory on behalf of this connection.
                oldest.link.endpoint.close();
                self.in_flight.iter().take_while(|flight| Arc::ptr_eq(&flight.link, &oldest.link)).count()
            }
        };
        for _ in 0..done {
            let Some(flight) = self.in_flight.pop_front() else { return };
            self.free(flight.job);
        }
    }

    /// Jobs are finished in the order submitted: those before come first.
    fn wait_until_reaped(&mut self) {
        while !self.in_flight.is_empty() {
            self.reap(COMPLETION_WAIT);
        }
    }
}

/// Posts the commit slot: header and extents, and the state behind them.
fn post_slot(shared: &Shared, link: &Link, job: &Job, placed: &PlacedEpoch) -> Result<u64, TransportError> {
    let (head_offset, head) = shared.slots.head(job.slot_index);
    let (state_offset, state) = shared.slots.state(job.slot_index);
    let checksum = slot::checksum(&state, 0, job.state_bytes as usize);
    slot::encode(&placed.identity, placed.epoch, &job.transfers, job.state_bytes, checksum, &head)
        .map_err(|error| TransportError::Invalid(error.to_string()))?;
    let head_bytes = slot::state_offset_bytes(job.transfers.len() as u64);
    let remote_offset = shared.shape.slot_offset_bytes(placed.epoch);
    let head = Write { region: link.heads, local_offset: head_offset, remote_offset, len_bytes: head_bytes };
    let state = Write {
        region: link.states,
        local_offset: state_offset,
        remote_offset: remote_offset + head_bytes,
        len_bytes: job.state_bytes,
    };
    // A fabric may refuse a write of no bytes.
    let writes = [head, state];
    link.endpoint.write(if job.state_bytes > 0 { &writes } else { &writes[..1] })?;
    Ok(head_bytes + job.state_bytes)
}
