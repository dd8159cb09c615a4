//! The primary's side: derives which frames are free and chooses among them.
//!
//! Policy: a page whose home is free goes home, so that whole runs stay one transfer; all other
//! pages take free spares in order from where the last epoch stopped, so that scattered pages
//! make few large writes. Since the longest displaced pages are homed first, the spares ahead
//! tend to become free in runs.
//!
//! An epoch's pages of two regions may be neighbours: a transfer knows pages and frames, not the
//! chunks of the arena; whoever posts it splits it where a chunk ends.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use super::age::AgeList;
use super::displaced::Displaced;
use super::frames::{Frames, Reason};
use crate::extent::{Extent, Transfer};
use crate::ids::{Epoch, FrameIndex, HomingSequence, PageIndex};
use crate::layout::ArenaShape;
use crate::wire::message::{Homing, MAX_HOMINGS};

/// Homings asked for and not known to be done, at most: 16 MiB of copies ahead of the backup.
pub(super) const MAX_OUTSTANDING_HOMINGS: u64 = 4096;
/// Listed spares looked at in one search for homings, so that a call stays short when many of
/// the oldest are superseded by unacked epochs; those leave the list with the next acks.
const MAX_LOOKS: usize = 16 * MAX_HOMINGS;

/// Why an epoch was not placed. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPlaced {
    /// Not enough free frames now; acks and homings under way will free enough.
    Later,
    /// Needs more frames than can ever be free: invalidate and sync anew.
    NeverFits {
        /// Pages that need a spare frame.
        pages: u64,
        /// Spare frames there are.
        spares: u64,
    },
}

/// An epoch placed and not yet acked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Unacked {
    epoch: Epoch,
    /// Sorted by page.
    transfers: Vec<Transfer>,
}

/// Spares claimed for the epoch being placed and not yet given to pages.
struct SpareRun {
    first: u64,
    count: u64,
    /// Spares to be claimed beyond these.
    needed: u64,
}

/// Knows the map at the last acked epoch A, the unacked epochs and the outstanding homings.
///
/// Memory: 3 bits for each home (touched only where pages are displaced) and about 25 bytes for
/// each spare, allocated at construction, plus the transfers of the unacked epochs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Planner {
    shape: ArenaShape,
    low_water_spares: u64,
    homes: Frames,
    spares: Frames,
    /// The map at A, with the homings up to h applied: the pages that are not at home.
    displaced: Displaced,
    /// Spares of that map which no homing has as source, in the order their epochs were acked.
    ages: AgeList,
    unacked: VecDeque<Unacked>,
    /// Emptied lists, for the next epochs.
    pool: Vec<Vec<Transfer>>,
    /// A; `None` before the first ack of an incarnation.
    acked: Option<Epoch>,
    commit_sent: Epoch,
    /// h.
    homed_through: HomingSequence,
    /// The homings after h, in sequence.
    homings: VecDeque<Homing>,
    /// Derived from `spares` step by step.
    free_spares: u64,
    /// Where the search for free spares goes on.
    cursor: u64,
    /// Spares that an epoch which had to wait needs.
    wanted_spares: u64,
}

impl Planner {
    /// A planner for a fresh arena: no epoch acked, nothing live, all placed at home.
    /// `low_water_spares`: below this many free spares homings are asked for.
    ///
    /// # Panics
    /// If the shape has more than [`super::MAX_FRAMES`] frames or fewer than two slots.
    pub fn new(shape: ArenaShape, low_water_spares: u64) -> Self {
        assert!(shape.slots >= 2, "K >= D + 1 needs two slots at least");
        Self {
            shape,
            low_water_spares: low_water_spares.min(shape.spares),
            homes: Frames::homes(shape.pages),
            spares: Frames::spares(shape.spares),
            displaced: Displaced::new(shape.pages, shape.spares),
            ages: AgeList::new(shape.spares),
            unacked: VecDeque::with_capacity(shape.slots.min(64) as usize),
            pool: Vec::with_capacity(shape.slots.min(64) as usize),
            acked: None,
            commit_sent: Epoch(0),
            homed_through: HomingSequence(0),
            homings: VecDeque::with_capacity(shape.spares.min(MAX_OUTSTANDING_HOMINGS) as usize),
            free_spares: shape.spares,
            cursor: 0,
            wanted_spares: 0,
        }
    }

    /// Forgets everything: the arena holds nothing (new incarnation). Homings count from 1 again,
    /// as they do on the backup; the first epoch placed may have any number.
    pub fn reset(&mut self) {
        *self = Self::new(self.shape, self.low_water_spares);
    }

