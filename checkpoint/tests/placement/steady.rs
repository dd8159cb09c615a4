//! Large guests: how placement behaves over many epochs.

use arrayvec::ArrayVec;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use romulus_checkpoint::placement::committed::CommittedMap;
use romulus_checkpoint::placement::planner::{NotPlaced, Planner};
use romulus_checkpoint::{ArenaShape, Epoch, Extent, HomingSequence, PageIndex, Transfer};
use romulus_counting_allocator::{CountingAllocator, of_thread};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

struct Pair {
    shape: ArenaShape,
    planner: Planner,
    map: CommittedMap,
    epoch: u64,
    transfers: Vec<Transfer>,
}

impl Pair {
    fn new(pages: u64, spares: u64, low_water: u64) -> Self {
        let shape = ArenaShape { pages, spares, slots: 3, slot_bytes: 1 << 20, copy_only_homes: false };
        let planner = Planner::new(shape, low_water);
        Self { shape, planner, map: CommittedMap::new(shape), epoch: 0, transfers: Vec::new() }
    }

    /// One epoch, committed, acked and homed.
    fn epoch(&mut self, dirty: &[Extent]) -> Result<(), NotPlaced> {
        self.transfers.clear();
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        self.planner.place(epoch, dirty, &mut self.transfers).inspect_err(|_| self.epoch -= 1)?;
        self.planner.commit_sent(epoch);
        self.map.commit(&self.transfers, self.epoch == 1).expect("rule 3");
        self.planner.acked(epoch, self.map.homed_through());
        self.home();
        Ok(())
    }

    fn home(&mut self) {
        let mut homings = ArrayVec::new();
        while let Some(first) = self.planner.next_homings(&mut homings) {
            self.map.take_homings(first, &homings).expect("in sequence");
            while let Some(copy) = self.map.next_copy() {
                self.map.copy_finished(copy.sequence);
            }
            self.planner.acked(Epoch(self.epoch), self.map.homed_through());
        }
    }
}

fn scattered(random: &mut SmallRng, pages: u64, count: u64, dirty: &mut Vec<Extent>) {
    dirty.clear();
    let step = pages / count;
    for index in 0..count {
        let first = PageIndex(index * step + random.random_range(0..step));
        dirty.push(Extent { first, pages: 1 });
    }
}

#[test]
fn no_allocation_in_steady_state() {
    let mut pair = Pair::new(1 << 16, 4096, 2048);
    let mut random = SmallRng::seed_from_u64(1);
    let mut dirty = Vec::with_capacity(1000);
    let mut epochs = |pair: &mut Pair, count| {
        for _ in 0..count {
            scattered(&mut random, pair.shape.pages, 1000, &mut dirty);
            pair.epoch(&dirty).expect("fits");
        }
    };
    epochs(&mut pair, 20);
    let before = of_thread().times;
    epochs(&mut pair, 100);
    assert_eq!(of_thread().times - before, 0);
}

#[test]
fn scattered_pages_make_few_large_writes() {
    let mut pair = Pair::new(1 << 16, 8192, 4096);
    let mut random = SmallRng::seed_from_u64(2);
    let mut dirty = Vec::new();
    let (mut to_spares, mut runs) = (0, 0);
    for _ in 0..200 {
        scattered(&mut random, pair.shape.pages, 1000, &mut dirty);
        pair.epoch(&dirty).expect("fits");
        let spares: Vec<_> =
            pair.transfers.iter().filter(|transfer| !pair.shape.is_home(transfer.first_frame)).collect();
        to_spares += spares.iter().map(|transfer| transfer.pages).sum::<u64>();
        let joined = |pair: &[&Transfer]| pair[0].first_frame.0 + pair[0].pages == pair[1].first_frame.0;
        runs += spares.windows(2).filter(|pair| !joined(pair)).count() as u64 + 1;
    }
    assert!(to_spares > 150_000, "most scattered pages go to spares: {to_spares}");
    assert!(to_spares / runs >= 8, "{to_spares} pages to spares in {runs} runs of frames");
}

#[test]
fn whole_runs_stay_whole() {
    let mut pair = Pair::new(1 << 16, 4096, 1024);
    let dirty = [Extent { first: PageIndex(100), pages: 1000 }];
    pair.epoch(&[Extent { first: PageIndex(0), pages: 1 << 16 }]).expect("the first epoch fits always");
    for _ in 0..20 {
        pair.epoch(&dirty).expect("fits");
        assert!(pair.transfers.len() <= 2 + 1000 / 64, "{:?}", pair.transfers);
    }
}

