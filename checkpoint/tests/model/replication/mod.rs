//! The replication model: one primary, one backup, an arena that changes when writes and copies
//! really land, a connection that may break at any moment, and a takeover at any moment.
//!
//! Acks are one action, taken and understood at once: an ack on its way is not different from a
//! primary that has not yet asked. Contents are the number of the placement that wrote them.
//!
//! When a write lands changes nothing but the content of its frame. A wrong content goes back,
//! through copies, to one write; every other write may as well land at the last moment, with the
//! fence of its epoch. So a few writes (one is enough) land at moments of their own.

mod moves;

use std::fmt::Debug;
use std::marker::PhantomData;

use stateright::{Model, Property};

use crate::rules::{Config, Rule};
use crate::sides::{BackupSide, Homing, MAX_PAGES, NONE, PrimarySide, Targets, placed};

const MAX_FRAMES: usize = 7;
const MAX_SLOTS: usize = 4;
/// A copy is under way into this frame.
const TORN: u8 = 254;
/// Somebody else's bytes.
const JUNK: u8 = 255;

/// Contents by page.
type Image = [u8; MAX_PAGES];

/// What a commit slot says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    placement: u8,
    epoch: u8,
    targets: Targets,
    /// The guest at the pause: the state, and what memory must be.
    image: Image,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Write {
    Page { placement: u8, frame: u8, content: u8 },
    Slot(Slot),
}

