//! The arbiter model (I9): a primary with its guard, two backup processes under one host name,
//! and a record that changes by compare-and-swap alone. Any answer of the arbiter may be lost and
//! any swap may happen late, also after the death of the process that asked for it. Protector,
//! guard, guest and backups die at any moment; suspicion is free to be wrong.
//!
//! A guest is a counter of its states; output of state n may be taken back by nobody once it is
//! released, so whoever runs the guest next must have state n.

mod moves;

use moves::{carry_out, fresh_primary, pending, release};
use stateright::{Model, Property};

/// A clause of who may do what when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// The primary releases after it has won `Solo`, not before.
    SwapBeforeRelease,
    /// The guard lets the guest's output go after it has won `Solo`, not before.
    GuardSwapsFirst,
    /// The backup fences before it swaps.
    FenceBeforeSwap,
    /// The backup activates after it has won.
    SwapBeforeActivation,
    /// The primary takes an unknown outcome for unknown, not for won.
    UnknownIsNotWon,
    /// A swap of unknown outcome whose record still is the expected one may yet happen: it is
    /// repeated, or another one is made from the same record.
    UnknownIsDecided,
    /// The same at the backup: unknown is not won.
    BackupWaitsForOutcome,
    /// A primary that lost destroys its guest.
    LoserStops,
    /// Re-pairing: output is held before the epoch whose ack lets the record be `Protected`.
    GateBeforePairing,
    /// ... and that ack comes before the swap.
    AckBeforePairing,
    /// A `Protected` record names the one image that may take over.
    RecordNamesImage,
    /// Output is released on acks of the image that the record names only.
    AckOfNamedImage,
    /// ... counting also what a swap names that was given up for another one from the same record:
    /// it may have happened until the other's outcome is known.
    SupersededMayHappen,
    /// The guard of a dead protector swaps also a record that says `Solo` already: the dead one's
    /// own swap may still be on its way.
    GuardSwapsSolo,
    /// A protector that is started again does so as well.
    RestartSwapsSolo,
    /// The guard hands back only what it has not released.
    HandBackUnreleased,
    /// The guard hands back only a record that was `Protected` when it swapped.
    HandBackDisplaced,
}

impl Clause {
    /// All of them.
    pub const ALL: [Clause; 17] = {
        use Clause::*;
        [
            SwapBeforeRelease,
            GuardSwapsFirst,
            FenceBeforeSwap,
            SwapBeforeActivation,
            UnknownIsNotWon,
            UnknownIsDecided,
            BackupWaitsForOutcome,
            LoserStops,
            GateBeforePairing,
            AckBeforePairing,
            RecordNamesImage,
            AckOfNamedImage,
            SupersededMayHappen,
            GuardSwapsSolo,
            RestartSwapsSolo,
            HandBackUnreleased,
            HandBackDisplaced,
        ]
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Protected,
    Solo,
    Owned,
}

/// The arbiter's record. The nonce of a `Protected` one is an image's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    owner: Owner,
    generation: u8,
    nonce: u8,
}

