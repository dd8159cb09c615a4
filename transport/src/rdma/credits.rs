//! Who may send how much: receives never run short.
//!
//! Each side counts what it has sent and what it has released: markers whose fence and messages
//! that the layer above has taken. The peer may have so many on their way as the handshake said,
//! beyond those released. Counters only grow, so a note that is late or left out does no harm.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::Credits;
use crate::stream::socket::Signal;

#[derive(Debug, Default)]
struct Count {
    markers: AtomicU64,
    messages: AtomicU64,
}

impl Count {
    fn load(&self) -> Credits {
        Credits {
            markers: self.markers.load(Ordering::Acquire),
            messages: self.messages.load(Ordering::Acquire),
        }
    }

    fn store(&self, credits: &Credits) {
        self.markers.store(credits.markers, Ordering::Release);
        self.messages.store(credits.messages, Ordering::Release);
    }
}

/// The counters of one connection.
#[derive(Debug)]
pub(super) struct Ledger {
    sent: Count,
    /// What the peer says that it has released.
    peer: Count,
    /// What this side has released, and what of it the peer was told.
    released: Count,
    told: Count,
    /// Markers and messages that may be on their way to the peer.
    limit: Credits,
    /// Markers and messages that this side keeps receives for.
    own_limit: Credits,
    /// Raised when a marker may have become possible. For one waiter.
    pub marker_room: Signal,
    /// Raised when a message may have become possible. For one waiter.
    pub message_room: Signal,
}

impl Ledger {
    /// `limit` is what the peer has room for, `own_limit` what this side has.
    pub(super) fn new(limit: Credits, own_limit: Credits) -> io::Result<Self> {
        Ok(Ledger {
            sent: Count::default(),
            peer: Count::default(),
            released: Count::default(),
            told: Count::default(),
            limit,
            own_limit,
            marker_room: Signal::new()?,
            message_room: Signal::new()?,
        })
    }

    /// Takes the right to send a marker; false: not now. For one thread at a time.
    pub(super) fn take_marker(&self) -> bool {
        take(&self.sent.markers, &self.peer.markers, self.limit.markers)
    }

    /// Takes the right to send a message; false: not now. For one thread at a time.
    pub(super) fn take_message(&self) -> bool {
        take(&self.sent.messages, &self.peer.messages, self.limit.messages)
    }

    /// A fence was taken.
    pub(super) fn release_marker(&self) {
        self.released.markers.fetch_add(1, Ordering::AcqRel);
    }

    /// A message was taken.
    pub(super) fn release_message(&self) {
        self.released.messages.fetch_add(1, Ordering::AcqRel);
    }

    /// The peer's note.
    pub(super) fn peer_released(&self, credits: &Credits) -> Result<(), String> {
        let (before, sent) = (self.peer.load(), self.sent.load());
        let is_possible = |before: u64, now: u64, sent: u64| before <= now && now <= sent;
        if !is_possible(before.markers, credits.markers, sent.markers)
            || !is_possible(before.messages, credits.messages, sent.messages)
        {
            return Err(format!(
                "it says it has released {credits:?}, of {sent:?} sent and {before:?} before"
            ));
        }
        self.peer.store(credits);
        if credits.markers > before.markers {
            self.marker_room.raise();
        }
        if credits.messages > before.messages {
            self.message_room.raise();
        }
        Ok(())
    }

    /// What the peer was not told yet, if there is something.
    pub(super) fn untold(&self) -> Option<Credits> {
        let released = self.released.load();
        (released != self.told.load()).then_some(released)
    }

    /// Whether so much is untold that the peer may soon have to wait.
    pub(super) fn is_due(&self) -> bool {
        let (released, told) = (self.released.load(), self.told.load());
        let is_due = |released: u64, told: u64, limit: u64| {
            limit > 0 && released.saturating_sub(told) >= limit.div_ceil(2)
        };
        is_due(released.markers, told.markers, self.own_limit.markers)
            || is_due(released.messages, told.messages, self.own_limit.messages)
    }

    /// The peer was told; for whoever holds the lock of the control connection.
    pub(super) fn set_told(&self, credits: &Credits) {
        self.told.store(credits);
    }
}

fn take(sent: &AtomicU64, released: &AtomicU64, limit: u64) -> bool {
    let count = sent.load(Ordering::Acquire);
    if count - released.load(Ordering::Acquire) >= limit {
        return false;
    }
    sent.store(count + 1, Ordering::Release);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(markers: u64, messages: u64) -> Ledger {
        let limit = Credits { markers, messages };
        Ledger::new(limit, limit).expect("event descriptors")
    }

    #[test]
    fn nothing_is_sent_beyond_what_the_peer_released() {
        let ledger = ledger(2, 3);
        assert!(ledger.take_marker() && ledger.take_marker());
        assert!(!ledger.take_marker());
        assert!(ledger.take_message() && ledger.take_message() && ledger.take_message());
        assert!(!ledger.take_message());
        ledger.peer_released(&Credits { markers: 1, messages: 0 }).unwrap();
        assert!(ledger.take_marker());
        assert!(!ledger.take_marker() && !ledger.take_message());
    }

    #[test]
    fn a_peer_cannot_release_what_was_not_sent_nor_take_it_back() {
        let ledger = ledger(4, 4);
        assert!(ledger.take_marker() && ledger.take_marker() && ledger.take_message());
        let released = |markers, messages| ledger.peer_released(&Credits { markers, messages });
        assert!(released(3, 0).is_err());
        assert!(released(0, 2).is_err());
        assert!(released(u64::MAX, u64::MAX).is_err());
        assert!(released(1, 1).is_ok());
        assert!(released(0, 1).is_err());
        assert!(released(1, 0).is_err());
        assert!(released(1, 1).is_ok());
    }

    #[test]
    fn the_peer_is_told_before_it_must_wait() {
        let ledger = ledger(4, 100);
        assert_eq!(ledger.untold(), None);
        ledger.release_marker();
        assert!(!ledger.is_due());
        let untold = ledger.untold().expect("a released marker");
        assert_eq!(untold, Credits { markers: 1, messages: 0 });
        ledger.set_told(&untold);
        assert_eq!(ledger.untold(), None);
        ledger.release_marker();
        ledger.release_marker();
        assert!(ledger.is_due());
    }
}
