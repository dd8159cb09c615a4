//! What the guard does after the protector's death: sans-I/O. Each [`Guard::step`] takes what came
//! of the last action and gives the next one.
//!
//! In short: if the guest is dead, nothing (the backup may take over). Otherwise the record is
//! swapped to `Solo` first, and only with that grant is the guest resumed and its output let go.
//! If another host has the guest, the local one is destroyed. If that is not known, it is asked
//! again until it is, and meanwhile everything stays as it is.

use std::time::Duration;

use romulus_checkpoint::arbiter::{Ownership, Record, SoloGrant, SwapOutcome, solo_grant};

/// Pause before the first and before each later repetition of something that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Who decides whether the guest may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The arbiter's record.
    Arbiter,
    /// Nobody; going on alone is the automatic move.
    NobodyAndSoloIsAutomatic,
    /// Nobody; going on alone is up to an operator.
    NobodyAndSoloIsManual,
}

/// What the guard is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardPolicy {
    /// This host's name in the record.
    pub host: String,
    /// Who decides.
    pub authority: Authority,
    /// The nonce of the guard's own swap, random.
    pub nonce: u64,
}

/// What the protector left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWords {
    /// It had begun to hold or pause the guest.
    pub armed: bool,
    /// It had let go of the guest cleanly.
    pub detached: bool,
    /// It may have left the guest paused.
    pub paused: bool,
}

/// What came of the last action.
#[derive(Debug)]
pub enum Input {
    /// The protector is dead.
    ProtectorDied(LastWords),
    /// Answer to [`Action::CheckGuest`]: whether the guest lives and is not about to die.
    GuestAlive(bool),
    /// Answer to [`Action::ReadRecord`].
    Record(Result<Option<Record>, String>),
    /// Answer to [`Action::Swap`].
    Swapped(SwapOutcome),
    /// Answer to [`Action::Resume`], [`Action::OpenGate`] and [`Action::Destroy`].
    Done(Result<(), String>),
    /// Answer to [`Action::Wait`].
    Waited,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look whether the guest lives.
    CheckGuest,
    /// Read the record.
    ReadRecord,
    /// Swap the record.
    Swap {
        /// The record expected.
        expected: Record,
        /// The new one.
        new: Record,
    },
    /// Resume the guest if it is paused.
    Resume(SoloGrant),
    /// Let the guest's output go.
    OpenGate(SoloGrant),
    /// Destroy the guest.
    Destroy,
    /// Do nothing for so long; the reason is for people.
    Wait(Duration, String),
    /// The work is done.
    Exit(Outcome),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was to be done: the protector had let go of the guest, or had not begun.
    NotNeeded,
    /// The guest runs on alone.
    Solo,
    /// The guest is dead; the backup may take over.
    GuestDead,
    /// The guest died after the grant was won and before anything of it left this host: the record
    /// was handed back, so that the backup may take over.
    HandedBack,
    /// Another host has the guest; the local one was destroyed.
    Destroyed(Record),
    /// The guest has ended by itself; nothing was touched.
    Ended,
    /// Another protector of this host has claimed the guest since, and looks after it.
    Displaced,
    /// Without an arbiter nobody may decide: the guest was left as it was.
    Held,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Watching,
    FirstCheck,
    Reading,
    Swapping {
        expected: Record,
        new: Record,
    },
    /// The grant is won; is there still a guest?
    SecondCheck {
        granted: Granted,
    },
    Resuming {
        granted: Granted,
    },
    /// Resuming failed: because the guest is dead?
    CheckAfterFailure {
        granted: Granted,
    },
    Opening {
        granted: Granted,
    },
    CheckBeforeOpening {
        granted: Granted,
    },
    /// Something failed meanwhile: does the grant still stand?
    Confirming {
        granted: Granted,
        resume: bool,
    },
    Returning {
        from: Record,
        to: Record,
    },
    ReadingReturned {
        from: Record,
        to: Record,
    },
    Destroying {
        record: Record,
    },
    Waiting {
        then: Box<State>,
    },
    Done,
}

/// A grant, and the `Protected` record that winning it displaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Granted {
    grant: SoloGrant,
    record: Record,
    displaced: Option<Record>,
    /// Another protector of this host has claimed the record since: the guest runs here, and its
    /// output is no more the guard's to let go.
    void: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Guard {
    policy: GuardPolicy,
    state: State,
    paused: bool,
    /// The swap that was last tried: what it displaced and what it wrote.
    tried: Option<(Record, Record)>,
    pause: Duration,
}

impl Guard {
    /// A guard that watches.
    pub fn new(policy: GuardPolicy) -> Self {
        Self { policy, state: State::Watching, paused: false, tried: None, pause: FIRST_PAUSE }
    }

