//! Sending messages, from any thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credits::Ledger;
use super::status::{FLUSHED, Work, WorkId, describe};
use super::verbs::{CompletionQueue, MemoryRegion, QueuePair};
use super::waiting::Waiter;
use crate::error::{CloseReason, TransportError};
use crate::fabric::MAX_MESSAGE_BYTES;
use crate::stream::link::Link;
use crate::stream::socket::since_last_data;

/// Messages that have not left yet, at most.
pub(super) const SLOTS: usize = 64;

pub(super) struct Outbox {
    pair: Arc<QueuePair>,
    waiter: Waiter,
    slots: MemoryRegion,
    sent: u64,
    completed: u64,
}

impl Outbox {
    /// `slots` has room for [`SLOTS`] messages.
    pub(super) fn new(
        pair: Arc<QueuePair>,
        queue: Arc<CompletionQueue>,
        slots: MemoryRegion,
        spin: Duration,
    ) -> Self {
        Outbox { pair, waiter: Waiter::new(queue, spin), slots, sent: 0, completed: 0 }
    }

    /// Looks for completions; an error means that the connection has failed.
    pub(super) fn look(&mut self) -> io::Result<bool> {
        reap(&self.waiter.queue, &mut self.completed)
    }

    fn wait(&mut self, link: &Link, ledger: &Ledger, deadline: Option<Instant>) -> io::Result<()> {
        let Self { waiter, completed, .. } = self;
        let queue = Arc::clone(&waiter.queue);
        waiter.wait(&[&link.ended, &ledger.message_room], deadline, || {
            Ok(reap(&queue, completed)? || link.is_ended())
        })?;
        ledger.message_room.clear();
        self.look()?;
        Ok(())
    }

    /// Sends a message that is not too long, waiting for room.
    pub(super) fn send(
        &mut self,
        link: &Link,
        ledger: &Ledger,
        message: &[u8],
    ) -> Result<(), TransportError> {
        self.try_send(link, ledger, message).map_err(|error| {
            TransportError::Closed(match link.end_reason() {
                Some(reason) => reason,
                None => link.end(CloseReason::Failed(error.to_string())),
            })
        })
    }

    fn try_send(&mut self, link: &Link, ledger: &Ledger, message: &[u8]) -> io::Result<()> {
        self.look()?;
        while self.sent - self.completed >= SLOTS as u64 {
            self.wait_open(link, ledger)?;
        }
        while !ledger.take_message() {
            self.wait_open(link, ledger)?;
        }
        let offset = (self.sent % SLOTS as u64) as usize * MAX_MESSAGE_BYTES;
        self.slots.memory().write(offset, message);
        self.sent += 1;
        let id = WorkId { work: Work::Message, lane: 0, number: self.sent }.encode();
        self.pair
            .send(&self.slots, offset, message.len(), id)
            .map_err(|error| io::Error::other(format!("posting a message: {error}")))
    }

    fn wait_open(&mut self, link: &Link, ledger: &Ledger) -> io::Result<()> {
        self.wait(link, ledger, None)?;
        match link.end_reason() {
            Some(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            None => Ok(()),
        }
    }

    /// Lets go of the queue pair; what it sends from may be given back once that is destroyed.
    pub(super) fn into_slots(self) -> MemoryRegion {
        self.slots
    }

    /// Waits until all messages have arrived, as long as the connection stands.
    pub(super) fn drain(&mut self, link: &Link, ledger: &Ledger, limit: Duration) {
        // A host that lives says in microseconds that they have. One of which nothing was heard for
        // long is probably dead, and must not hold up the takeover.
        let is_silent = since_last_data(&link.control).is_ok_and(|silent| silent >= limit / 2);
        let deadline = Instant::now() + if is_silent { limit / 20 } else { limit };
        while self.completed < self.sent && link.lost().is_none() && link.end_reason().is_none() {
            if Instant::now() >= deadline || self.wait(link, ledger, Some(deadline)).is_err() {
                return;
            }
        }
    }
}

fn reap(queue: &CompletionQueue, completed: &mut u64) -> io::Result<bool> {
    let mut failure = None;
    let found = queue.poll(|completion| match WorkId::decode(completion.id) {
        Some(id) if completion.status == 0 => *completed = (*completed).max(id.number),
        _ if completion.status == FLUSHED && failure.is_some() => {}
        _ => {
            failure.get_or_insert_with(|| describe(&completion));
        }
    })?;
    match failure {
        Some(text) => Err(io::Error::other(text)),
        None => Ok(found > 0),
    }
}