/// Who asks the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    Primary,
    Guard,
    Backup(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Swap {
    expected: Record,
    new: Record,
    unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Image {
    number: u8,
    committed: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Primary {
    alive: bool,
    known: Record,
    pending: Option<Swap>,
    /// The image named by a swap that was given up for the pending one.
    superseded: Option<u8>,
    /// A restarted protector has yet to win its grant.
    claiming: bool,
    link: Option<usize>,
    /// What the connection's image acked: its number and state.
    acked: Option<(u8, u8)>,
    /// The guest's state when output began to be held.
    held_at: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum GuardPhase {
    Watching,
    Checking,
    Swapping,
    Granted,
    Released,
    Returning,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Guard {
    phase: GuardPhase,
    pending: Option<Swap>,
    displaced: Option<Record>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Backup {
    image: Option<Image>,
    /// Takes commits of the present connection.
    linked: bool,
    posted: Option<u8>,
    pending: Option<Swap>,
    /// The state to resume, sampled when the swap was asked for.
    sampled: u8,
    /// Runs the guest from this state on.
    active: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    record: Record,
    /// Swaps that may happen yet.
    floating: Vec<(Who, Record, Record)>,
    guest_alive: bool,
    guest_state: u8,
    released: u8,
    gate_open: bool,
    primary: Primary,
    guard: Guard,
    backups: [Backup; 2],
    swaps: u8,
    crashes: u8,
    pairings: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    GuestSteps,
    GuestDies,
    Connect(usize, Fresh),
    Disconnect,
    Hold,
    Post,
    Commit(usize),
    Ack,
    ReleaseAcked,
    AskSolo,
    AskProtected,
    OpenGate,
    KillProtector,
    RestartProtector,
    GuardLooks,
    GuardOpensGate,
    GuardHandsBack,
    KillGuard,
    Suspect(usize),
    ActivateEarly(usize),
    CrashBackup(usize),
    /// The arbiter carries out a swap and its answer arrives.
    Answer(Who),
    /// The answer does not arrive.
    AnswerLost(Who),
    /// A swap happens that nobody waits for any more.
    HappensLate(usize),
    Reread(Who),
}

/// Whether a connection begins a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    NewImage,
    Delta,
}

/// Bounds, and what is left out.
#[derive(Clone, Copy, Debug)]
pub struct Arbiter {
    pub guest_states: u8,
    pub swaps: u8,
    pub crashes: u8,
    pub pairings: u8,
    pub without: Option<Clause>,
}

/// One backup process; protector, guard and guest may die.
pub const GUARDED: Arbiter = Arbiter { guest_states: 1, swaps: 4, crashes: 2, pairings: 1, without: None };
/// Two backup processes, each with an image of its own.
pub const TWO_IMAGES: Arbiter = Arbiter { guest_states: 1, swaps: 3, crashes: 1, pairings: 2, without: None };

impl Model for Arbiter {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let record = Record { owner: Owner::Solo, generation: 0, nonce: 100 };
        vec![State {
            record,
            floating: Vec::new(),
            guest_alive: true,
            guest_state: 0,
            released: 0,
            gate_open: true,
            primary: fresh_primary(record),
            guard: Guard { phase: GuardPhase::Watching, pending: None, displaced: None },
            backups: [Backup::default(); 2],
            swaps: 0,
            crashes: 0,
            pairings: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.guest_alive {
            if state.guest_state < self.guest_states {
                actions.push(Action::GuestSteps);
            }
            if state.crashes < self.crashes {
                actions.push(Action::GuestDies);
            }
        }
        self.primary_actions(state, actions);
        self.guard_actions(state, actions);
        self.backup_actions(state, actions);
        for who in [Who::Primary, Who::Guard, Who::Backup(0), Who::Backup(1)] {
            match *pending(&mut state.clone(), who) {
                Some(Swap { unknown: true, .. }) => actions.push(Action::Reread(who)),
                Some(_) => actions.extend([Action::Answer(who), Action::AnswerLost(who)]),
                None => {}
            }
        }
        for (at, (who, expected, new)) in state.floating.iter().enumerate() {
            let awaited = pending(&mut state.clone(), *who)
                .is_some_and(|swap| !swap.unknown && (swap.expected, swap.new) == (*expected, *new));
            if !awaited {
                actions.push(Action::HappensLate(at));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut next = before.clone();
        let state = &mut next;
        match action {
            Action::GuestSteps => {
                state.guest_state += 1;
                if state.gate_open {
                    release(state);
                }
            }
            Action::GuestDies => {
                state.crashes += 1;
                state.guest_alive = false;
            }
            Action::Commit(index) => {
                let backup = &mut state.backups[index];
                backup.image.as_mut()?.committed = backup.posted.take();
            }
            Action::GuardLooks => self.guard_looks(state)?,
            Action::GuardOpensGate => {
                state.gate_open = true;
                release(state);
                if state.guard.phase == GuardPhase::Granted {
                    state.guard.phase = GuardPhase::Released;
                }
            }
            Action::GuardHandsBack => self.hand_back(state)?,
            Action::KillGuard => {
                state.crashes += 1;
                state.guard = Guard { phase: GuardPhase::Over, pending: None, displaced: None };
            }
            Action::Suspect(index) => self.suspect(state, index)?,
            Action::ActivateEarly(index) => state.backups[index].active = Some(state.backups[index].sampled),
            Action::CrashBackup(index) => {
                state.crashes += 1;
                state.backups[index] = Backup::default();
                if state.primary.link == Some(index) {
                    state.primary.link = None;
                }
            }
            Action::Answer(who) => {
                let swap = (*pending(state, who))?;
                let own = |entry: &(Who, Record, Record)| *entry == (who, swap.expected, swap.new);
                let won = match state.floating.iter().position(own) {
                    Some(at) => carry_out(state, at),
                    // It was decided by another attempt at it, or by another swap.
                    None => state.record == swap.new,
                };
                self.outcome(state, who, swap, won);
            }
            Action::AnswerLost(who) => pending(state, who).as_mut()?.unknown = true,
            Action::HappensLate(at) => drop(carry_out(state, at)),
            Action::Reread(who) => self.reread(state, who)?,
            _ => self.primary_step(state, action)?,
        }
        // What expects an earlier record can never win.
        let generation = state.record.generation;
        state.floating.retain(|(_, expected, _)| expected.generation >= generation);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "I1: the survivor has every state whose output was released",
                |_, state: &State| {
                    state
                        .backups
                        .iter()
                        .all(|backup| backup.active.is_none_or(|active| state.released <= active))
                },
            ),
            Property::always("I9: one guest has its output released", |_, state: &State| {
                let active = state.backups.iter().filter(|backup| backup.active.is_some()).count();
                active + usize::from(state.gate_open && state.guest_alive) <= 1
            }),
            Property::sometimes("a takeover of released states", |_, state: &State| {
                state.released > 0 && state.backups.iter().any(|backup| backup.active.is_some())
            }),
            Property::sometimes("a takeover after a hand-back", |_, state: &State| {
                state.record.owner == Owner::Owned
                    && state.guard.displaced.is_some()
                    && state.backups.iter().any(|backup| backup.active.is_some())
            }),
            Property::sometimes("the guard goes solo", |_, state: &State| {
                state.guard.phase == GuardPhase::Released && state.guest_alive
            }),
        ]
    }
}