impl Write {
    fn placement(&self) -> u8 {
        match self {
            Write::Page { placement, .. } => *placement,
            Write::Slot(slot) => slot.placement,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Message {
    Commit { epoch: u8, placement: u8 },
    Home(Vec<Homing>),
    Invalidate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Nothing is in the image yet.
    Empty,
    /// The synchronization round is posted.
    Round,
    /// Epochs follow each other.
    Running,
    /// The backup has fenced and copies displaced pages home.
    TakingOver,
    /// It has copied them.
    Homed,
    /// The guest runs at the backup.
    Active,
    /// Nothing more is looked at.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State<P, B> {
    primary: P,
    backup: B,
    phase: Phase,
    connected: bool,
    in_flight: Vec<Write>,
    messages: Vec<Message>,
    arena: [u8; MAX_FRAMES],
    slots: [Slot; MAX_SLOTS],
    /// The slot committed last.
    committed: Slot,
    guest: Image,
    /// Pages carried over from epochs that did not commit.
    carried: u8,
    /// The next placement's number; 0 is what the synchronization round writes.
    placement: u8,
    /// Placed, Commit not yet sent: epoch and placement.
    unsent: Vec<(u8, u8)>,
    losses: u8,
    asked: u8,
    /// Writes that landed by themselves.
    early: u8,
    /// C of an Ack that is being put together (rule 6 left out).
    half_ack: Option<u8>,
    /// The backup refused something of a primary that obeys all rules.
    refused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All pages to their homes, with the guest running.
    PostRound,
    /// The backup says that the round has landed.
    RoundAcked,
    /// Pause, place, post data and slot.
    Place {
        dirty: u8,
        targets: Targets,
    },
    SendCommit,
    AskHomings(Vec<Homing>),
    /// One write becomes visible.
    Land(usize),
    /// The backup handles its next message.
    Receive,
    /// ... or a Home that is behind a Commit.
    ReceiveHomeEarly(usize),
    /// A message is lost while the connection stands.
    LoseMessage,
    StartCopy(Homing),
    FinishCopy(Homing),
    /// The primary learns where the backup stands.
    Ack,
    SampleCommitted,
    AckSampled,
    /// The connection breaks: the primary can send no more on it.
    Disconnect,
    /// The backup destroys its end, says Welcome, the primary goes on.
    Reconnect,
    HomeUnasked(u8),
    /// The image does not fit any more.
    Overflow,
    TakeOver,
    HomeDisplaced,
    Activate,
    /// The activated guest writes its memory, then the takeover is given up.
    GiveUp,
}

/// The model over one choice of sides.
pub struct Replication<P, B> {
    pub config: Config,
    pub sides: PhantomData<(P, B)>,
}

impl<P: PrimarySide, B: BackupSide> Replication<P, B> {
    pub fn new(config: Config) -> Self {
        Self { config, sides: PhantomData }
    }
}

impl<P: PrimarySide, B: BackupSide> Model for Replication<P, B> {
    type State = State<P, B>;
    type Action = Action;

    fn init_states(&self) -> Vec<Self::State> {
        vec![State {
            primary: P::new(&self.config),
            backup: B::new(&self.config),
            phase: Phase::Empty,
            connected: true,
            in_flight: Vec::new(),
            messages: Vec::new(),
            arena: [JUNK; MAX_FRAMES],
            slots: [Slot::default(); MAX_SLOTS],
            committed: Slot { targets: [NONE; MAX_PAGES], ..Slot::default() },
            guest: [0; MAX_PAGES],
            carried: 0,
            placement: 1,
            unsent: Vec::new(),
            losses: 0,
            asked: 0,
            early: 0,
            half_ack: None,
            refused: false,
        }]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Action>) {
        if matches!(state.phase, Phase::Over) {
            return;
        }
        if state.early < self.config.early {
            actions.extend((0..state.in_flight.len()).map(Action::Land));
        }
        match state.phase {
            Phase::TakingOver => return actions.push(Action::HomeDisplaced),
            Phase::Homed => return actions.push(Action::Activate),
            Phase::Active => return actions.push(Action::GiveUp),
            _ => {}
        }
        if state.connected {
            self.primary_actions(state, actions);
            if state.losses < self.config.losses {
                actions.push(Action::Disconnect);
                if !state.messages.is_empty() {
                    actions.push(Action::LoseMessage);
                }
            }
        } else if self.is_quiet(state) {
            actions.push(Action::Reconnect);
        }
        self.backup_actions(state, actions);
        if self.config.takeover && state.committed.epoch > 0 && self.is_quiet(state) {
            actions.push(Action::TakeOver);
        }
    }

    fn next_state(&self, before: &Self::State, action: Action) -> Option<Self::State> {
        let mut state = before.clone();
        let config = &self.config;
        match action {
            // The parts of a synchronization are homed before the first whole epoch at the latest,
            // and nothing is resumed before.
            Action::PostRound if config.copy_only => {
                state.arena[..usize::from(config.pages)]
                    .copy_from_slice(&state.guest[..usize::from(config.pages)]);
                state.carried = 0;
                state.phase = Phase::Running;
            }
            Action::PostRound => {
                for page in 0..config.pages {
                    let content = state.guest[usize::from(page)];
                    state.in_flight.push(Write::Page { placement: 0, frame: page, content });
                }
                state.in_flight.sort_unstable();
                state.carried = 0;
                state.phase = Phase::Round;
            }
            Action::RoundAcked => {
                if self.on(Rule::RoundsAreAcked) {
                    self.land_through(&mut state, 0);
                }
                state.phase = Phase::Running;
            }
            Action::Place { dirty, targets } => self.place(&mut state, dirty, targets),
            Action::SendCommit => {
                let (epoch, placement) = state.unsent.remove(0);
                state.primary.commit_sent(epoch);
                state.messages.push(Message::Commit { epoch, placement });
            }
            Action::AskHomings(homings) => {
                state.primary.ask(config, &homings);
                state.asked += homings.len() as u8;
                state.messages.push(Message::Home(homings));
            }
            Action::Land(index) => {
                state.early += 1;
                let write = state.in_flight.remove(index);
                self.land(&mut state, write);
            }
            Action::Receive => self.receive(&mut state),
            Action::ReceiveHomeEarly(at) => {
                if let Message::Home(homings) = state.messages.remove(at) {
                    self.take(&mut state, &homings);
                }
            }
            Action::LoseMessage => {
                state.losses += 1;
                state.messages.remove(0);
            }
            Action::StartCopy(homing) => {
                state.backup.start(&homing);
                state.arena[usize::from(homing.page)] = TORN;
            }
            Action::FinishCopy(homing) => {
                state.arena[usize::from(homing.page)] = state.arena[usize::from(homing.source)];
                state.backup.finish(config, &homing);
            }
            Action::Ack => {
                let homed = state.backup.homed_through(config);
                state.primary.acked(config, state.committed.epoch, homed);
            }
            Action::SampleCommitted => state.half_ack = Some(state.committed.epoch),
            Action::AckSampled => {
                let committed = state.half_ack.take()?;
                let homed = state.backup.homed_through(config);
                state.primary.acked(config, committed, homed);
            }
            Action::Disconnect => {
                state.losses += 1;
                self.disconnect(&mut state);
            }
            Action::Reconnect => self.reconnect(&mut state),
            Action::HomeUnasked(page) => {
                let frame = state.backup.frame_of(page);
                state.arena[usize::from(page)] = state.arena[usize::from(frame)];
                state.backup.force_home(page);
            }
            _ => self.end(&mut state, action),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I2: the image is the guest at the last committed pause", image_holds),
            Property::always(
                "3: a primary that obeys the rules is never refused",
                |_, state: &State<P, B>| !state.refused,
            ),
            Property::sometimes("a takeover with displaced pages", |model: &Self, state: &State<P, B>| {
                (state.phase == Phase::Active || (!model.config.takeover && state.committed.epoch > 0))
                    && (0..model.config.pages).any(|page| state.backup.frame_of(page) != page)
            }),
            Property::sometimes("a homing takes effect", |model: &Self, state: &State<P, B>| {
                let homed = state.backup.homed_through(&model.config);
                homed > 0 && state.primary.knows().1 == homed
            }),
            Property::sometimes("all placements commit", |model: &Self, state: &State<P, B>| {
                state.committed.placement == model.config.placements && state.losses > 0
            }),
        ]
    }
}

fn image_holds<P: PrimarySide, B: BackupSide>(model: &Replication<P, B>, state: &State<P, B>) -> bool {
    let committed = &state.committed;
    if committed.epoch == 0 || state.phase == Phase::Over {
        return true;
    }
    if state.slots[usize::from(committed.epoch % model.config.slots())] != *committed {
        return false;
    }
    // What a takeover at this instant resumes: all homes, after what is displaced was copied.
    let homed = matches!(state.phase, Phase::Homed | Phase::Active);
    (0..model.config.pages).all(|page| {
        let frame = if homed { page } else { state.backup.frame_of(page) };
        state.arena[usize::from(frame)] == committed.image[usize::from(page)]
    })
}
