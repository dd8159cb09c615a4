//! An established connection over RDMA.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::credits::Ledger;
use super::inbox::{Inbox, Stop};
use super::outbox::Outbox;
use super::poster::Poster;
use super::registration::Registered;
use super::verbs::{Access, Context, ProtectionDomain};
use super::wire::encode_credits;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Endpoint, Event, MAX_MESSAGE_BYTES, MessageBuffer, RegionId, Write};
use crate::memory::Memory;
use crate::stream::control::Writer;
use crate::stream::link::{LINGER, Link, lock};
use crate::stream::socket::deadline_after;
use crate::stream::wire::ControlKind;

/// What the calls and the heartbeat thread of one connection share.
pub(super) struct Shared {
    pub link: Arc<Link>,
    pub ledger: Ledger,
    /// The control connection's sending side.
    pub writer: Arc<Mutex<Writer>>,
    /// The initiator's; `None` once closed. The responder has none.
    pub poster: Mutex<Option<Poster>>,
    pub outbox: Mutex<Option<Outbox>>,
    pub inbox: Mutex<Option<Inbox>>,
    pub domain: Arc<ProtectionDomain>,
    pub context: Arc<Context>,
    pub device: String,
    /// The port of the device that the connection uses.
    pub port: u8,
    pub silent_after: Duration,
    pub port_down: Mutex<Option<Instant>>,
}

impl Shared {
    /// Tells the peer what was released since it was told last; false when there is nothing, or
    /// no room now.
    pub(super) fn tell_credits(&self) -> bool {
        let Ok(mut writer) = self.writer.try_lock() else { return false };
        let Some(credits) = self.ledger.untold() else { return false };
        let note = encode_credits(&credits);
        // A connection that is broken is noticed where it is read.
        let told = writer.send_if_room(&self.link.control, ControlKind::Message, &note).unwrap_or(false);
        if told {
            self.ledger.set_told(&credits);
        }
        told
    }

    /// Ends the connection because of what a receive came to.
    fn end_because(&self, stop: Stop) {
        let reason = match stop {
            Stop::Ended(reason) => reason,
            Stop::Flushed(reason) => {
                self.look_for_failures();
                reason
            }
        };
        self.link.end(reason);
    }

    /// Failed requests are completions that nobody may be waiting for. Whoever holds a lock is
    /// looking already.
    pub(super) fn look_for_failures(&self) {
        let look = |result: Option<io::Result<bool>>| {
            if let Some(Err(error)) = result {
                self.link.end(CloseReason::Failed(error.to_string()));
            }
        };
        if let Ok(mut poster) = self.poster.try_lock() {
            look(poster.as_mut().map(Poster::look));
        }
        if let Ok(mut outbox) = self.outbox.try_lock() {
            look(outbox.as_mut().map(Outbox::look));
        }
    }

    pub(super) fn set_port_down(&self, is_down: bool) {
        *lock(&self.port_down) = is_down.then(Instant::now);
    }

    /// How long the port has been down, if that is too long.
    pub(super) fn port_down_too_long(&self) -> Option<Duration> {
        let since = (*lock(&self.port_down))?.elapsed();
        (since >= self.silent_after).then_some(since)
    }
}

pub(super) struct RdmaEndpoint {
    shared: Arc<Shared>,
    is_initiator: bool,
    streams: usize,
    bytes_written: AtomicU64,
    /// Held while closing, so that a second caller returns no sooner.
    heartbeat: Mutex<Option<JoinHandle<()>>>,
}

impl RdmaEndpoint {
    pub(super) fn new(shared: Arc<Shared>, streams: usize, is_initiator: bool) -> Self {
        RdmaEndpoint {
            shared,
            is_initiator,
            streams,
            bytes_written: AtomicU64::new(0),
            heartbeat: Mutex::default(),
        }
    }

    /// Hands over the thread to be joined by `close`.
    pub(super) fn adopt(&self, heartbeat: JoinHandle<()>) {
        *lock(&self.heartbeat) = Some(heartbeat);
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match self.shared.link.end_reason() {
            Some(reason) => Err(reason.into()),
            None => Ok(()),
        }
    }

    /// What the calls give once `close` has taken everything away.
    fn closed(&self) -> TransportError {
        self.shared.link.end_reason().unwrap_or(CloseReason::Local).into()
    }

    fn with_poster<T>(
        &self,
        work: impl FnOnce(&mut Poster) -> Result<T, TransportError>,
    ) -> Result<T, TransportError> {
        if !self.is_initiator {
            return Err(TransportError::Invalid("only the initiator writes and marks".into()));
        }
        self.check_open()?;
        match &mut *lock(&self.shared.poster) {
            Some(poster) => work(poster),
            None => Err(self.closed()),
        }
    }

