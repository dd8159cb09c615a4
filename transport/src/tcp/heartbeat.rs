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

/// What the thread knows of the peer.
struct Watch {
    /// Since when it has been looking without a gap.
    since: Instant,
    /// Something came since the start.
    was_heard: bool,
}

impl Heartbeat {
    /// Beats until the connection has ended.
    pub(super) fn run(self) {
        let mut next = Instant::now();
        let mut watch = Watch { since: next, was_heard: false };
        while self.link.end_reason().is_none() {
            let now = Instant::now();
            if now >= next {
                // Who was not there cannot tell who was silent: after a stall of this machine
                // the peer's signs of life may still wait to be received.
                if now - next > self.silent_after / 4 {
                    watch.since = now;
                }
                next = now + self.every;
                self.beat();
                self.check_peer(now - watch.since, &mut watch);
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
    fn check_peer(&self, watched: Duration, watch: &mut Watch) {
        let Ok(silent) = since_last_data(&self.link.control) else { return };
        watch.was_heard |= silent < watched;
        let waits = self.waits_for_peer && !watch.was_heard;
        let limit = if waits { self.silent_after.max(ESTABLISHING) } else { self.silent_after };
        if silent.min(watched) < limit {
            return;
        }
        // The data streams are asked only now: the answer waits for a thread that is in the
        // middle of receiving.
        let data = self.link.data.iter().filter_map(|socket| since_last_data(socket).ok());
        let silent = data.fold(silent, Duration::min);
        if silent >= limit {
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
