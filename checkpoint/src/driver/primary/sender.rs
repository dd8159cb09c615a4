//! The `sender` thread: posts what `capture` hands over and frees memory once it has left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use romulus_transport::{TransportError, Write};

use super::jobs::{Job, Kind, Task};
use super::link::Link;
use super::round::{Order, Rounds};
use super::shared::Shared;
use super::staging::{PIECE_BYTES, Piece};
use crate::PAGE_BYTES;
use crate::ids::ConnectionNumber;
use crate::metrics::{Counter, Phase};
use crate::primary::PlacedEpoch;
use crate::wire::message::PART_MARKER;
use crate::wire::slot;

/// Longest wait for completions before new jobs are looked for.
const COMPLETION_WAIT: Duration = Duration::from_millis(1);
/// Longest wait for a job.
const JOB_WAIT: Duration = Duration::from_millis(500);

/// Pieces that share a marker: each marker costs a system call on every stream, and wakes the
/// backup's committer.
const PIECES_A_MARKER: usize = 4;
/// As many bytes sent from guest memory share one.
const DIRECT_BYTES_A_MARKER: u64 = PIECES_A_MARKER as u64 * PIECE_BYTES;
/// Markers behind data sent from guest memory that may be on their way.
const DIRECT_MARKERS: usize = 4;

/// What is on its way, up to a marker.
struct InFlight {
    pieces: ArrayVec<Piece, PIECES_A_MARKER>,
    job: Option<Job>,
    marker: u64,
    link: Arc<Link>,
}

/// The thread's own state.
pub(super) struct Sender {
    shared: Arc<Shared>,
    in_flight: VecDeque<InFlight>,
    /// Posted (or to be given up with the connection) and not followed by a marker yet.
    unmarked: ArrayVec<Piece, PIECES_A_MARKER>,
    /// The last writes of an epoch, which leave with its marker. Reused.
    last_writes: Vec<Write>,
    rounds: Rounds,
    parts: u64,
    /// The connection that was given up last, and told of.
    given_up: Option<ConnectionNumber>,
}

impl Sender {
    pub fn new(shared: Arc<Shared>) -> Self {
        let rounds = Rounds::new(&shared);
        let flights = VecDeque::with_capacity(16 + shared.staging.count());
        Self {
            shared,
            in_flight: flights,
            unmarked: ArrayVec::new(),
            last_writes: Vec::new(),
            rounds,
            parts: 0,
            given_up: None,
        }
    }

    /// Works until the driver is over.
    pub fn run(&mut self) {
        loop {
            let seen = self.shared.jobs.wake_sender.seen();
            if let Some(task) = self.shared.jobs.next() {
                match task {
                    Task::Piece(piece) => self.take_piece(piece),
                    Task::Job(job) => self.take(job),
                }
                self.shared.jobs.posted();
            } else if !self.unmarked.is_empty() && self.shared.staging.is_exhausted() {
                // `capture` may be waiting for a piece.
                self.mark_pieces();
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
                let link = self.shared.link_of(&identity);
                let order = Order { round, everything, extents: &job.extents };
                let marker = self.rounds.send(&self.shared, link.as_deref(), &order);
                job.pieces.extend(self.rounds.take_pieces());
                match (marker, link) {
                    (Some(marker), Some(link)) => self.fly(Some(job), marker, link),
                    (_, link) => {
                        if let Some(link) = link {
                            // After `close` nothing reads local memory for this connection.
                            link.endpoint.close();
                        }
                        self.free(job);
                    }
                }
            }
            Kind::Epoch(placed) => {
                // Whatever comes of it: parts of it may have reached the arena already, and a later
                // round in that arena must not take their homes for zero.
                self.rounds.count_placed(&job.transfers);
                let link = self.shared.link_of(&placed.identity);
                let posted = match &link {
                    Some(link) => self.post(link, &mut job, &placed),
                    None => Ok(None),
                };
                match (posted, link) {
                    (Ok(Some(marker)), Some(link)) => self.fly(Some(job), marker, link),
                    (outcome, link) => {
                        self.give_up(link, outcome.err());
                        self.free(job);
                    }
                }
            }
        }
    }

    /// A full piece of an epoch whose job comes later: its data leaves now.
    fn take_piece(&mut self, piece: Piece) {
        if self.unmarked.is_full() {
            self.mark_pieces();
        }
        let link = self.shared.link_of(&piece.identity);
        let outcome = match &link {
            Some(link) => link.endpoint.write(&piece.writes),
            None => Ok(()),
        };
        self.shared.metrics.count(Counter::PagesSent, piece.bytes() / PAGE_BYTES);
        self.shared.metrics.count(Counter::BytesSent, piece.bytes());
        self.unmarked.push(piece);
        if link.is_none() || outcome.is_err() {
            self.give_up(link, outcome.err());
        } else if self.unmarked.is_full() {
            self.mark_pieces();
        }
    }

    fn next_part(&mut self) -> u64 {
        self.parts += 1;
        PART_MARKER | self.parts
    }

    /// Puts a marker behind the pieces posted.
    fn mark_pieces(&mut self) {
        let Some(identity) = self.unmarked.first().map(|piece| piece.identity) else { return };
        let marker = self.next_part();
        let link = self.shared.link_of(&identity);
        match link.as_ref().map(|link| link.endpoint.mark(marker)) {
            Some(Ok(())) => {
                if let Some(link) = link {
                    self.fly(None, marker, link);
                }
            }
            outcome => self.give_up(link, outcome.and_then(Result::err)),
        }
    }

    fn fly(&mut self, job: Option<Job>, marker: u64, link: Arc<Link>) {
        let pieces = std::mem::take(&mut self.unmarked);
        self.in_flight.push_back(InFlight { pieces, job, marker, link });
    }

