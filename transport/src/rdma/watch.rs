//! The heartbeat thread: life signs and credits on the control connection, the device's events,
//! and failures that nobody else is looking for.

use std::sync::Arc;
use std::time::Instant;

use super::endpoint::Shared;
use super::status::event_name;
use super::verbs::AsyncEvent;
use super::wire::{NOTE_BYTES, decode_credits};
use crate::error::CloseReason;
use crate::stream::control::{Frame, Reader, is_passing};
use crate::stream::heartbeat::{Heartbeat, Pulse};
use crate::stream::link::reason_of;
use crate::stream::socket::{is_ready, readable, wait};

/// Events of a queue pair or a device that its connection does not survive, and of a port.
const QUEUE_PAIR_ACCESS: u32 = 3;
const PORT_ACTIVE: u32 = 9;
const PORT_ERROR: u32 = 10;
const FATAL: [u32; 5] = [0, 1, 2, 8, 19];

pub(super) struct Watch {
    shared: Arc<Shared>,
    reader: Reader,
    pulse: Pulse,
    /// The control connection has ended.
    has_ended: bool,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, reader: Reader, heartbeat: Heartbeat) -> Self {
        Watch { shared, reader, pulse: Pulse::new(heartbeat), has_ended: false }
    }

    /// Watches until the connection has ended.
    pub(super) fn run(mut self) {
        // What came with the handshake's last message.
        self.take_frames();
        while self.shared.link.end_reason().is_none() {
            let shared = &self.shared;
            let next = self.pulse.tick(|heartbeat| {
                if !shared.tell_credits() {
                    heartbeat.beat();
                }
                shared.look_for_failures();
                check_port(shared);
            });
            self.wait_and_take(next);
        }
    }

    fn wait_and_take(&mut self, next: Instant) {
        let link = &self.shared.link;
        let mut fds = [readable(&link.ended), readable(&*self.shared.context), readable(&link.control)];
        let used = if self.has_ended { 2 } else { 3 };
        if wait(&mut fds[..used], Some(next)).is_err() {
            return;
        }
        let (has_event, has_bytes) = (is_ready(&fds[1]), used == 3 && is_ready(&fds[2]));
        if has_event {
            while let Some(event) = self.shared.context.take_async_event() {
                self.take_event(&event);
            }
        }
        if has_bytes {
            self.fill();
        }
    }

    fn fill(&mut self) {
        let link = &self.shared.link;
        match self.reader.fill(&link.control) {
            Ok(0) => {
                self.has_ended = true;
                link.lose(CloseReason::Peer("its end of the control connection went away".into()));
            }
            Ok(_) => self.take_frames(),
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                self.has_ended = true;
                link.lose(reason_of(&error, "receiving on the control connection"));
            }
        }
    }

    fn take_frames(&mut self) {
        let link = &self.shared.link;
        let violation = loop {
            match self.reader.next_frame(NOTE_BYTES) {
                Ok(Some(Frame::Message(note))) => {
                    let credits = decode_credits(note).map_err(|error| error.to_string());
                    if let Err(what) = credits.and_then(|credits| self.shared.ledger.peer_released(&credits))
                    {
                        break what;
                    }
                }
                Ok(Some(Frame::Heartbeat)) => {}
                Ok(Some(Frame::Goodbye)) => link.lose(CloseReason::Peer("closed".into())),
                Ok(None) => return,
                Err(error) => break error.to_string(),
            }
        };
        // What follows cannot be told apart any more.
        self.has_ended = true;
        link.end(CloseReason::Violation(violation));
    }

    fn take_event(&mut self, event: &AsyncEvent) {
        let AsyncEvent { kind, port, queue_pair } = *event;
        let name = event_name(kind);
        let link = &self.shared.link;
        // A device tells of all its ports.
        let is_own_port = port == Some(self.shared.port.into());
        match kind {
            QUEUE_PAIR_ACCESS => {
                let number = queue_pair.unwrap_or_default();
                link.end(CloseReason::Violation(format!(
                    "queue pair {number}: the peer wrote where it may not, or with a wrong key ({name})"
                )));
            }
            PORT_ERROR if is_own_port => {
                tracing::warn!(port, device = self.shared.device, "the RDMA port has gone down");
                self.shared.set_port_down(true);
            }
            PORT_ACTIVE if is_own_port => self.shared.set_port_down(false),
            kind if FATAL.contains(&kind) => {
                let which = queue_pair.map(|number| format!(" of queue pair {number}")).unwrap_or_default();
                let what = format!("device {} reported: {name}{which}", self.shared.device);
                link.end(CloseReason::Failed(what));
            }
            _ => tracing::debug!(name, port, queue_pair, "an event of the RDMA device"),
        }
    }
}

/// A port that stays down ends the connection, even if nothing is on its way.
fn check_port(shared: &Shared) {
    if let Some(silence) = shared.port_down_too_long() {
        let what = format!("the port of device {} has been down for {silence:?}", shared.device);
        shared.link.end(CloseReason::Failed(what));
    }
}