    /// Takes what came of the last action (at first: the protector's death) and says what to do
    /// next.
    ///
    /// # Panics
    /// If `input` is not an answer to the last action.
    pub fn step(&mut self, input: Input) -> Action {
        let state = std::mem::replace(&mut self.state, State::Done);
        match (state, input) {
            (State::Watching, Input::ProtectorDied(words)) => self.begin(words),
            (State::FirstCheck, Input::GuestAlive(false)) => self.exit(Outcome::GuestDead),
            (State::FirstCheck, Input::GuestAlive(true)) => self.ask(),
            (State::Reading, Input::Record(record)) => self.consider(record),
            (State::Swapping { expected, new }, Input::Swapped(outcome)) => match outcome {
                SwapOutcome::Won => self.granted(new, Some(expected)),
                SwapOutcome::Lost(found) => self.consider(Ok(found)),
                SwapOutcome::Unknown(why) => self.wait(State::FirstCheck, why),
            },
            (State::SecondCheck { granted }, Input::GuestAlive(true)) => self.resume(granted),
            (State::SecondCheck { granted }, Input::GuestAlive(false)) => self.hand_back(granted),
            (State::Resuming { granted }, Input::Done(Ok(()))) if granted.void => {
                self.exit(Outcome::Displaced)
            }
            (State::Resuming { granted }, Input::Done(Ok(()))) => self.open(granted),
            (State::Resuming { granted }, Input::Done(Err(why))) => {
                self.wait(State::CheckAfterFailure { granted }, format!("cannot resume the guest: {why}"))
            }
            (State::CheckAfterFailure { granted }, Input::GuestAlive(true)) => self.confirm(granted, true),
            (State::CheckAfterFailure { granted }, Input::GuestAlive(false)) => self.hand_back(granted),
            (State::Opening { .. }, Input::Done(Ok(()))) => self.exit(Outcome::Solo),
            (State::Opening { granted }, Input::Done(Err(why))) => {
                // Part of the output may have left: from here on there is no handing back.
                let then = State::CheckBeforeOpening { granted };
                self.wait(then, format!("cannot let the guest's output go: {why}"))
            }
            (State::CheckBeforeOpening { granted }, Input::GuestAlive(true)) => self.confirm(granted, false),
            (State::Confirming { granted, resume }, Input::Record(record)) => {
                self.confirmed(granted, resume, record)
            }
            (State::CheckBeforeOpening { .. }, Input::GuestAlive(false)) => self.exit(Outcome::GuestDead),
            (State::Returning { from, to }, Input::Swapped(outcome)) => match outcome {
                SwapOutcome::Won => self.exit(Outcome::HandedBack),
                SwapOutcome::Lost(_) => self.exit(Outcome::GuestDead),
                SwapOutcome::Unknown(why) => self.wait(State::ReadingReturned { from, to }, why),
            },
            (State::ReadingReturned { from, to }, Input::Record(record)) => self.returned(from, to, record),
            (State::Destroying { record }, Input::Done(Ok(()))) => self.exit(Outcome::Destroyed(record)),
            (State::Destroying { record }, Input::Done(Err(why))) => {
                self.wait(State::Destroying { record }, format!("cannot destroy the guest: {why}"))
            }
            (State::Waiting { then }, Input::Waited) => self.enter(*then),
            (state, input) => panic!("{input:?} is no answer in {state:?}"),
        }
    }

    /// The action that belongs to a state, and the state.
    fn enter(&mut self, state: State) -> Action {
        let action = match &state {
            State::FirstCheck
            | State::SecondCheck { .. }
            | State::CheckAfterFailure { .. }
            | State::CheckBeforeOpening { .. } => Action::CheckGuest,
            State::Reading | State::Confirming { .. } | State::ReadingReturned { .. } => Action::ReadRecord,
            State::Swapping { expected, new } => {
                Action::Swap { expected: expected.clone(), new: new.clone() }
            }
            State::Returning { from, to } => Action::Swap { expected: from.clone(), new: to.clone() },
            State::Resuming { granted } => Action::Resume(granted.grant),
            State::Opening { granted } => Action::OpenGate(granted.grant),
            State::Destroying { .. } => Action::Destroy,
            State::Watching | State::Waiting { .. } | State::Done => unreachable!("no action begins these"),
        };
        self.state = state;
        action
    }

    fn exit(&mut self, outcome: Outcome) -> Action {
        self.state = State::Done;
        Action::Exit(outcome)
    }

    fn wait(&mut self, then: State, why: String) -> Action {
        self.state = State::Waiting { then: Box::new(then) };
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Action::Wait(pause, why)
    }

    fn begin(&mut self, words: LastWords) -> Action {
        if words.detached || !(words.armed || words.paused) {
            return self.exit(Outcome::NotNeeded);
        }
        self.paused = words.paused;
        self.enter(State::FirstCheck)
    }

