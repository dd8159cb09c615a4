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
pub(super) struct Heartbeat {
    pub link: Arc<Link>,
    pub writer: Arc<Mutex<Writer>>,
    pub every: Duration,
    pub silent_after: Duration,
    /// The peer may still be establishing: gives it more time until it is first heard.
    pub waits_for_peer: bool,
}

impl Heartbeat {
    /// Beats until the connection has ended.
    pub(super) fn run(self) {
        let start = Instant::now();
        let mut next = start;
        let mut was_heard = false;
        while self.link.end_reason().is_none() {
            let now = Instant::now();
            if now >= next {
                next = now + self.every;
                self.beat();
                self.check_peer(start.elapsed(), &mut was_heard);
            }
            self.end_if_lost();
            let _ = wait(&mut [readable(&self.link.ended)], Some(next));
        }
    }

    fn beat(&self) {
        // Whoever holds the lock is sending, and that is a sign of life as well.
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Err(error) = writer.send_if_room(&self.link.control, ControlKind::Heartbeat) {
            self.link.lose(reason_of(&error, "sending a heartbeat"));
        }
    }

    /// The kernel knows when it last received anything, so this holds however busy the threads
    /// of this process are.
    fn check_peer(&self, running: Duration, was_heard: &mut bool) {
        let sockets = self.link.data.iter().chain([&self.link.control]);
        let Some(silent) = sockets.filter_map(|socket| since_last_data(socket).ok()).min() else { return };
        *was_heard |= silent < running;
        let waits = self.waits_for_peer && !*was_heard;
        let limit = if waits { self.silent_after.max(ESTABLISHING) } else { self.silent_after };
        if silent.min(running) >= limit {
            self.link.end(CloseReason::Silent(silent));
        }
    }

    fn end_if_lost(&self) {
        if let Some((reason, deadline)) = self.link.lost()
            && Instant::now() >= deadline
        {
            self.link.end(reason);
        }
    }
}