#[test]
fn the_oldest_displaced_pages_go_home_first() {
    let mut pair = Pair::new(64, 8, 0);
    let page = |page| [Extent { first: PageIndex(page), pages: 2 }];
    pair.epoch(&[]).expect("fits");
    for first in [10, 20, 30, 40] {
        pair.epoch(&page(first)).expect("fits");
    }
    assert_eq!(pair.planner.free_spares(), 0);
    assert_eq!(pair.epoch(&page(50)), Err(NotPlaced::Later));
    pair.home();
    let displaced: Vec<_> = pair.map.displaced().iter().map(|(page, _)| page.0).collect();
    assert_eq!(displaced, [20, 21, 30, 31, 40, 41], "as many as the epoch needs, the oldest");
    pair.epoch(&page(50)).expect("fits now");
}

#[test]
fn rule_11_an_epoch_larger_than_the_spares_never_fits() {
    let mut pair = Pair::new(64, 8, 4);
    let nine = [Extent { first: PageIndex(3), pages: 9 }];
    pair.epoch(&nine).expect("before anything is live all pages go home");
    assert_eq!(pair.epoch(&nine), Err(NotPlaced::NeverFits { pages: 9, spares: 8 }));
    pair.planner.reset();
    pair.map.reset();
    pair.epoch = 0;
    pair.epoch(&nine).expect("a new image");
}

#[test]
fn i2_while_the_first_epoch_is_unacked_no_home_is_overwritten() {
    let mut planner = Pair::new(64, 8, 0).planner;
    let mut transfers = Vec::new();
    let page = |page| [Extent { first: PageIndex(page), pages: 1 }];
    planner.place(Epoch(1), &page(5), &mut transfers).expect("fits");
    planner.place(Epoch(2), &page(6), &mut transfers).expect("fits");
    assert_eq!((transfers[0].first_frame.0, transfers[1].first_frame.0), (5, 64));
    // The first epoch is lost with its connection: nothing is live again.
    let mut dirty = Vec::new();
    planner.reconnected(Epoch(0), Default::default(), &mut dirty);
    dirty.sort_unstable_by_key(|extent| extent.first);
    assert_eq!(dirty, [page(5)[0], page(6)[0]]);
    transfers.clear();
    planner.place(Epoch(1), &dirty, &mut transfers).expect("fits");
    assert_eq!(transfers.len(), 1);
    assert_eq!(transfers[0].first_frame.0, 5);
}

#[test]
fn rule_7_no_epoch_is_placed_whose_slot_may_hold_the_state_to_resume() {
    // K = 3: epochs A + 1 and A + 2 have slots, A + 3 would take that of A.
    let mut planner = Pair::new(64, 8, 0).planner;
    let mut transfers = Vec::new();
    let mut place = |planner: &mut Planner, epoch| planner.place(Epoch(epoch), &[], &mut transfers);
    assert_eq!(place(&mut planner, 1), Ok(()));
    assert_eq!(place(&mut planner, 2), Ok(()));
    assert_eq!(place(&mut planner, 3), Err(NotPlaced::Later));
    planner.commit_sent(Epoch(1));
    planner.acked(Epoch(1), Default::default());
    assert_eq!(place(&mut planner, 3), Ok(()));
    assert_eq!(place(&mut planner, 4), Err(NotPlaced::Later));
}

#[test]
fn rule_9_a_backup_stands_only_where_it_can() {
    let mut pair = Pair::new(64, 8, 8);
    let stands =
        |pair: &Pair, committed, homed| pair.planner.may_stand_at(Epoch(committed), HomingSequence(homed));
    assert!(stands(&pair, 0, 0) && !stands(&pair, 1, 0) && !stands(&pair, 0, 1));
    pair.epoch(&[]).expect("fits");
    pair.epoch(&[Extent { first: PageIndex(7), pages: 2 }]).expect("fits");
    assert!(stands(&pair, 2, 2), "both pages were homed");
    assert!(!stands(&pair, 1, 2) && !stands(&pair, 0, 2), "C before A");
    assert!(!stands(&pair, 2, 1) && !stands(&pair, 2, 3), "h lower than before, h never asked for");
    pair.planner.place(Epoch(3), &[], &mut pair.transfers).expect("fits");
    assert!(!stands(&pair, 3, 2), "its Commit was not sent");
    pair.planner.commit_sent(Epoch(3));
    assert!(stands(&pair, 3, 2) && stands(&pair, 2, 2) && !stands(&pair, 4, 2));
}
