//! Rule 3: a primary that writes anything into its commit slots. What the backup accepts leaves
//! every page readable where the map says, also after homings; what it refuses changes nothing.
//! The production map must accept and refuse exactly what the rule does.

use romulus_checkpoint::placement::committed::CommittedMap;
use romulus_checkpoint::wire::message::Homing;
use romulus_checkpoint::{ArenaShape, FrameIndex, HomingSequence, PageIndex, Transfer};
use stateright::{Model, Property};

const PAGES: u8 = 2;
const FRAMES: u8 = 4;
const SHAPE: ArenaShape =
    ArenaShape { pages: 2, spares: 2, slots: 3, slot_bytes: 4096, copy_only_homes: false };

/// What is checked before anything changes. That a page comes twice is always refused: it is not
/// said which of its frames would be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    FrameInRange,
    NoForeignHome,
    FrameOnce,
    NotUsedByMap,
    NotUsedByHoming,
}

impl Check {
    /// All of them.
    pub const ALL: [Check; 5] = {
        use Check::*;
        [FrameInRange, NoForeignHome, FrameOnce, NotUsedByMap, NotUsedByHoming]
    };
}

/// Page and frame.
type Place = (u8, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    production: CommittedMap,
    agrees: bool,
    map: [u8; PAGES as usize],
    versions: [u8; PAGES as usize],
    /// Page and version in each frame; one more for what lies outside of the arena.
    contents: [Option<(u8, u8)>; FRAMES as usize],
    /// Sequence, page, source, and whether its copy runs.
    homing: Option<(u64, u8, u8, bool)>,
    homings: u64,
    slots: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Slot(Vec<Place>),
    Home(u8),
    StartCopy,
    FinishCopy,
}

/// Commit slots of up to two placements each.
pub struct Slots {
    pub slots: u8,
    pub homings: u64,
    pub without: Option<Check>,
}

impl Slots {
    fn accepts(&self, state: &State, places: &[Place]) -> bool {
        let good = |check, holds: bool| holds || self.without == Some(check);
        let mut frames = Vec::new();
        for (index, &(page, frame)) in places.iter().enumerate() {
            let homing = state.homing.is_some_and(|(_, page, source, _)| frame == page || frame == source);
            let foreign = frame < PAGES && frame != page;
            if (index > 0 && places[index - 1].0 >= page)
                || !good(Check::FrameInRange, frame < FRAMES)
                || !good(Check::NoForeignHome, !foreign)
                || !good(Check::FrameOnce, !frames.contains(&frame))
                || !good(Check::NotUsedByMap, !state.map.contains(&frame))
                || !good(Check::NotUsedByHoming, !homing)
            {
                return false;
            }
            frames.push(frame);
        }
        true
    }

    fn commit(&self, state: &mut State, places: &[Place]) {
        let transfer = |&(page, frame): &Place| Transfer {
            first_page: PageIndex(page.into()),
            first_frame: FrameIndex(frame.into()),
            pages: 1,
        };
        let transfers: Vec<_> = places.iter().map(transfer).collect();
        let accepts = self.accepts(state, places);
        if self.without.is_none() {
            state.agrees &= state.production.commit(&transfers, false).is_ok() == accepts;
        }
        if !accepts {
            return;
        }
        for &(page, frame) in places {
            let page_at = usize::from(page);
            state.versions[page_at] += 1;
            state.map[page_at] = frame;
            if let Some(content) = state.contents.get_mut(usize::from(frame)) {
                *content = Some((page, state.versions[page_at]));
            }
        }
        // A homing whose copy has not begun is dropped when its page moves.
        let left =
            |(_, page, source, runs): &(u64, u8, u8, bool)| *runs || state.map[usize::from(*page)] == *source;
        state.homing = state.homing.filter(left);
    }

    fn finish(&self, state: &mut State) -> Option<()> {
        let (sequence, page, source, _) = state.homing.take()?;
        state.contents[usize::from(page)] = state.contents[usize::from(source)];
        if state.map[usize::from(page)] == source {
            state.map[usize::from(page)] = page;
        }
        state.production.copy_finished(HomingSequence(sequence));
        Some(())
    }
}

impl Model for Slots {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut production = CommittedMap::new(SHAPE);
        production.commit(&[], true).expect("an empty slot");
        vec![State {
            production,
            agrees: true,
            map: [0, 1],
            versions: [0, 0],
            contents: [Some((0, 0)), Some((1, 0)), None, None],
            homing: None,
            homings: 0,
            slots: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.slots < self.slots {
            let places = || (0..PAGES).flat_map(|page| (0..=FRAMES).map(move |frame| (page, frame)));
            actions.extend(places().map(|place| Action::Slot(vec![place])));
            actions.extend(
                places().flat_map(|first| places().map(move |second| Action::Slot(vec![first, second]))),
            );
        }
        match state.homing {
            None if state.homings < self.homings => {
                let displaced =
                    (0..PAGES).filter(|page| (PAGES..FRAMES).contains(&state.map[usize::from(*page)]));
                actions.extend(displaced.map(Action::Home));
            }
            Some((_, _, _, false)) => actions.push(Action::StartCopy),
            Some(_) => actions.push(Action::FinishCopy),
            None => {}
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Slot(places) => {
                state.slots += 1;
                self.commit(&mut state, &places);
            }
            Action::Home(page) => {
                state.homings += 1;
                let source = state.map[usize::from(page)];
                state.homing = Some((state.homings, page, source, false));
                let homing = Homing { page: PageIndex(page.into()), source: FrameIndex(source.into()) };
                let taken = state.production.take_homings(HomingSequence(state.homings), &[homing]);
                state.agrees &= taken.is_ok() || self.without.is_some();
            }
            Action::StartCopy => {
                let (sequence, page, source, _) = state.homing?;
                state.homing = Some((sequence, page, source, true));
                state.agrees &= state.production.next_copy().is_some() || self.without.is_some();
            }
            Action::FinishCopy => self.finish(&mut state)?,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I2: each page is where the map says", |_, state: &State| {
                (0..PAGES).all(|page| {
                    let at = usize::from(page);
                    let content = state.contents.get(usize::from(state.map[at])).copied().flatten();
                    content == Some((page, state.versions[at]))
                })
            }),
            Property::always("the production map decides alike", |model: &Self, state: &State| {
                let same = |page: u8| {
                    state.production.frame_of(PageIndex(page.into())).0
                        == u64::from(state.map[usize::from(page)])
                };
                model.without.is_some() || (state.agrees && (0..PAGES).all(same))
            }),
        ]
    }
}
