//! The arbiter's record as the primary knows it, and the one operation on it that may be under
//! way. An outcome that is not known is driven to a known one: the record is read, and while it
//! still is the expected one the swap is repeated (or another one from the same record, which
//! then decides which of the two ever happens).

use std::time::Duration;

use crate::arbiter::{Ownership, Record, SoloGrant, SwapOutcome, solo_grant};
use crate::ids::Time;
use crate::nonce::Nonces;

use super::{Actions, PrimaryAction};

/// What the arbiter is being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Swap,
    Read,
}

#[derive(Debug)]
struct Pending {
    expected: Record,
    new: Record,
    /// The record was read after an unknown outcome and still is `expected`.
    repeat: bool,
}

/// The record and who asks for what.
#[derive(Debug)]
pub(super) struct Grant {
    record: Record,
    /// The arbiter has no record of the guest: nothing can be decided until somebody restores it.
    missing: bool,
    pending: Option<Pending>,
    /// Records of swaps of unknown outcome that another one from the same record has superseded:
    /// each may still happen until an outcome is known.
    superseded: Vec<Record>,
    asked: Asked,
    retry_at: Option<Time>,
    retry_after: Duration,
    nonces: Nonces,
}

impl Grant {
    pub(super) fn new(record: Record, nonces: Nonces, retry_after: Duration) -> Self {
        Self {
            record,
            missing: false,
            pending: None,
            superseded: Vec::new(),
            asked: Asked::Nothing,
            retry_at: None,
            retry_after,
            nonces,
        }
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Whether the record is known: no swap is under way or of unknown outcome.
    pub(super) fn is_known(&self) -> bool {
        self.pending.is_none()
    }

    /// The grant to release all output, if the record is known to say so.
    pub(super) fn solo(&self, host: &str) -> Option<SoloGrant> {
        let known = self.pending.is_none() && !self.missing;
        known.then(|| solo_grant(&self.record, host)).flatten()
    }

    pub(super) fn is_protected(&self) -> bool {
        matches!(self.record.ownership, Ownership::Protected { .. })
    }

    /// Whether every record that the arbiter may hold, those of swaps of unknown outcome included,
    /// is one under which an image may cover output: it names the image, or lets nobody take over.
    pub(super) fn covers(&self, is_named: impl Fn(u64) -> bool) -> bool {
        let covers = |record: &Record| match record.ownership {
            Ownership::Protected { .. } => is_named(record.nonce),
            Ownership::Solo { .. } => true,
            Ownership::Owned { .. } | Ownership::Ended => false,
        };
        !self.missing
            && covers(&self.record)
            && self.pending.as_ref().is_none_or(|pending| covers(&pending.new))
            && self.superseded.iter().all(covers)
    }

    /// A nonce for a record that is no pairing's.
    pub(super) fn draw(&mut self) -> u64 {
        self.nonces.draw()
    }

    pub(super) fn is_missing(&self) -> bool {
        self.missing
    }

    /// Whether a swap to this ownership may be begun: nothing is pending, or a pending one of
    /// unknown outcome can be superseded.
    pub(super) fn may_swap(&self) -> bool {
        !self.missing
            && self.asked == Asked::Nothing
            && self.pending.as_ref().is_none_or(|pending| pending.repeat)
    }

    /// Whether the outcome is open and the record still is the expected one.
    pub(super) fn must_repeat(&self) -> bool {
        self.asked == Asked::Nothing && self.pending.as_ref().is_some_and(|pending| pending.repeat)
    }

    /// Begins a swap, or repeats the pending one if it wants the same.
    pub(super) fn swap(&mut self, ownership: Ownership, nonce: u64, actions: &mut Actions) {
        let same = |pending: &Pending| {
            let paired = matches!(ownership, Ownership::Protected { .. });
            pending.new.ownership == ownership && (!paired || pending.new.nonce == nonce)
        };
        if !self.pending.as_ref().is_some_and(same) {
            let expected = self.record.clone();
            let new = expected.successor(ownership, nonce);
            self.superseded.extend(self.pending.take().map(|pending| pending.new));
            self.pending = Some(Pending { expected, new, repeat: false });
        }
        self.issue(actions);
    }

    /// Repeats the pending swap.
    pub(super) fn repeat(&mut self, actions: &mut Actions) {
        self.issue(actions);
    }

    fn issue(&mut self, actions: &mut Actions) {
        if let Some(pending) = &mut self.pending {
            pending.repeat = false;
            self.asked = Asked::Swap;
            self.retry_at = None;
            actions.push(PrimaryAction::Swap {
                expected: Some(pending.expected.clone()),
                new: pending.new.clone(),
            });
        }
    }

    /// Reads the record unless the arbiter is being asked already.
    pub(super) fn ask_read(&mut self, actions: &mut Actions) {
        if self.asked == Asked::Nothing {
            self.asked = Asked::Read;
            self.retry_at = None;
            actions.push(PrimaryAction::ReadRecord);
        }
    }

    /// Sees to it that the record is read again, after so many of the usual delays.
    pub(super) fn read_later(&mut self, delays: u32, now: Time) {
        if self.asked == Asked::Nothing && self.retry_at.is_none() {
            self.retry_at = Some(now.after(self.retry_after * delays));
        }
    }

    /// When the record is to be read again.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    pub(super) fn tick(&mut self, now: Time, actions: &mut Actions) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.ask_read(actions);
        }
    }

    pub(super) fn swapped(&mut self, new: &Record, outcome: SwapOutcome, now: Time) {
        if self.asked != Asked::Swap || self.pending.as_ref().is_none_or(|pending| pending.new != *new) {
            return;
        }
        self.asked = Asked::Nothing;
        match outcome {
            SwapOutcome::Won => self.adopt(Some(new.clone()), now),
            // An earlier attempt at this very swap, of unknown outcome, may be what won.
            SwapOutcome::Lost(actual) => self.adopt(actual, now),
            SwapOutcome::Unknown(_) => self.retry_at = Some(now.after(self.retry_after)),
        }
    }

    pub(super) fn read(&mut self, record: Result<Option<Record>, String>, now: Time) {
        if self.asked != Asked::Read {
            return;
        }
        self.asked = Asked::Nothing;
        match (record, &mut self.pending) {
            (Err(_), _) => self.retry_at = Some(now.after(self.retry_after)),
            (Ok(Some(actual)), Some(pending)) if actual == pending.expected => pending.repeat = true,
            (Ok(actual), _) => self.adopt(actual, now),
        }
    }

    /// Takes what the arbiter holds for the truth.
    fn adopt(&mut self, actual: Option<Record>, now: Time) {
        self.pending = None;
        self.superseded.clear();
        self.missing = actual.is_none();
        match actual {
            Some(record) => self.record = record,
            None => self.retry_at = Some(now.after(self.retry_after * 10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, SessionId};

    fn protected(backup: &str) -> Ownership {
        Ownership::Protected { primary: "p".into(), backup: backup.into() }
    }

    /// A swap to pair with one image, of unknown outcome, superseded by one to pair with another:
    /// until the outcome is known, an ack of the second image covers nothing.
    #[test]
    fn i1_a_superseded_pairing_may_still_have_happened() {
        let solo = Ownership::Solo { primary: "p".into() };
        let record = Record { ownership: solo, generation: Generation(1), nonce: 9 };
        let mut grant = Grant::new(record.clone(), Nonces::new(1, SessionId(1)), Duration::from_millis(1));
        let (mut actions, now) = (Actions::new(), Time::default());
        grant.swap(protected("b1"), 1, &mut actions);
        let first = record.successor(protected("b1"), 1);
        grant.swapped(&first, SwapOutcome::Unknown("no answer".into()), now);
        grant.ask_read(&mut actions);
        grant.read(Ok(Some(record.clone())), now);
        assert!(grant.may_swap());
        grant.swap(protected("b2"), 2, &mut actions);
        assert!(!grant.covers(|nonce| nonce == 2), "the first pairing may be the record");
        let second = record.successor(protected("b2"), 2);
        grant.swapped(&second, SwapOutcome::Won, now);
        assert!(grant.covers(|nonce| nonce == 2), "only the second can be the record now");
    }
}