    /// Something was not, or not completely, posted. Its epoch cannot commit on this connection, so
    /// the connection ends; the machine repeats the pages on the next.
    fn give_up(&mut self, link: Option<Arc<Link>>, error: Option<TransportError>) {
        if let (Some(link), Some(error)) = (link, error) {
            // What follows on the same connection fails as well.
            if self.given_up.replace(link.identity.connection) != Some(link.identity.connection) {
                self.shared.note(&format!("sending an epoch failed: {error}"));
            }
            link.endpoint.close();
        }
        self.wait_until_reaped();
        let pieces = std::mem::take(&mut self.unmarked);
        self.free_pieces(pieces);
    }

    fn free_pieces(&self, pieces: impl IntoIterator<Item = Piece>) {
        pieces.into_iter().for_each(|piece| self.shared.staging.give_back(piece));
    }

    /// The job's memory is no longer read.
    fn free(&self, mut job: Job) {
        self.free_pieces(job.pieces.drain(..));
        self.shared.jobs.finish(job);
    }

    /// Posts the writes of a long epoch that is sent from guest memory, but for the last ones. Each part
    /// has its marker, so that `capture`, which keeps the guest paused, sees that they leave.
    fn post_directly(&mut self, link: &Arc<Link>, job: &mut Job) -> Result<(), TransportError> {
        let mut bytes: u64 = job.writes.iter().map(|write| write.len_bytes).sum();
        let mut posted = 0;
        while bytes > DIRECT_BYTES_A_MARKER {
            let (count, part_bytes) = first_part(&job.writes[posted..], DIRECT_BYTES_A_MARKER);
            link.endpoint.write(&job.writes[posted..posted + count])?;
            (posted, bytes) = (posted + count, bytes - part_bytes);
            self.shared.metrics.count(Counter::PagesSent, part_bytes / PAGE_BYTES);
            self.shared.metrics.count(Counter::BytesSent, part_bytes);
            let marker = self.next_part();
            link.endpoint.mark(marker)?;
            self.fly(None, marker, Arc::clone(link));
            self.reap(Duration::ZERO);
            while self.in_flight.len() > DIRECT_MARKERS {
                self.reap(COMPLETION_WAIT);
            }
        }
        job.writes.drain(..posted);
        Ok(())
    }

    /// Posts what is left of an epoch; returns the marker behind it.
    fn post(
        &mut self,
        link: &Arc<Link>,
        job: &mut Job,
        placed: &PlacedEpoch,
    ) -> Result<Option<u64>, TransportError> {
        let began = std::time::Instant::now();
        self.post_directly(link, job)?;
        let shared = &*self.shared;
        let mut bytes: u64 = job.writes.iter().map(|write| write.len_bytes).sum();
        bytes += job.pieces.iter().map(Piece::bytes).sum::<u64>();
        shared.metrics.count(Counter::PagesSent, bytes / PAGE_BYTES);
        self.last_writes.clear();
        for writes in job.pieces.iter().map(|piece| &piece.writes).chain([&job.writes]) {
            self.last_writes.extend_from_slice(writes);
        }
        bytes += push_slot(shared, link, job, placed, &mut self.last_writes)?;
        let marker = placed.epoch.0;
        link.endpoint.write_and_mark(&self.last_writes, marker)?;
        shared.metrics.count(Counter::BytesSent, bytes);
        shared.count_posted(placed.epoch);
        shared.call(|primary, now, actions| primary.epoch_posted(placed, now, actions));
        shared.perform();
        shared.metrics.record(Phase::Post, began.elapsed());
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
        self.shared.jobs.depart(done as u64);
        for _ in 0..done {
            let Some(flight) = self.in_flight.pop_front() else { return };
            self.free_pieces(flight.pieces);
            if let Some(job) = flight.job {
                self.free(job);
            }
        }
    }

    /// Jobs are finished in the order submitted: those before come first.
    fn wait_until_reaped(&mut self) {
        while !self.in_flight.is_empty() {
            self.reap(COMPLETION_WAIT);
        }
    }
}

/// How many of the first writes have `limit_bytes` or just more, and how many bytes that is.
fn first_part(writes: &[Write], limit_bytes: u64) -> (usize, u64) {
    let mut bytes = 0;
    for (count, write) in writes.iter().enumerate() {
        if bytes >= limit_bytes {
            return (count, bytes);
        }
        bytes += write.len_bytes;
    }
    (writes.len(), bytes)
}

/// Appends the writes of the commit slot: header and extents, and the state behind them; says how
/// many bytes.
fn push_slot(
    shared: &Shared,
    link: &Link,
    job: &Job,
    placed: &PlacedEpoch,
    writes: &mut Vec<Write>,
) -> Result<u64, TransportError> {
    let (head_offset, head) = shared.slots.head(job.slot_index);
    let (state_offset, state) = shared.slots.state(job.slot_index);
    let checksum = slot::checksum(&state, 0, job.state_bytes as usize);
    slot::encode(&placed.identity, placed.epoch, &job.transfers, job.state_bytes, checksum, &head)
        .map_err(|error| TransportError::Invalid(error.to_string()))?;
    let head_bytes = slot::state_offset_bytes(job.transfers.len() as u64);
    let remote_offset = shared.shape.slot_offset_bytes(placed.epoch);
    writes.push(Write {
        region: link.heads,
        local_offset: head_offset,
        remote_offset,
        len_bytes: head_bytes,
    });
    // A fabric may refuse a write of no bytes.
    if job.state_bytes > 0 {
        writes.push(Write {
            region: link.states,
            local_offset: state_offset,
            remote_offset: remote_offset + head_bytes,
            len_bytes: job.state_bytes,
        });
    }
    Ok(head_bytes + job.state_bytes)
}
