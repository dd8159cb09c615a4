//! The arbiter that is none: every swap succeeds, in the memory of this process alone.
//!
//! **Danger.** Two processes that both use it agree on nothing: after a broken network each would
//! be granted its move, and the guest would run twice. So only one of the two moves may be
//! automatic; the other one waits for an operator who knows that the other side is dead. Both
//! automatic means split brain on the first network failure.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::{Arbiter, ArbiterError, Record, SwapOutcome};

/// Which move may be made without an operator when nobody arbitrates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutomaticMoves {
    /// The primary goes solo by itself; takeover needs an operator. The default: a lost backup
    /// does not stop the guest's output, and a lost primary waits for a person.
    #[default]
    Solo,
    /// The backup takes over by itself; a primary that lost its backup holds all output until an
    /// operator lets it go on alone.
    Takeover,
    /// Both, at the cost of a guest that runs twice after a network failure. Only for operators
    /// who asked for it in so many words.
    AcceptSplitBrain,
}

/// Grants everything that it is asked, by itself.
#[derive(Debug, Default)]
pub struct NoArbiter {
    moves: AutomaticMoves,
    records: Mutex<HashMap<String, Record>>,
}

impl NoArbiter {
    /// An arbiter that is none; `moves` says which move the caller means to make unasked.
    pub fn new(moves: AutomaticMoves) -> Self {
        Self { moves, records: Mutex::default() }
    }

    /// Whether the primary may go solo without an operator.
    pub fn solo_automatic(&self) -> bool {
        matches!(self.moves, AutomaticMoves::Solo | AutomaticMoves::AcceptSplitBrain)
    }

    /// Whether the backup may take over without an operator.
    pub fn takeover_automatic(&self) -> bool {
        matches!(self.moves, AutomaticMoves::Takeover | AutomaticMoves::AcceptSplitBrain)
    }
}

impl Arbiter for NoArbiter {
    fn read(&self, guest: &str) -> Result<Option<Record>, ArbiterError> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(records.get(guest).cloned())
    }

    fn swap(&self, guest: &str, _expected: Option<&Record>, new: &Record) -> SwapOutcome {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert(guest.to_owned(), new.clone());
        SwapOutcome::Won
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::Ownership;

    #[test]
    fn every_swap_succeeds_and_is_seen_by_this_process_alone() {
        let (here, there) = (NoArbiter::default(), NoArbiter::default());
        let first = Record::first_solo("a").unwrap();
        assert_eq!(here.swap("vm", None, &first), SwapOutcome::Won);
        let stale = first.successor(Ownership::Owned { backup: "b".into() }, 7);
        assert_eq!(here.swap("vm", None, &stale), SwapOutcome::Won);
        assert_eq!(here.read("vm").unwrap(), Some(stale));
        assert_eq!(there.read("vm").unwrap(), None);
        assert_eq!(here.read("other").unwrap(), None);
    }

    #[test]
    fn one_move_is_automatic_unless_split_brain_is_accepted() {
        let moves = |moves| {
            let none = NoArbiter::new(moves);
            (none.solo_automatic(), none.takeover_automatic())
        };
        assert_eq!(moves(AutomaticMoves::default()), (true, false));
        assert_eq!(moves(AutomaticMoves::Takeover), (false, true));
        assert_eq!(moves(AutomaticMoves::AcceptSplitBrain), (true, true));
    }
}
