//! What comes in: markers on the data queue pairs, messages on theirs.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credits::Ledger;
use super::registration::Registered;
use super::status::{FLUSHED, Work, WorkId, describe};
use super::verbs::{Completion, CompletionQueue, MemoryRegion, QueuePair};
use super::waiting::Waiter;
use super::wire::MARKER_BYTES;
use crate::error::CloseReason;
use crate::fabric::{Event, MAX_MESSAGE_BYTES, MessageBuffer};
use crate::stream::fence::{Arrival, Fences};
use crate::stream::link::Link;

/// Receives kept for messages.
pub(super) const MESSAGE_RECEIVES: u16 = 64;
/// Receives kept for markers on each data queue pair.
pub(super) const MARKER_RECEIVES: u16 = 128;

/// The responder's side of the data. Dropped in this order: nothing can come in through a queue
/// pair that is destroyed, so the memory is given back after it.
pub(super) struct Exposed {
    pub pairs: Vec<QueuePair>,
    /// A slot for each receive of each pair.
    pub marker_slots: MemoryRegion,
    pub _arena: Vec<Registered>,
}

struct Received {
    messages: Arc<QueuePair>,
    message_slots: MemoryRegion,
    exposed: Option<Exposed>,
    /// Messages that have arrived: slot and length.
    arrived: VecDeque<(u64, usize)>,
    fences: Fences,
    /// Markers that have arrived on each data queue pair.
    markers: Vec<u64>,
}

pub(super) struct Inbox {
    received: Received,
    waiter: Waiter,
    /// Found, and not told yet.
    stop: Option<Stop>,
    /// Told: what comes behind it is not taken in.
    has_stopped: bool,
}

/// Why nothing more comes in.
#[derive(Debug)]
pub(super) enum Stop {
    Ended(CloseReason),
    /// A receive was thrown away because its queue pair had failed: somewhere else is the cause.
    /// If it is nowhere, this is.
    Flushed(CloseReason),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Ended(CloseReason::Failed(error.to_string()))
    }
}

fn failed(what: String) -> Stop {
    Stop::Ended(CloseReason::Failed(what))
}

fn violation(what: String) -> Stop {
    Stop::Ended(CloseReason::Violation(what))
}

/// A failed receive. The responder posts nothing on its data queue pairs, so they fail only by
/// what the peer asks of them.
fn why_failed(completion: &Completion) -> Stop {
    let id = WorkId::decode(completion.id);
    match id {
        Some(WorkId { work: Work::MarkerReceive, lane, .. }) if completion.status == FLUSHED => {
            Stop::Flushed(CloseReason::Violation(format!(
                "data queue pair {lane} (number {}) refused a request: the peer wrote where it may not, or with \
                 a wrong key",
                completion.queue_pair
            )))
        }
        _ if completion.status == FLUSHED => Stop::Flushed(CloseReason::Failed(describe(completion))),
        _ => failed(describe(completion)),
    }
}

/// Posts the receives of a pair that is about to be connected.
pub(super) fn post_message_receives(pair: &QueuePair, slots: &MemoryRegion) -> io::Result<()> {
    (0..u64::from(MESSAGE_RECEIVES)).try_for_each(|slot| post_message_receive(pair, slots, slot))
}

fn post_message_receive(pair: &QueuePair, slots: &MemoryRegion, slot: u64) -> io::Result<()> {
    let id = WorkId { work: Work::MessageReceive, lane: 0, number: slot }.encode();
    pair.post_receive(slots, slot as usize * MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES, id)
}

/// Posts the receives of data pair `lane` that is about to be connected.
pub(super) fn post_marker_receives(pair: &QueuePair, slots: &MemoryRegion, lane: usize) -> io::Result<()> {
    (0..u64::from(MARKER_RECEIVES)).try_for_each(|slot| post_marker_receive(pair, slots, lane, slot))
}

fn marker_offset(lane: usize, slot: u64) -> usize {
    (lane * usize::from(MARKER_RECEIVES) + slot as usize) * MARKER_BYTES
}

fn post_marker_receive(pair: &QueuePair, slots: &MemoryRegion, lane: usize, slot: u64) -> io::Result<()> {
    let id = WorkId { work: Work::MarkerReceive, lane: lane as u8, number: slot }.encode();
    pair.post_receive(slots, marker_offset(lane, slot), MARKER_BYTES, id)
}

impl Received {
    fn take(&mut self, completion: &Completion) -> Result<(), Stop> {
        let id = WorkId::decode(completion.id);
        if completion.status != 0 {
            return Err(why_failed(completion));
        }
        match id {
            Some(WorkId { work: Work::MessageReceive, .. })
                if completion.len_bytes as usize > MAX_MESSAGE_BYTES =>
            {
                let len_bytes = completion.len_bytes;
                Err(violation(format!("a message of {len_bytes} bytes, at most {MAX_MESSAGE_BYTES}")))
            }
            Some(WorkId { work: Work::MessageReceive, number, .. }) => {
                self.arrived.push_back((number, completion.len_bytes as usize));
                Ok(())
            }
            Some(WorkId { work: Work::MarkerReceive, lane, number }) => {
                self.take_marker(lane.into(), number, completion.len_bytes)
            }
            _ => Err(failed(format!("an unknown receive {:#x} was completed", completion.id))),
        }
    }

