//! The production code as the two sides of the model.

use arrayvec::ArrayVec;
use romulus_checkpoint::placement::committed::{CommittedMap, HomingCopy};
use romulus_checkpoint::placement::planner::Planner;
use romulus_checkpoint::wire::message;
use romulus_checkpoint::{ArenaShape, Epoch, Extent, FrameIndex, HomingSequence, PageIndex, Transfer};

use crate::rules::Config;
use crate::sides::{BackupSide, Homing, MAX_PAGES, NONE, PrimarySide, Targets, placed};

fn shape(config: &Config) -> ArenaShape {
    ArenaShape {
        pages: config.pages.into(),
        spares: config.spares.into(),
        slots: config.slots().into(),
        slot_bytes: 4096,
        copy_only_homes: config.copy_only,
    }
}

/// [`Planner`], with homings wanted whenever one is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProductionPrimary {
    planner: Planner,
    /// Kept beside it, since the planner's own is not public.
    acked: u8,
    homed_through: u8,
    unacked: u8,
}

impl ProductionPrimary {
    fn try_place(&self, epoch: u8, pages: u8) -> Option<(Planner, Targets)> {
        let dirty: Vec<Extent> = (0..MAX_PAGES as u64)
            .filter(|page| pages >> page & 1 == 1)
            .map(|page| Extent { first: PageIndex(page), pages: 1 })
            .collect();
        let mut planner = self.planner.clone();
        let mut transfers = Vec::new();
        planner.place(Epoch(epoch.into()), &dirty, &mut transfers).ok()?;
        let mut targets = [NONE; MAX_PAGES];
        for Transfer { first_page, first_frame, pages } in transfers {
            for offset in 0..pages {
                targets[(first_page.0 + offset) as usize] = (first_frame.0 + offset) as u8;
            }
        }
        Some((planner, targets))
    }

    fn try_ask(&self) -> (Planner, Vec<Homing>) {
        let mut planner = self.planner.clone();
        let mut batch = ArrayVec::new();
        let mut homings = Vec::new();
        if let Some(first) = planner.next_homings(&mut batch) {
            for (sequence, message::Homing { page, source }) in (first.0 as u8..).zip(&batch) {
                homings.push(Homing { sequence, page: page.0 as u8, source: source.0 as u8 });
            }
        }
        (planner, homings)
    }
}

impl PrimarySide for ProductionPrimary {
    fn new(config: &Config) -> Self {
        let planner = Planner::new(shape(config), config.spares.into());
        Self { planner, acked: 0, homed_through: 0, unacked: 0 }
    }

    fn placements(&self, _: &Config, pages: u8) -> Vec<Targets> {
        self.try_place(self.acked + self.unacked + 1, pages).map(|(_, targets)| targets).into_iter().collect()
    }

    fn place(&mut self, _: &Config, epoch: u8, targets: &Targets) {
        let pages = placed(targets).fold(0, |pages, (page, _)| pages | 1 << page);
        let (planner, again) = self.try_place(epoch, pages).expect("offered by `placements`");
        assert_eq!(again, *targets);
        self.planner = planner;
        self.unacked += 1;
    }

    fn commit_sent(&mut self, epoch: u8) {
        self.planner.commit_sent(Epoch(epoch.into()));
    }

    fn homings(&self, _: &Config) -> Vec<Vec<Homing>> {
        Some(self.try_ask().1).filter(|homings| !homings.is_empty()).into_iter().collect()
    }

    fn ask(&mut self, _: &Config, homings: &[Homing]) {
        let (planner, again) = self.try_ask();
        assert_eq!(again, homings);
        self.planner = planner;
    }

    fn acked(&mut self, _: &Config, committed: u8, homed_through: u8) {
        let (epoch, homed) = (Epoch(committed.into()), HomingSequence(homed_through.into()));
        assert!(self.planner.may_stand_at(epoch, homed));
        self.planner.acked(epoch, homed);
        self.unacked -= committed - self.acked;
        (self.acked, self.homed_through) = (committed, homed_through);
    }

    fn reconnected(&mut self, _: &Config, committed: u8, homed_through: u8) -> u8 {
        let (epoch, homed) = (Epoch(committed.into()), HomingSequence(homed_through.into()));
        assert!(self.planner.may_stand_at(epoch, homed));
        let mut dirty = Vec::new();
        self.planner.reconnected(epoch, homed, &mut dirty);
        (self.acked, self.homed_through, self.unacked) = (committed, homed_through, 0);
        let pages = dirty.iter().flat_map(|extent| extent.first.0..extent.first.0 + extent.pages);
        pages.fold(0, |pages, page| pages | 1 << page)
    }

    fn knows(&self) -> (u8, u8) {
        (self.acked, self.homed_through)
    }

    fn unacked(&self) -> u8 {
        self.unacked
    }
}

/// [`CommittedMap`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProductionBackup {
    map: CommittedMap,
    running: Vec<Homing>,
}

fn homing(copy: HomingCopy) -> Homing {
    Homing { sequence: copy.sequence.0 as u8, page: copy.page.0 as u8, source: copy.source.0 as u8 }
}

impl BackupSide for ProductionBackup {
    fn new(config: &Config) -> Self {
        Self { map: CommittedMap::new(shape(config)), running: Vec::new() }
    }

    fn commit(&mut self, _: &Config, targets: &Targets, first: bool) -> bool {
        let transfer = |(page, frame): (u8, u8)| Transfer {
            first_page: PageIndex(page.into()),
            first_frame: FrameIndex(frame.into()),
            pages: 1,
        };
        let transfers: Vec<Transfer> = placed(targets).map(transfer).collect();
        self.map.commit(&transfers, first).is_ok()
    }

    fn take(&mut self, _: &Config, homings: &[Homing]) -> bool {
        let Some(first) = homings.first() else { return true };
        let wire = |homing: &Homing| message::Homing {
            page: PageIndex(homing.page.into()),
            source: FrameIndex(homing.source.into()),
        };
        let wired: Vec<_> = homings.iter().map(wire).collect();
        self.map.take_homings(HomingSequence(first.sequence.into()), &wired).is_ok()
    }

    fn startable(&self, _: &Config) -> Vec<Homing> {
        self.map.clone().next_copy().map(homing).into_iter().collect()
    }

    fn start(&mut self, expected: &Homing) {
        let copy = self.map.next_copy().map(homing).expect("offered by `startable`");
        assert_eq!(copy, *expected);
        self.running.push(copy);
    }

    fn running(&self) -> Vec<Homing> {
        self.running.clone()
    }

    fn finish(&mut self, _: &Config, finished: &Homing) {
        self.running.retain(|homing| homing != finished);
        self.map.copy_finished(HomingSequence(finished.sequence.into()));
    }

    fn homed_through(&self, _: &Config) -> u8 {
        self.map.homed_through().0 as u8
    }

    fn drop_pending(&mut self, _: &Config) {
        self.map.drop_pending();
    }

    fn frame_of(&self, page: u8) -> u8 {
        self.map.frame_of(PageIndex(page.into())).0 as u8
    }

    fn force_home(&mut self, _: u8) {
        unreachable!("the production code has all rules");
    }
}
