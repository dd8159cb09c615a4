//! Getting the grant to run a guest alone: at the start of protection, and for a guard that acts
//! in place of a dead primary.

use std::time::Duration;

use super::{Arbiter, ArbiterError, Ownership, Record, SwapOutcome, random_nonce};

/// Why a host did not get the grant.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The record says that somebody else has the guest, or that it has ended.
    #[error("{host} may not run this guest: {}", .record.describe())]
    Refused {
        /// Who asked.
        host: String,
        /// The record found.
        record: Record,
    },
    /// There is no record of the guest.
    #[error("there is no record of this guest")]
    NoRecord,
    /// The arbiter could not be asked, or the outcome of a swap stayed unknown.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
}

/// How patiently an arbiter is asked that does not answer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Pause between two attempts.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 20, pause: Duration::from_millis(100) }
    }
}

/// For a host where the guest runs and nobody protects it yet: writes a record that says `Solo`
/// of `host` and returns it. A guest that this host had taken over, or that had ended and was
/// started again here, is this host's. Refused when another host has it. To be called by the one
/// process that may protect the guest: the record of another one, still at work, is displaced.
///
/// The record is written also where it says `Solo` already: what a dead process of this host
/// still has on its way to the arbiter comes to nothing by that.
pub fn claim_first(
    arbiter: &dyn Arbiter,
    guest: &str,
    host: &str,
    patience: Patience,
) -> Result<Record, ClaimError> {
    claim(arbiter, guest, host, patience, |record| match record.map(|record| &record.ownership) {
        None | Some(Ownership::Ended) => true,
        Some(Ownership::Protected { primary, .. }) => primary == host,
        Some(Ownership::Owned { backup }) => backup == host,
        Some(Ownership::Solo { primary }) => primary == host,
    })
}

/// For the primary's host after its protection died: `Protected` with this primary becomes
/// `Solo`, and `Solo` a newer `Solo`, as for [`claim_first`]. With the record returned the guest may run on here; [`ClaimError::Refused`] means that
/// it is to be destroyed, any other error that its output stays held.
pub fn claim_after_loss(
    arbiter: &dyn Arbiter,
    guest: &str,
    host: &str,
    patience: Patience,
) -> Result<Record, ClaimError> {
    claim(arbiter, guest, host, patience, |record| {
        matches!(record.map(|record| &record.ownership),
            Some(Ownership::Protected { primary, .. } | Ownership::Solo { primary }) if primary == host)
    })
}

fn claim(
    arbiter: &dyn Arbiter,
    guest: &str,
    host: &str,
    patience: Patience,
    may_swap_from: impl Fn(Option<&Record>) -> bool,
) -> Result<Record, ClaimError> {
    let nonce = random_nonce()?;
    let mut failure = ArbiterError("never asked".to_owned());
    for attempt in 0..patience.attempts.max(1) {
        if attempt > 0 {
            std::thread::sleep(patience.pause);
        }
        let found = match arbiter.read(guest) {
            Ok(found) => found,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        if let Some(record) = found.as_ref().filter(|record| record.nonce == nonce) {
            // An earlier attempt of this call, of unknown outcome.
            return Ok(record.clone());
        }
        let ownership = Ownership::Solo { primary: host.to_owned() };
        let new = match &found {
            _ if !may_swap_from(found.as_ref()) => {
                let host = host.to_owned();
                return Err(found.map_or(ClaimError::NoRecord, |record| ClaimError::Refused { host, record }));
            }
            None => Record { nonce, ..Record::first_solo(host)? },
            Some(record) => record.successor(ownership, nonce),
        };
        match arbiter.swap(guest, found.as_ref(), &new) {
            SwapOutcome::Won => return Ok(new),
            // Another swap came first, or this one may have happened: the next read tells.
            SwapOutcome::Lost(_) => failure = ArbiterError("lost every race for the record".to_owned()),
            SwapOutcome::Unknown(why) => failure = ArbiterError(why),
        }
    }
    Err(failure.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::Generation;

    /// Holds one record; the first `unknown` swaps happen or not (`applied`) and say neither.
    struct Model {
        record: Mutex<Option<Record>>,
        unknown: Mutex<Vec<bool>>,
    }

    impl Model {
        fn holding(ownership: Option<Ownership>, unknown: &[bool]) -> Self {
            let record = ownership.map(|ownership| Record { ownership, generation: Generation(4), nonce: 1 });
            Self { record: Mutex::new(record), unknown: Mutex::new(unknown.to_vec()) }
        }
    }

    impl Arbiter for Model {
        fn read(&self, _guest: &str) -> Result<Option<Record>, ArbiterError> {
            Ok(self.record.lock().unwrap().clone())
        }
        fn swap(&self, _guest: &str, expected: Option<&Record>, new: &Record) -> SwapOutcome {
            let mut record = self.record.lock().unwrap();
            let unknown = self.unknown.lock().unwrap().pop();
            if unknown != Some(false) {
                if record.as_ref() != expected {
                    return SwapOutcome::Lost(record.clone());
                }
                *record = Some(new.clone());
            }
            unknown.map_or(SwapOutcome::Won, |_| SwapOutcome::Unknown("test".into()))
        }
    }

    const AT_ONCE: Patience = Patience { attempts: 5, pause: Duration::ZERO };

    fn protected() -> Ownership {
        Ownership::Protected { primary: "a".into(), backup: "b".into() }
    }

    #[test]
    fn every_claim_writes_a_record() {
        let model = Model::holding(None, &[]);
        let record = claim_first(&model, "vm", "a", AT_ONCE).unwrap();
        assert_eq!(record.generation, Generation(1));
        let again = claim_first(&model, "vm", "a", AT_ONCE).unwrap();
        assert_eq!(again.generation, Generation(2), "what is on its way from `record` comes to nothing");
        assert!(matches!(claim_first(&model, "vm", "b", AT_ONCE), Err(ClaimError::Refused { .. })));
    }

    #[test]
    fn i9_a_guard_gets_the_grant_only_from_protected_or_solo() {
        let claim = |ownership| claim_after_loss(&Model::holding(ownership, &[]), "vm", "a", AT_ONCE);
        assert_eq!(claim(Some(protected())).unwrap().generation, Generation(5));
        assert_eq!(claim(Some(Ownership::Solo { primary: "a".into() })).unwrap().generation, Generation(5));
        for refused in [
            Ownership::Owned { backup: "b".into() },
            Ownership::Owned { backup: "a".into() },
            Ownership::Solo { primary: "b".into() },
            Ownership::Ended,
        ] {
            assert!(matches!(claim(Some(refused)), Err(ClaimError::Refused { .. })));
        }
        assert!(matches!(claim(None), Err(ClaimError::NoRecord)));
    }

    #[test]
    fn i9_an_unknown_outcome_is_read_again_whether_it_happened_or_not() {
        for happened in [true, false] {
            let model = Model::holding(Some(protected()), &[happened]);
            let record = claim_after_loss(&model, "vm", "a", AT_ONCE).unwrap();
            assert_eq!(record.generation, Generation(5));
            assert_eq!(model.read("vm").unwrap(), Some(record));
        }
        let model = Model::holding(Some(protected()), &[false; 5]);
        assert!(matches!(claim_after_loss(&model, "vm", "a", AT_ONCE), Err(ClaimError::Arbiter(_))));
    }
}