    /// The end, once everything received is handed out.
    fn finish(&self) -> CloseReason {
        let link = &self.shared.link;
        let lost = link.lost().map(|(reason, _)| reason);
        let reason = link.end(lost.unwrap_or(CloseReason::Local));
        // The queue pairs stand until `close`: what a peer that was taken for dead still sends is
        // no event any more.
        link.set_closed();
        reason
    }
}

impl Endpoint for RdmaEndpoint {
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError> {
        self.check_open()?;
        if !self.is_initiator {
            // It has no use for it: only the initiator writes.
            return Ok(RegionId(0));
        }
        // Without the lock: it may take long.
        let region = Arc::new(Registered::new(&self.shared.domain, &memory, Access::Send)?);
        self.with_poster(|poster| poster.register(region))
    }

    fn write(&self, writes: &[Write]) -> Result<(), TransportError> {
        let Shared { link, ledger, .. } = &*self.shared;
        let written = self.with_poster(|poster| poster.write(link, ledger, writes))?;
        self.bytes_written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }

    fn mark(&self, marker: u64) -> Result<(), TransportError> {
        let Shared { link, ledger, .. } = &*self.shared;
        self.with_poster(|poster| poster.mark(link, ledger, marker))
    }

    fn completed(&self, marker: u64, timeout: Duration) -> Result<u64, TransportError> {
        if !self.is_initiator {
            return Ok(0);
        }
        let Shared { link, ledger, .. } = &*self.shared;
        self.with_poster(|poster| poster.completed(link, ledger, marker, deadline_after(timeout)))
    }

    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_MESSAGE_BYTES {
            let what = format!("a message of {} bytes, at most {MAX_MESSAGE_BYTES}", message.len());
            return Err(TransportError::Invalid(what));
        }
        self.check_open()?;
        let Shared { link, ledger, .. } = &*self.shared;
        match &mut *lock(&self.shared.outbox) {
            Some(outbox) => outbox.send(link, ledger, message),
            None => Err(self.closed()),
        }
    }

    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError> {
        let deadline = deadline_after(timeout);
        let Shared { link, ledger, .. } = &*self.shared;
        let failed = |source| TransportError::Io { what: "waiting for events".into(), source };
        let mut inbox = lock(&self.shared.inbox);
        let mut last_look = false;
        loop {
            let Some(inbox) = inbox.as_mut() else { return Ok(Event::Closed(self.finish())) };
            if let (true, Some(reason)) = (link.is_closed(), link.end_reason()) {
                return Ok(Event::Closed(reason));
            }
            // Looked at before the queue: what comes into it later is not missed.
            let is_over = link.lost().is_some() || link.end_reason().is_some();
            if let Some(stop) = inbox.look() {
                self.shared.end_because(stop);
            }
            let event = inbox.take_event(ledger, message).map_err(failed)?;
            if ledger.is_due() {
                self.shared.tell_credits();
            }
            if let Some(event) = event {
                return Ok(event);
            }
            if is_over {
                return Ok(Event::Closed(self.finish()));
            }
            if last_look {
                return Ok(Event::Idle);
            }
            inbox.wait(link, deadline).map_err(failed)?;
            last_look = Instant::now() >= deadline;
        }
    }

    fn close(&self) {
        let mut heartbeat = lock(&self.heartbeat);
        let Shared { link, ledger, .. } = &*self.shared;
        link.set_closed();
        if let Ok(mut outbox) = self.shared.outbox.try_lock()
            && let Some(outbox) = outbox.as_mut()
        {
            // The last messages, a refusal say, are to arrive. A peer that is gone is not
            // waited for.
            outbox.drain(link, ledger, LINGER);
        }
        if link.end_reason().is_none()
            && let Ok(mut writer) = self.shared.writer.try_lock()
        {
            // The peer learns of the end anyway, only not that it was on purpose.
            let _ = writer.send_if_room(&link.control, ControlKind::Goodbye, &[]);
        }
        // Wakes every thread that waits while it holds one of the locks below.
        link.end(CloseReason::Local);
        // I6: first the queue pairs, then the memory that they could write.
        let inbox = lock(&self.shared.inbox).take();
        let poster = lock(&self.shared.poster).take();
        let outbox = lock(&self.shared.outbox).take();
        drop(poster);
        let send_slots = outbox.map(Outbox::into_slots);
        if let Some(inbox) = inbox {
            inbox.dismantle();
        }
        drop(send_slots);
        if let Some(thread) = heartbeat.take() {
            // A panic there has been reported by the panic hook already.
            let _ = thread.join();
        }
    }

    fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    fn streams(&self) -> usize {
        self.streams
    }
}

impl Drop for RdmaEndpoint {
    fn drop(&mut self) {
        self.close();
        self.shared.link.discard_received();
    }
}