    /// Places the epoch after the last one placed. `dirty` is sorted and without overlap.
    /// Appends to `transfers`, sorted by page. Does not allocate in steady state.
    ///
    /// The first epoch of an incarnation stands for the whole image, which the rounds before it
    /// have written home: while it is unacked all homes are used. Its own writes go home as well,
    /// so the writes of all rounds must be acked before they are posted (rule 2).
    ///
    /// With `copy_only_homes` each page takes a spare, in the first epoch too: an image is then
    /// built from epochs of at most S pages each, placed, acked and homed one after the other,
    /// and resumable only after the last of them.
    pub fn place(
        &mut self,
        epoch: Epoch,
        dirty: &[Extent],
        transfers: &mut Vec<Transfer>,
    ) -> Result<(), NotPlaced> {
        debug_assert!(self.last_placed().is_none_or(|last| epoch == last.next()));
        debug_assert!(dirty.windows(2).all(|pair| pair[0].first.0 + pair[0].pages <= pair[1].first.0));
        let mut spares = SpareRun { first: 0, count: 0, needed: self.reserve(dirty)? };
        let mut list = self.pool.pop().unwrap_or_default();
        for extent in dirty {
            self.place_extent(extent, &mut spares, &mut list);
        }
        debug_assert_eq!((spares.count, spares.needed), (0, 0));
        self.wanted_spares = 0;
        transfers.extend_from_slice(&list);
        self.unacked.push_back(Unacked { epoch, transfers: list });
        Ok(())
    }

    /// Whether the epoch can be placed now, and how many spares it needs.
    fn reserve(&mut self, dirty: &[Extent]) -> Result<u64, NotPlaced> {
        let mut pages = 0;
        let mut needed = 0;
        for extent in dirty {
            pages += extent.pages;
            if extent.pages == 1 {
                // Without a branch on what is read, so that the misses of scattered pages of a
                // large guest overlap.
                needed += u64::from(!self.goes_home(extent.first.0));
                continue;
            }
            let mut done = 0;
            while done < extent.pages {
                let (home, run) = self.home_run(extent.first.0 + done, extent.pages - done);
                needed += if home { 0 } else { run };
                done += run;
            }
        }
        // Rule 11. With all epochs acked, a page of the epoch needs a spare or is in one, and a
        // displaced page outside of it can be homed: so it fits after waiting exactly if each of
        // its pages can have a spare. Before anything is live, all pages go home.
        if needed > 0 && pages > self.shape.spares {
            return Err(NotPlaced::NeverFits { pages, spares: self.shape.spares });
        }
        if needed > self.free_spares {
            self.wanted_spares = needed;
            return Err(NotPlaced::Later);
        }
        // Rule 7: slot n is written only when n <= A + K - 1.
        if self.unacked.len() as u64 + 1 >= self.shape.slots {
            return Err(NotPlaced::Later);
        }
        Ok(needed)
    }

    /// Whether a page's home may be written.
    fn goes_home(&self, page: u64) -> bool {
        !self.shape.copy_only_homes & !self.homes.is_used(page, self.live())
    }

    /// Whether pages from `page` on go home, and how many (at most `limit`) are alike.
    fn home_run(&self, page: u64, limit: u64) -> (bool, u64) {
        if self.shape.copy_only_homes {
            return (false, limit);
        }
        let (used, run) = self.homes.run(page, limit, self.live());
        (!used, run)
    }

    /// Whether homes hold what must not be overwritten.
    fn live(&self) -> bool {
        self.acked.is_some() || !self.unacked.is_empty()
    }

    fn place_extent(&mut self, extent: &Extent, spares: &mut SpareRun, transfers: &mut Vec<Transfer>) {
        let end = extent.first.0 + extent.pages;
        let mut page = extent.first.0;
        while page < end {
            let (home, run) = match end - page {
                1 => (self.goes_home(page), 1),
                limit => self.home_run(page, limit),
            };
            if home {
                self.homes.put_run(Reason::Claimed, page, run, true);
                push(transfers, page, page, run);
                page += run;
                continue;
            }
            let run_end = page + run;
            while page < run_end {
                if spares.count == 0 {
                    self.claim_spares(spares);
                }
                let count = spares.count.min(run_end - page);
                push(transfers, page, self.shape.pages + spares.first, count);
                spares.first += count;
                spares.count -= count;
                page += count;
            }
        }
    }

    /// Claims the next run of free spares, of those that the epoch still needs.
    fn claim_spares(&mut self, run: &mut SpareRun) {
        let (first, count) = self
            .spares
            .next_free(self.cursor, run.needed)
            .or_else(|| self.spares.next_free(0, run.needed))
            .expect("`reserve` counted the free spares");
        self.spares.put_run(Reason::Claimed, first, count, true);
        self.free_spares -= count;
        self.cursor = first + count;
        *run = SpareRun { first, count, needed: run.needed - count };
    }

