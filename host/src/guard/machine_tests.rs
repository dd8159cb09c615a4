//! The guard's decisions against a model world, in which every action may fail, every outcome may
//! stay unknown, the guest may die and the backup may take over at any moment.

use romulus_checkpoint::Generation;
use romulus_checkpoint::arbiter::{Ownership, Record, SwapOutcome};

use super::machine::{Action, Authority, Guard, GuardPolicy, Input, LastWords, Outcome};

const LEFT_PAUSED: LastWords = LastWords { armed: true, detached: false, paused: true };

fn policy(authority: Authority) -> GuardPolicy {
    GuardPolicy { host: "a".into(), authority, nonce: 99 }
}

fn record(ownership: Ownership) -> Record {
    Record { ownership, generation: Generation(4), nonce: 1 }
}

fn protected() -> Record {
    record(Ownership::Protected { primary: "a".into(), backup: "b".into() })
}

fn owned() -> Record {
    record(Ownership::Owned { backup: "b".into() })
}

fn solo(host: &str) -> Record {
    record(Ownership::Solo { primary: host.into() })
}

/// A small world; `choices` decides everything that may go one way or another.
struct World {
    record: Option<Record>,
    guest_alive: bool,
    guest_paused: bool,
    output_open: bool,
    backup_may_act: bool,
    choices: Vec<usize>,
    taken: Vec<(usize, usize)>,
}

impl World {
    fn new(record: Option<Record>, choices: &[usize]) -> Self {
        World {
            record,
            guest_alive: true,
            guest_paused: true,
            output_open: false,
            backup_may_act: true,
            choices: choices.to_vec(),
            taken: Vec::new(),
        }
    }

    /// One of `0..of`; beyond the given choices always 0, where nothing goes wrong.
    fn choose(&mut self, of: usize) -> usize {
        let choice = self.choices.get(self.taken.len()).copied().unwrap_or(0);
        self.taken.push((choice, of));
        choice
    }

    fn disturb(&mut self) {
        match self.choose(3) {
            1 => self.guest_alive = false,
            2 if self.backup_may_act => {
                if let Some(Record { ownership: Ownership::Protected { backup, .. }, .. }) = &self.record {
                    let ownership = Ownership::Owned { backup: backup.clone() };
                    self.record = self.record.as_ref().map(|record| record.successor(ownership, 7));
                    self.backup_may_act = false;
                }
            }
            _ => {}
        }
    }

    fn swap(&mut self, expected: &Record, new: &Record) -> SwapOutcome {
        let choice = self.choose(3);
        if choice == 2 {
            return SwapOutcome::Unknown("not done".into());
        }
        let matches = self.record.as_ref() == Some(expected);
        if matches {
            self.record = Some(new.clone());
        }
        match choice {
            1 => SwapOutcome::Unknown("done or lost".into()),
            _ if matches || self.record.as_ref() == Some(new) => SwapOutcome::Won,
            _ => SwapOutcome::Lost(self.record.clone()),
        }
    }

    fn run(&mut self, words: LastWords) -> Outcome {
        let mut guard = Guard::new(policy(Authority::Arbiter));
        let mut action = guard.step(Input::ProtectorDied(words));
        for _ in 0..200 {
            self.disturb();
            let input = match action {
                Action::Exit(outcome) => return outcome,
                Action::CheckGuest => Input::GuestAlive(self.guest_alive),
                Action::ReadRecord => match self.choose(2) {
                    0 => Input::Record(Ok(self.record.clone())),
                    _ => Input::Record(Err("down".into())),
                },
                Action::Swap { expected, new } => Input::Swapped(self.swap(&expected, &new)),
                Action::Resume(_) if !self.guest_alive || self.choose(2) == 1 => {
                    Input::Done(Err("no answer".into()))
                }
                Action::Resume(_) => {
                    self.check_may_run();
                    self.guest_paused = false;
                    Input::Done(Ok(()))
                }
                Action::OpenGate(_) => {
                    self.check_may_run();
                    self.output_open = true;
                    Input::Done(if self.choose(2) == 0 { Ok(()) } else { Err("netlink".into()) })
                }
                Action::Destroy => {
                    let may = matches!(&self.record, Some(Record { ownership: Ownership::Owned { .. }, .. }));
                    assert!(may, "destroyed a guest that nobody else has: {:?}", self.record);
                    self.guest_alive = false;
                    Input::Done(Ok(()))
                }
                Action::Wait(pause, why) => {
                    assert!(!pause.is_zero() && !why.is_empty());
                    Input::Waited
                }
            };
            action = guard.step(input);
        }
        panic!("the guard does not come to an end");
    }