    fn take_marker(&mut self, lane: usize, slot: u64, len_bytes: u32) -> Result<(), Stop> {
        let Some(exposed) = &self.exposed else {
            return Err(failed("a marker came to the initiator".into()));
        };
        if len_bytes as usize != MARKER_BYTES {
            return Err(violation(format!("a marker of {len_bytes} bytes instead of {MARKER_BYTES}")));
        }
        let mut bytes = [0; MARKER_BYTES];
        exposed.marker_slots.memory().read(marker_offset(lane, slot), &mut bytes);
        let marker = u64::from_le_bytes(bytes);
        if marker == 0 || marker == u64::MAX {
            return Err(violation(format!("marker {marker}, which is reserved")));
        }
        match self.fences.arrive(self.markers[lane], marker) {
            Arrival::Counted | Arrival::Complete => self.markers[lane] += 1,
            Arrival::Disagrees => {
                let what = format!("marker {marker} on data queue pair {lane} is another on another one");
                return Err(violation(what));
            }
            Arrival::Full => return Err(violation("more markers than there were credits for".into())),
        }
        post_marker_receive(&exposed.pairs[lane], &exposed.marker_slots, lane, slot)?;
        Ok(())
    }

    /// Takes completions off the queue.
    fn look(&mut self, queue: &CompletionQueue) -> Result<bool, Stop> {
        let mut stop = None;
        let found = queue.poll(|completion| {
            if completion.status == FLUSHED && stop.is_some() {
                return;
            }
            if let Err(why) = self.take(&completion) {
                stop.get_or_insert(why);
            }
        })?;
        match stop {
            Some(why) => Err(why),
            None => Ok(found > 0),
        }
    }
}

impl Inbox {
    pub(super) fn new(
        messages: Arc<QueuePair>,
        message_slots: MemoryRegion,
        exposed: Option<Exposed>,
        queue: Arc<CompletionQueue>,
        spin: Duration,
    ) -> Self {
        let lanes = exposed.as_ref().map_or(0, |exposed| exposed.pairs.len());
        Inbox {
            received: Received {
                messages,
                message_slots,
                exposed,
                arrived: VecDeque::with_capacity(MESSAGE_RECEIVES.into()),
                fences: Fences::new(lanes.max(1)),
                markers: vec![0; lanes],
            },
            waiter: Waiter::new(queue, spin),
            stop: None,
            has_stopped: false,
        }
    }

    /// Takes in all that has arrived; says why nothing more comes, once.
    pub(super) fn look(&mut self) -> Option<Stop> {
        while self.stop.is_none() && !self.has_stopped {
            match self.received.look(&self.waiter.queue) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => self.stop = Some(why),
            }
        }
        self.has_stopped |= self.stop.is_some();
        self.stop.take()
    }

    /// What can be handed out.
    pub(super) fn take_event(
        &mut self,
        ledger: &Ledger,
        message: &mut MessageBuffer,
    ) -> io::Result<Option<Event>> {
        let received = &mut self.received;
        if let Some(marker) = received.fences.take() {
            ledger.release_marker();
            return Ok(Some(Event::Fenced { marker }));
        }
        let Some((slot, len_bytes)) = received.arrived.pop_front() else { return Ok(None) };
        let offset = slot as usize * MAX_MESSAGE_BYTES;
        received.message_slots.memory().read(offset, &mut message.room()[..len_bytes]);
        message.set_len_bytes(len_bytes);
        post_message_receive(&received.messages, &received.message_slots, slot)?;
        ledger.release_message();
        Ok(Some(Event::Message))
    }

    /// Waits until something may have come, or the link's `wake` is raised.
    pub(super) fn wait(&mut self, link: &Link, deadline: Instant) -> io::Result<()> {
        let Self { received, waiter, stop, .. } = self;
        let queue = Arc::clone(&waiter.queue);
        waiter.wait(&[&link.wake], Some(deadline), || match received.look(&queue) {
            Ok(found) => Ok(found || link.is_ended()),
            Err(why) => {
                stop.get_or_insert(why);
                Ok(true)
            }
        })?;
        link.wake.clear();
        Ok(())
    }

    /// Gives back everything in the order that fences: queue pairs, then memory.
    pub(super) fn dismantle(self) {
        let Received { messages, exposed, message_slots, .. } = self.received;
        drop(exposed);
        drop(messages);
        drop(message_slots);
    }
}