    /// The Commit of this epoch was sent on the present connection.
    pub fn commit_sent(&mut self, epoch: Epoch) {
        self.commit_sent = self.commit_sent.max(epoch);
    }

    /// Whether a backup may say, by Ack or Welcome, that it stands at (`committed`,
    /// `homed_through`): A <= C <= last Commit sent, and h from its last value up to the last
    /// homing asked for (rules 6 and 9). Numbers that fail this must not be passed on.
    pub fn may_stand_at(&self, committed: Epoch, homed_through: HomingSequence) -> bool {
        let last_homing = self.homed_through.0 + self.homings.len() as u64;
        let earliest = self.acked.unwrap_or_default();
        let known = committed == earliest || self.unacked.iter().any(|unacked| unacked.epoch == committed);
        known
            && (committed == earliest || committed <= self.commit_sent)
            && (self.homed_through.0..=last_homing).contains(&homed_through.0)
    }

    /// Everything up to `committed` is acked, homings up to `homed_through` are done.
    pub fn acked(&mut self, committed: Epoch, homed_through: HomingSequence) {
        while self.unacked.front().is_some_and(|unacked| unacked.epoch <= committed) {
            if let Some(Unacked { epoch, transfers }) = self.unacked.pop_front() {
                for transfer in &transfers {
                    self.enter_into_map(transfer);
                }
                self.acked = Some(epoch);
                self.recycle(transfers);
            }
        }
        // After the epochs: an Ack is sampled under one lock, so a homing that it covers has seen
        // the commits that it covers.
        while self.homed_through < homed_through {
            let Some(homing) = self.homings.pop_front() else { break };
            self.homed_through = self.homed_through.next();
            self.forget_homing(&homing);
            let spare = homing.source.0 - self.shape.pages;
            if self.displaced.spare_of(homing.page.0) == Some(spare) {
                self.displaced.remove(homing.page.0);
                self.homes.put(Reason::Moved, homing.page.0, false);
                self.put_spare(Reason::Moved, spare, false);
            }
        }
    }

    /// The map at A takes over what an acked epoch placed.
    fn enter_into_map(&mut self, transfer: &Transfer) {
        let (page, frame) = (transfer.first_page.0, transfer.first_frame.0);
        if frame < self.shape.pages {
            self.homes.put_run(Reason::Claimed, frame, transfer.pages, false);
            for page in page..page + transfer.pages {
                if self.homes.has(Reason::Moved, page) {
                    self.homes.put(Reason::Moved, page, false);
                    let old = self.displaced.remove(page);
                    self.vacate(old);
                }
            }
            return;
        }
        let first = frame - self.shape.pages;
        for (page, spare) in (page..page + transfer.pages).zip(first..) {
            let old = self.displaced.put(page, spare);
            self.homes.put(Reason::Moved, page, true);
            self.put_spare(Reason::Moved, spare, true);
            self.put_spare(Reason::Claimed, spare, false);
            self.ages.push_youngest(spare);
            self.vacate(old);
        }
    }

    /// The map no longer uses this spare; a homing that reads it still may.
    fn vacate(&mut self, spare: Option<u64>) {
        let Some(spare) = spare else { return };
        if !self.spares.has(Reason::Homing, spare) {
            self.ages.remove(spare);
        }
        self.put_spare(Reason::Moved, spare, false);
    }

    fn put_spare(&mut self, reason: Reason, spare: u64, holds: bool) {
        let before = self.spares.is_used(spare, true);
        self.spares.put(reason, spare, holds);
        let after = self.spares.is_used(spare, true);
        self.free_spares = self.free_spares + u64::from(before) - u64::from(after);
    }

    fn forget_homing(&mut self, homing: &Homing) {
        self.homes.put(Reason::Homing, homing.page.0, false);
        self.put_spare(Reason::Homing, homing.source.0 - self.shape.pages, false);
    }

    fn recycle(&mut self, mut transfers: Vec<Transfer>) {
        transfers.clear();
        self.pool.push(transfers);
    }