    fn check_may_run(&self) {
        let ownership = self.record.as_ref().map(|record| &record.ownership);
        assert_eq!(ownership, Some(&Ownership::Solo { primary: "a".into() }), "runs without a grant");
    }

    fn check_end(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Solo => assert!(!self.guest_paused && self.output_open),
            Outcome::HandedBack => {
                assert!(!self.guest_alive && !self.output_open, "something left before the hand-back");
                // Unless the backup was quick, the record is its chance: the same image as before.
                if let Some(Record { ownership: Ownership::Protected { .. }, nonce, generation }) =
                    &self.record
                {
                    assert_eq!((*nonce, *generation), (1, Generation(6)));
                }
            }
            Outcome::GuestDead => assert!(!self.guest_alive),
            Outcome::Destroyed(record) => {
                assert!(!self.output_open && !self.guest_alive);
                assert!(matches!(record.ownership, Ownership::Owned { .. }));
            }
            other => panic!("{other:?} is no end of this story"),
        }
    }
}

/// All sequences of up to `depth` choices.
fn explore(depth: usize, start: &dyn Fn() -> Option<Record>) -> (usize, Vec<Outcome>) {
    let mut pending = vec![Vec::new()];
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut runs = 0;
    while let Some(choices) = pending.pop() {
        let mut world = World::new(start(), &choices);
        let outcome = world.run(LEFT_PAUSED);
        world.check_end(&outcome);
        runs += 1;
        if !outcomes.contains(&outcome) {
            outcomes.push(outcome);
        }
        for index in choices.len()..world.taken.len().min(depth) {
            for choice in 1..world.taken[index].1 {
                let mut next: Vec<usize> = world.taken[..index].iter().map(|taken| taken.0).collect();
                next.push(choice);
                pending.push(next);
            }
        }
    }
    (runs, outcomes)
}

#[test]
fn i9_in_every_story_the_guest_runs_only_with_the_grant() {
    let (runs, outcomes) = explore(11, &|| Some(protected()));
    assert!(runs > 1_000, "{runs}");
    for wanted in [Outcome::Solo, Outcome::GuestDead, Outcome::HandedBack] {
        assert!(outcomes.contains(&wanted), "{wanted:?} never happened");
    }
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Outcome::Destroyed(_))));
}

#[test]
fn i8_a_guest_of_this_host_runs_again() {
    for start in [protected(), solo("a")] {
        let mut world = World::new(Some(start), &[]);
        assert_eq!(world.run(LEFT_PAUSED), Outcome::Solo);
        world.check_end(&Outcome::Solo);
        assert_eq!(world.record.unwrap().generation, Generation(5));
    }
}

#[test]
fn a_guest_of_another_host_is_destroyed_and_one_that_ended_left_alone() {
    for start in
        [owned(), solo("b"), record(Ownership::Protected { primary: "b".into(), backup: "a".into() })]
    {
        let mut guard = Guard::new(policy(Authority::Arbiter));
        guard.step(Input::ProtectorDied(LEFT_PAUSED));
        guard.step(Input::GuestAlive(true));
        assert_eq!(guard.step(Input::Record(Ok(Some(start.clone())))), Action::Destroy);
        assert_eq!(guard.step(Input::Done(Ok(()))), Action::Exit(Outcome::Destroyed(start)));
    }
    let mut guard = Guard::new(policy(Authority::Arbiter));
    guard.step(Input::ProtectorDied(LEFT_PAUSED));
    guard.step(Input::GuestAlive(true));
    let ended = record(Ownership::Ended);
    assert_eq!(guard.step(Input::Record(Ok(Some(ended)))), Action::Exit(Outcome::Ended));
}

#[test]
fn a_missing_record_is_no_grant() {
    let mut guard = Guard::new(policy(Authority::Arbiter));
    guard.step(Input::ProtectorDied(LEFT_PAUSED));
    guard.step(Input::GuestAlive(true));
    assert!(matches!(guard.step(Input::Record(Ok(None))), Action::Wait(..)));
    assert_eq!(guard.step(Input::Waited), Action::CheckGuest);
    assert_eq!(guard.step(Input::GuestAlive(false)), Action::Exit(Outcome::GuestDead));
}

