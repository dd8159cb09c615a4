//! The plain model: what frames are used, recomputed from first principles out of maps and sets.

use std::collections::{BTreeMap, BTreeSet};

use romulus_checkpoint::placement::committed::HomingCopy;
use romulus_checkpoint::wire::message::Homing;
use romulus_checkpoint::{ArenaShape, FrameIndex, PageIndex, Transfer};

/// Page to frame.
pub type Map = BTreeMap<u64, u64>;

/// Every page and frame of some transfers.
pub fn pairs(transfers: &[Transfer]) -> Vec<(u64, u64)> {
    let pair = |transfer: &Transfer| {
        let (page, frame) = (transfer.first_page.0, transfer.first_frame.0);
        (0..transfer.pages).map(move |offset| (page + offset, frame + offset))
    };
    transfers.iter().flat_map(pair).collect()
}

fn all_home(shape: &ArenaShape) -> Map {
    (0..shape.pages).map(|page| (page, page)).collect()
}

/// What the primary knows, and what follows from it.
#[derive(Clone, Debug)]
pub struct PlainPlanner {
    shape: ArenaShape,
    /// The map at A; `None` before the first ack.
    acked: Option<(u64, Map)>,
    unacked: BTreeMap<u64, Map>,
    outstanding: BTreeMap<u64, (u64, u64)>,
    homed_through: u64,
}

impl PlainPlanner {
    pub fn new(shape: ArenaShape) -> Self {
        Self { shape, acked: None, unacked: BTreeMap::new(), outstanding: BTreeMap::new(), homed_through: 0 }
    }

    /// Rule 1.
    pub fn used(&self) -> BTreeSet<u64> {
        let mut used = BTreeSet::new();
        match &self.acked {
            Some((_, map)) => used.extend(map.values()),
            // The first epoch stands for the whole image.
            None if !self.unacked.is_empty() => used.extend(0..self.shape.pages),
            None => {}
        }
        used.extend(self.unacked.values().flat_map(|placed| placed.values()));
        used.extend(self.outstanding.values().flat_map(|(page, source)| [page, source]));
        used
    }

    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }

    pub fn has_acked(&self) -> bool {
        self.acked.is_some()
    }

    pub fn place(&mut self, epoch: u64, transfers: &[Transfer]) {
        self.unacked.insert(epoch, pairs(transfers).into_iter().collect());
    }

    pub fn ask(&mut self, first_sequence: u64, homings: &[Homing]) {
        for (sequence, homing) in (first_sequence..).zip(homings) {
            let page = homing.page.0;
            // Rule 4.
            let (_, map) = self.acked.as_ref().expect("homings follow the first ack");
            assert_eq!(map[&page], homing.source.0, "the page's newest location");
            assert!(self.unacked.values().all(|placed| !placed.contains_key(&page)));
            self.outstanding.insert(sequence, (page, homing.source.0));
        }
    }

    pub fn acked(&mut self, committed: u64, homed_through: u64) {
        let mut map = match self.acked.take() {
            Some((_, map)) => map,
            None if committed == 0 => return,
            None => all_home(&self.shape),
        };
        let later = self.unacked.split_off(&(committed + 1));
        for placed in std::mem::replace(&mut self.unacked, later).into_values() {
            map.extend(placed);
        }
        let later = self.outstanding.split_off(&(homed_through + 1));
        for (page, source) in std::mem::replace(&mut self.outstanding, later).into_values() {
            if map[&page] == source {
                map.insert(page, page);
            }
        }
        self.homed_through = homed_through;
        self.acked = Some((committed, map));
    }

    /// Returns the pages of the epochs that are dropped.
    pub fn reconnected(&mut self, committed: u64, homed_through: u64) -> BTreeSet<u64> {
        self.acked(committed, homed_through);
        self.outstanding.clear();
        std::mem::take(&mut self.unacked).into_values().flat_map(Map::into_keys).collect()
    }
}

/// The backup's map with explicit marks on cancelled homings.
#[derive(Clone, Debug)]
pub struct PlainCommitted {
    shape: ArenaShape,
    pub map: Map,
    /// By sequence.
    homings: BTreeMap<u64, PlainHoming>,
}

#[derive(Clone, Debug)]
struct PlainHoming {
    page: u64,
    source: u64,
    running: bool,
    cancelled: bool,
    finished: bool,
}

impl PlainCommitted {
    pub fn new(shape: ArenaShape) -> Self {
        Self { shape, map: all_home(&shape), homings: BTreeMap::new() }
    }

    pub fn commit(&mut self, transfers: &[Transfer]) {
        for (page, frame) in pairs(transfers) {
            self.map.insert(page, frame);
            for homing in self.homings.values_mut().filter(|homing| homing.page == page) {
                homing.cancelled |= !homing.finished;
            }
        }
    }

    pub fn take(&mut self, first_sequence: u64, homings: &[Homing]) {
        for (sequence, Homing { page, source }) in (first_sequence..).zip(homings) {
            let (page, source) = (page.0, source.0);
            let cancelled = self.map[&page] != source;
            let homing = PlainHoming { page, source, running: false, cancelled, finished: false };
            self.homings.insert(sequence, homing);
        }
    }

    pub fn start(&mut self, copy: &HomingCopy) {
        let homing = self.homings.get_mut(&copy.sequence.0).expect("a homing taken before");
        assert_eq!((PageIndex(homing.page), FrameIndex(homing.source)), (copy.page, copy.source));
        assert_eq!(copy.target, self.shape.home(copy.page));
        assert!(!homing.cancelled && !homing.finished && !homing.running);
        homing.running = true;
    }

    pub fn finish(&mut self, sequence: u64) {
        let homing = self.homings.get_mut(&sequence).expect("a homing taken before");
        homing.running = false;
        homing.finished = true;
        if !homing.cancelled {
            self.map.insert(homing.page, homing.page);
        }
    }

    /// Forgets the homings that have not begun.
    pub fn drop_pending(&mut self) {
        let through = self.homed_through();
        self.homings.retain(|sequence, _| *sequence <= through);
    }

    pub fn homed_through(&self) -> u64 {
        let passed = |homing: &PlainHoming| homing.finished || (homing.cancelled && !homing.running);
        self.homings.iter().take_while(|(_, homing)| passed(homing)).last().map_or(0, |(last, _)| *last)
    }

    /// What no write may target.
    pub fn used(&self) -> BTreeSet<u64> {
        let through = self.homed_through();
        let pending = self.homings.range(through + 1..).flat_map(|(_, homing)| [homing.page, homing.source]);
        self.map.values().copied().chain(pending).collect()
    }
}