    /// The next homings to ask for, if any are due; they count as outstanding from now on.
    /// Due when fewer spares are free than the low watermark or a waiting epoch asks for. Call
    /// after each ack, after [`NotPlaced::Later`], and again until it returns `None`.
    ///
    /// Rule 4 allows a homing once the Commit of the page's newest epoch was sent; this asks only
    /// for pages whose newest version is *acked*, so that a Home never overtakes the commit it
    /// depends on, and never for a page with a homing outstanding.
    pub fn next_homings(&mut self, homings: &mut ArrayVec<Homing, MAX_HOMINGS>) -> Option<HomingSequence> {
        homings.clear();
        let outstanding = self.homings.len() as u64;
        let first_sequence = HomingSequence(self.homed_through.0 + outstanding + 1);
        let target = self.low_water_spares.max(self.wanted_spares);
        let room = MAX_OUTSTANDING_HOMINGS.saturating_sub(outstanding).min(homings.capacity() as u64);
        let due = target.saturating_sub(self.free_spares + outstanding).min(room);
        let mut candidate = if due > 0 { self.ages.oldest() } else { None };
        for _ in 0..MAX_LOOKS {
            let Some(spare) = candidate else { break };
            if homings.len() as u64 == due {
                break;
            }
            candidate = self.ages.younger_than(spare);
            let page = self.displaced.page_in(spare);
            if self.may_home(page) {
                self.ages.remove(spare);
                self.homes.put(Reason::Homing, page, true);
                self.put_spare(Reason::Homing, spare, true);
                let source = FrameIndex(self.shape.pages + spare);
                homings.push(Homing { page: PageIndex(page), source });
            }
        }
        self.homings.extend(homings.iter().copied());
        (!homings.is_empty()).then_some(first_sequence)
    }

    /// Whether the acked version of a page is its newest and nothing else writes its home.
    fn may_home(&self, page: u64) -> bool {
        let superseded = self.unacked.iter().any(|unacked| {
            let behind = unacked.transfers.partition_point(|transfer| transfer.first_page.0 <= page);
            behind.checked_sub(1).is_some_and(|at| {
                let transfer = &unacked.transfers[at];
                page < transfer.first_page.0 + transfer.pages
            })
        });
        !superseded && !self.homes.has(Reason::Homing, page)
    }

    /// The connection is dead on both ends and the backup stands at (`committed`,
    /// `homed_through`): drops the epochs after it, appending their pages to `dirty` (unsorted,
    /// may overlap), and the homings not done. Homings go on at `homed_through` + 1.
    pub fn reconnected(&mut self, committed: Epoch, homed_through: HomingSequence, dirty: &mut Vec<Extent>) {
        self.acked(committed, homed_through);
        while let Some(Unacked { transfers, .. }) = self.unacked.pop_front() {
            for transfer in &transfers {
                dirty.push(Extent { first: transfer.first_page, pages: transfer.pages });
                let first = transfer.first_frame.0;
                match first.checked_sub(self.shape.pages) {
                    None => self.homes.put_run(Reason::Claimed, first, transfer.pages, false),
                    Some(first) => {
                        for spare in first..first + transfer.pages {
                            self.put_spare(Reason::Claimed, spare, false);
                        }
                    }
                }
            }
            self.recycle(transfers);
        }
        while let Some(homing) = self.homings.pop_back() {
            self.forget_homing(&homing);
            let spare = homing.source.0 - self.shape.pages;
            if self.displaced.spare_of(homing.page.0) == Some(spare) {
                self.ages.push_oldest(spare);
            }
        }
        self.commit_sent = self.acked.unwrap_or_default();
        self.wanted_spares = 0;
    }

    /// Spare frames free now.
    pub fn free_spares(&self) -> u64 {
        self.free_spares
    }

    /// Pages whose acked version is in a spare frame.
    pub fn displaced_pages(&self) -> u64 {
        self.displaced.count()
    }

    /// Homings asked for and not known to be done.
    pub fn outstanding_homings(&self) -> u64 {
        self.homings.len() as u64
    }

    /// Whether a frame is used by rule 1, before or after the first epoch of an incarnation.
    pub fn is_used(&self, frame: FrameIndex) -> bool {
        match frame.0.checked_sub(self.shape.pages) {
            None => self.homes.is_used(frame.0, self.live()),
            Some(spare) => self.spares.is_used(spare, true),
        }
    }

    /// Counts the free spares from first principles; for tests, since it visits all of them.
    pub fn recount_free_spares(&self) -> u64 {
        self.spares.count_free()
    }

    fn last_placed(&self) -> Option<Epoch> {
        self.unacked.back().map(|unacked| unacked.epoch).or(self.acked)
    }
}

/// Appends a transfer, or lengthens the last one where this one continues it.
fn push(transfers: &mut Vec<Transfer>, page: u64, frame: u64, pages: u64) {
    if let Some(last) = transfers.last_mut()
        && last.first_page.0 + last.pages == page
        && last.first_frame.0 + last.pages == frame
    {
        last.pages += pages;
        return;
    }
    transfers.push(Transfer { first_page: PageIndex(page), first_frame: FrameIndex(frame), pages });
}
