//! Says that this side lives, and notices when the peer does not.

use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use super::control::Writer;
use super::link::{Link, reason_of};
use super::socket::{readable, since_last_data, wait};
use super::wire::ControlKind;
use crate::error::CloseReason;

/// How long a peer that may still be establishing can take until it is first heard.
const ESTABLISHING: Duration = Duration::from_secs(5);

/// The work of the heartbeat thread of one connection.
pub(crate) struct Heartbeat {
    pub link: Arc<Link>,
    pub writer: Arc<Mutex<Writer>>,
    pub every: Duration,
    pub silent_after: Duration,
    /// The peer may still be establishing: gives it more time until it is first heard.
    pub waits_for_peer: bool,
}

/// The beat of one connection, and what is known of the peer.
pub(crate) struct Pulse {
    heartbeat: Heartbeat,
    next: Instant,
    /// Since when it has been looking without a gap.
    since: Instant,
    /// Something came since the start.
    was_heard: bool,
}

impl Heartbeat {
    /// Beats until the connection has ended.
    pub(crate) fn run(self) {
        let link = Arc::clone(&self.link);
        let mut pulse = Pulse::new(self);
        while link.end_reason().is_none() {
            let next = pulse.tick(Heartbeat::beat);
            let _ = wait(&mut [readable(&link.ended)], Some(next));
        }
    }

    /// Sends a heartbeat, if that is possible without waiting.
    pub(crate) fn beat(&self) {
        // Whoever holds the lock is sending, and that is a sign of life as well.
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Err(error) = writer.send_if_room(&self.link.control, ControlKind::Heartbeat, &[]) {
            self.link.lose(reason_of(&error, "sending a heartbeat"));
        }
    }
}

impl Pulse {
    pub(crate) fn new(heartbeat: Heartbeat) -> Self {
        let now = Instant::now();
        Pulse { heartbeat, next: now, since: now, was_heard: false }
    }

    /// Does what is due, with `beat` saying that this side lives; returns when to come again.
    pub(crate) fn tick(&mut self, beat: impl FnOnce(&Heartbeat)) -> Instant {
        let now = Instant::now();
        if now >= self.next {
            // Who was not there cannot tell who was silent: after a stall of this machine
            // the peer's signs of life may still wait to be received.
            if now - self.next > self.heartbeat.silent_after / 4 {
                self.since = now;
            }
            self.next = now + self.heartbeat.every;
            beat(&self.heartbeat);
            self.check_peer(now - self.since);
        }
        self.end_if_lost();
        self.next
    }

    /// The kernel knows when it last received anything, so this holds however busy the threads
    /// of this process are.
    fn check_peer(&mut self, watched: Duration) {
        let Ok(silent) = since_last_data(&self.heartbeat.link.control) else { return };
        self.was_heard |= silent < watched;
        let waits = self.heartbeat.waits_for_peer && !self.was_heard;
        let silent_after = self.heartbeat.silent_after;
        let limit = if waits { silent_after.max(ESTABLISHING) } else { silent_after };
        if silent.min(watched) < limit {
            return;
        }
        // The data streams are asked only now: the answer waits for a thread that is in the
        // middle of receiving.
        let data = self.heartbeat.link.data.iter().filter_map(|socket| since_last_data(socket).ok());
        let silent = data.fold(silent, Duration::min);
        if silent >= limit {
            self.heartbeat.link.end(CloseReason::Silent(silent));
        }
    }

    fn end_if_lost(&self) {
        if let Some((reason, deadline)) = self.heartbeat.link.lost()
            && Instant::now() >= deadline
        {
            self.heartbeat.link.end(reason);
        }
    }
}