#[test]
fn a_detached_or_unarmed_protector_leaves_nothing_to_do() {
    for (armed, detached, paused, needed) in [
        (false, false, false, false),
        (true, true, false, false),
        (true, false, false, true),
        (false, false, true, true),
    ] {
        let mut guard = Guard::new(policy(Authority::Arbiter));
        let action = guard.step(Input::ProtectorDied(LastWords { armed, detached, paused }));
        assert_eq!(action == Action::CheckGuest, needed, "{armed} {detached} {paused}");
    }
}

#[test]
fn a_guest_that_was_not_paused_is_not_resumed() {
    let mut guard = Guard::new(policy(Authority::NobodyAndSoloIsAutomatic));
    guard.step(Input::ProtectorDied(LastWords { paused: false, ..LEFT_PAUSED }));
    assert_eq!(guard.step(Input::GuestAlive(true)), Action::CheckGuest);
    assert!(matches!(guard.step(Input::GuestAlive(true)), Action::OpenGate(_)));
    assert_eq!(guard.step(Input::Done(Ok(()))), Action::Exit(Outcome::Solo));
}

#[test]
fn without_an_arbiter_only_the_automatic_move_is_made() {
    let mut guard = Guard::new(policy(Authority::NobodyAndSoloIsManual));
    guard.step(Input::ProtectorDied(LEFT_PAUSED));
    assert_eq!(guard.step(Input::GuestAlive(true)), Action::Exit(Outcome::Held));

    let mut guard = Guard::new(policy(Authority::NobodyAndSoloIsAutomatic));
    guard.step(Input::ProtectorDied(LEFT_PAUSED));
    guard.step(Input::GuestAlive(true));
    assert!(matches!(guard.step(Input::GuestAlive(true)), Action::Resume(_)));
}

/// A protector that was started again has claimed the record: a guard that could not open the gate
/// at once must not open it then, for the new one holds the guest's output.
#[test]
fn i1_a_grant_that_was_displaced_opens_nothing() {
    let mut guard = Guard::new(policy(Authority::Arbiter));
    guard.step(Input::ProtectorDied(LastWords { paused: false, ..LEFT_PAUSED }));
    guard.step(Input::GuestAlive(true));
    let Action::Swap { new: granted, .. } = guard.step(Input::Record(Ok(Some(protected())))) else {
        panic!("no swap")
    };
    guard.step(Input::Swapped(SwapOutcome::Won));
    assert!(matches!(guard.step(Input::GuestAlive(true)), Action::OpenGate(_)));
    let fail = |guard: &mut Guard| {
        assert!(matches!(guard.step(Input::Done(Err("busy".into()))), Action::Wait(..)));
        assert_eq!(guard.step(Input::Waited), Action::CheckGuest);
        assert_eq!(guard.step(Input::GuestAlive(true)), Action::ReadRecord);
    };
    fail(&mut guard);
    assert!(matches!(guard.step(Input::Record(Ok(Some(granted.clone())))), Action::OpenGate(_)));
    fail(&mut guard);
    let claimed = granted.successor(protected().ownership, 5);
    assert_eq!(guard.step(Input::Record(Ok(Some(claimed)))), Action::Exit(Outcome::Displaced));
}

/// As above for a guest left paused, whose monitor the new protector had first: it runs on, no more.
#[test]
fn i8_a_grant_that_was_displaced_still_resumes_the_guest() {
    let mut guard = Guard::new(policy(Authority::Arbiter));
    guard.step(Input::ProtectorDied(LEFT_PAUSED));
    guard.step(Input::GuestAlive(true));
    let Action::Swap { new: granted, .. } = guard.step(Input::Record(Ok(Some(protected())))) else {
        panic!("no swap")
    };
    guard.step(Input::Swapped(SwapOutcome::Won));
    assert!(matches!(guard.step(Input::GuestAlive(true)), Action::Resume(_)));
    assert!(matches!(guard.step(Input::Done(Err("busy".into()))), Action::Wait(..)));
    assert_eq!(guard.step(Input::Waited), Action::CheckGuest);
    assert_eq!(guard.step(Input::GuestAlive(true)), Action::ReadRecord);
    let claimed = granted.successor(solo("a").ownership, 5);
    assert!(matches!(guard.step(Input::Record(Ok(Some(claimed)))), Action::Resume(_)));
    assert_eq!(guard.step(Input::Done(Ok(()))), Action::Exit(Outcome::Displaced));
}