    fn ask(&mut self) -> Action {
        match self.policy.authority {
            Authority::Arbiter => self.enter(State::Reading),
            Authority::NobodyAndSoloIsManual => self.exit(Outcome::Held),
            Authority::NobodyAndSoloIsAutomatic => {
                let ownership = Ownership::Solo { primary: self.policy.host.clone() };
                let generation = romulus_checkpoint::Generation(0);
                self.granted(Record { ownership, generation, nonce: self.policy.nonce }, None)
            }
        }
    }

    fn consider(&mut self, record: Result<Option<Record>, String>) -> Action {
        let record = match record {
            Ok(Some(record)) => record,
            Ok(None) => return self.wait(State::FirstCheck, "there is no record of this guest".into()),
            Err(why) => return self.wait(State::FirstCheck, why),
        };
        if let Some((displaced, written)) = &self.tried
            && record == *written
        {
            let displaced = displaced.clone();
            return self.granted(record, Some(displaced));
        }
        match &record.ownership {
            // `Solo` of this host is swapped too: a swap of the dead protector that is still on
            // its way then finds another record than it expects.
            Ownership::Protected { primary, .. } | Ownership::Solo { primary }
                if *primary == self.policy.host =>
            {
                let ownership = Ownership::Solo { primary: self.policy.host.clone() };
                let new = record.successor(ownership, self.policy.nonce);
                self.tried = Some((record.clone(), new.clone()));
                self.enter(State::Swapping { expected: record, new })
            }
            Ownership::Ended => self.exit(Outcome::Ended),
            _ => self.enter(State::Destroying { record }),
        }
    }

    fn granted(&mut self, record: Record, displaced: Option<Record>) -> Action {
        self.pause = FIRST_PAUSE;
        let displaced =
            displaced.filter(|displaced| matches!(displaced.ownership, Ownership::Protected { .. }));
        match solo_grant(&record, &self.policy.host) {
            Some(grant) => {
                self.enter(State::SecondCheck { granted: Granted { grant, record, displaced, void: false } })
            }
            // Not reached: only records of this form are swapped in. If it were, to hold is safe.
            None => self.wait(State::FirstCheck, "the record won is no grant".into()),
        }
    }

    fn resume(&mut self, granted: Granted) -> Action {
        if self.paused { self.enter(State::Resuming { granted }) } else { self.open(granted) }
    }

    fn open(&mut self, granted: Granted) -> Action {
        self.enter(State::Opening { granted })
    }

    /// Before something is tried again that failed. A protector that was started meanwhile has
    /// claimed the record and holds the guest's output again: what was granted before is void.
    fn confirm(&mut self, granted: Granted, resume: bool) -> Action {
        match self.policy.authority {
            Authority::Arbiter => self.enter(State::Confirming { granted, resume }),
            _ if resume => self.resume(granted),
            _ => self.open(granted),
        }
    }

    fn confirmed(
        &mut self,
        granted: Granted,
        resume: bool,
        record: Result<Option<Record>, String>,
    ) -> Action {
        let then = |granted| match resume {
            true => State::CheckAfterFailure { granted },
            false => State::CheckBeforeOpening { granted },
        };
        match record {
            Ok(Some(record)) if record == granted.record && resume => self.resume(granted),
            Ok(Some(record)) if record == granted.record => self.open(granted),
            Ok(Some(record)) => match &record.ownership {
                Ownership::Protected { primary, .. } | Ownership::Solo { primary }
                    if *primary == self.policy.host =>
                {
                    match resume {
                        // Who left it paused was not the new one.
                        true => self.resume(Granted { void: true, ..granted }),
                        false => self.exit(Outcome::Displaced),
                    }
                }
                Ownership::Ended => self.exit(Outcome::Ended),
                _ => self.enter(State::Destroying { record }),
            },
            Ok(None) => self.wait(then(granted), "there is no record of this guest".into()),
            Err(why) => self.wait(then(granted), why),
        }
    }

    /// The guest is dead and nothing of it has left since the last ack: the backup may have it.
    fn hand_back(&mut self, granted: Granted) -> Action {
        let Some(displaced) = granted.displaced.filter(|_| !granted.void) else {
            return self.exit(Outcome::GuestDead);
        };
        // The nonce of the displaced record: it names the image, which is still the same.
        let to = granted.record.successor(displaced.ownership, displaced.nonce);
        self.enter(State::Returning { from: granted.record, to })
    }

    fn returned(&mut self, from: Record, to: Record, record: Result<Option<Record>, String>) -> Action {
        match record {
            Ok(Some(record)) if record == to => self.exit(Outcome::HandedBack),
            Ok(Some(record)) if record == from => self.enter(State::Returning { from, to }),
            Ok(_) => self.exit(Outcome::GuestDead),
            Err(why) => self.wait(State::ReadingReturned { from, to }, why),
        }
    }
}
