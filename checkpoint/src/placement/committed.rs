//! The backup's side: the committed map, and homings carried out beside it.

use std::collections::VecDeque;

use super::displaced::Displaced;
use super::frames::{Frames, Reason};
use super::planner::MAX_OUTSTANDING_HOMINGS;
use crate::extent::Transfer;
use crate::ids::{FrameIndex, HomingSequence, PageIndex};
use crate::layout::ArenaShape;
use crate::wire::message::Homing;

/// What the primary asked for and must not (rule 3, I3). Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementViolation {
    /// A page or frame outside the arena's shape.
    #[error("{0} is out of range")]
    OutOfRange(String),
    /// A page placed at the home of another.
    #[error("page {page} placed at the home of page {home_of}")]
    ForeignHome {
        /// The page.
        page: PageIndex,
        /// Whose home it is.
        home_of: PageIndex,
    },
    /// A page placed at a home that is only reached by homing.
    #[error("page {0} placed at its home, which is copy-only")]
    CopyOnlyHome(PageIndex),
    /// A page or a frame twice in one epoch, or transfers that are not sorted by page.
    #[error("{0} twice in one epoch or out of order")]
    Twice(String),
    /// A frame that the map or a pending homing uses.
    #[error("page {page} placed in frame {frame}, which is in use")]
    InUse {
        /// The page.
        page: PageIndex,
        /// The frame.
        frame: FrameIndex,
    },
    /// A homing out of sequence or with a source outside the spares.
    #[error("homing refused: {0}")]
    Homing(String),
}

/// A copy the homing thread is to make: spare frame to home frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HomingCopy {
    /// The homing it carries out.
    pub sequence: HomingSequence,
    /// The page.
    pub page: PageIndex,
    /// From this spare frame.
    pub source: FrameIndex,
    /// To this home frame.
    pub target: FrameIndex,
}

/// How far a homing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Progress {
    Waiting,
    Running,
    /// Touches memory no more; waits for those before it.
    Finished,
}

/// The map at the last committed epoch C, and the homings received.
///
/// A homing is *superseded* when the map no longer has its page in its source. That state is
/// final, and so needs no flag: until the homing is passed its source is in use, so no epoch can
/// bring the page back there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CommittedMap {
    shape: ArenaShape,
    homes: Frames,
    spares: Frames,
    displaced: Displaced,
    /// The homings after h, in sequence.
    homings: VecDeque<(Homing, Progress)>,
    /// The next of them to start: all before it have started or were superseded.
    next_start: usize,
    running: usize,
    /// h.
    homed_through: HomingSequence,
}

impl CommittedMap {
    /// The map of a fresh arena: every page at home.
    ///
    /// # Panics
    /// If the shape has more than [`super::MAX_FRAMES`] frames: a peer's shape is checked before.
    pub fn new(shape: ArenaShape) -> Self {
        Self {
            shape,
            homes: Frames::homes(shape.pages),
            spares: Frames::spares(shape.spares),
            displaced: Displaced::new(shape.pages, shape.spares),
            homings: VecDeque::with_capacity(shape.spares.min(MAX_OUTSTANDING_HOMINGS) as usize),
            next_start: 0,
            running: 0,
            homed_through: HomingSequence(0),
        }
    }

    /// Back to the fresh arena; homings count from 1 again. Call when no copy runs.
    pub fn reset(&mut self) {
        debug_assert!(!self.copies_running());
        *self = Self::new(self.shape);
    }

    /// Checks an epoch's transfers; on success the map is the new one, and running or pending
    /// homings of the same pages are cancelled. `first` says that nothing is live yet.
    /// Allocates nothing. After failure nothing has changed.
    pub fn commit(&mut self, transfers: &[Transfer], first: bool) -> Result<(), PlacementViolation> {
        let mut page_end = 0;
        let mut checked = Ok(());
        let mut good = 0;
        while let (Ok(()), Some(transfer)) = (&checked, transfers.get(good)) {
            checked = self.check(transfer, &mut page_end, first);
            good += usize::from(checked.is_ok());
        }
        for transfer in &transfers[..good] {
            if let Some(spare) = transfer.first_frame.0.checked_sub(self.shape.pages) {
                self.spares.put_run(Reason::Claimed, spare, transfer.pages, false);
            }
        }
        checked?;
        for transfer in transfers {
            self.enter(transfer);
        }
        self.pass_homings();
        Ok(())
    }

    /// Rule 3, as far as it concerns placement. Claims the target spares of a good transfer, so
    /// that a frame named twice is found. `page_end` is where the transfer before ended.
    fn check(
        &mut self,
        transfer: &Transfer,
        page_end: &mut u64,
        first: bool,
    ) -> Result<(), PlacementViolation> {
        let Transfer { first_page, first_frame, pages } = *transfer;
        if first_page.0 < *page_end {
            return Err(PlacementViolation::Twice(format!("page {first_page}")));
        }
        *page_end = end_within(first_page.0, pages, self.shape.pages)
            .ok_or_else(|| PlacementViolation::OutOfRange(format!("page {first_page}+{pages}")))?;
        let Some(spare) = first_frame.0.checked_sub(self.shape.pages) else {
            return self.check_home(transfer, first);
        };
        end_within(spare, pages, self.shape.spares)
            .ok_or_else(|| PlacementViolation::OutOfRange(format!("frame {first_frame}+{pages}")))?;
        self.claim_spares(transfer, spare)
    }

    fn check_home(&self, transfer: &Transfer, first: bool) -> Result<(), PlacementViolation> {
        let Transfer { first_page: page, first_frame: frame, pages } = *transfer;
        if frame.0 != page.0 {
            return Err(PlacementViolation::ForeignHome { page, home_of: PageIndex(frame.0) });
        }
        if self.shape.copy_only_homes {
            return Err(PlacementViolation::CopyOnlyHome(page));
        }
        let (used, run) = self.homes.run(page.0, pages, !first);
        if used || run < pages {
            let at = page.0 + if used { 0 } else { run };
            return Err(PlacementViolation::InUse { page: PageIndex(at), frame: FrameIndex(at) });
        }
        Ok(())
    }

    fn claim_spares(&mut self, transfer: &Transfer, first: u64) -> Result<(), PlacementViolation> {
        let (used, run) = self.spares.run(first, transfer.pages, true);
        if used || run < transfer.pages {
            let at = if used { 0 } else { run };
            let frame = FrameIndex(transfer.first_frame.0 + at);
            if self.spares.has(Reason::Claimed, first + at) {
                return Err(PlacementViolation::Twice(format!("frame {frame}")));
            }
            return Err(PlacementViolation::InUse { page: PageIndex(transfer.first_page.0 + at), frame });
        }
        self.spares.put_run(Reason::Claimed, first, transfer.pages, true);
        Ok(())
    }

    /// Makes a checked transfer part of the map.
    fn enter(&mut self, transfer: &Transfer) {
        let first_spare = transfer.first_frame.0.checked_sub(self.shape.pages);
        for offset in 0..transfer.pages {
            let page = transfer.first_page.0 + offset;
            let old = match first_spare {
                Some(first) => {
                    self.homes.put(Reason::Moved, page, true);
                    self.spares.put(Reason::Moved, first + offset, true);
                    self.displaced.put(page, first + offset)
                }
                None if self.homes.has(Reason::Moved, page) => {
                    self.homes.put(Reason::Moved, page, false);
                    self.displaced.remove(page)
                }
                None => None,
            };
            if let Some(old) = old {
                self.spares.put(Reason::Moved, old, false);
            }
        }
    }

    /// Takes homings numbered from `first_sequence` on. A homing depends on the commit that
    /// placed its source: call after every Commit that was received before it has been committed
    /// (a Commit may still wait for its markers when the Home arrives).
    /// After failure nothing has changed.
    pub fn take_homings(
        &mut self,
        first_sequence: HomingSequence,
        homings: &[Homing],
    ) -> Result<(), PlacementViolation> {
        let expected = HomingSequence(self.homed_through.0 + self.homings.len() as u64 + 1);
        if first_sequence != expected {
            return Err(PlacementViolation::Homing(format!("sequence {first_sequence}, not {expected}")));
        }
        let taken = self.homings.len();
        for homing in homings {
            if let Err(violation) = self.take_homing(homing) {
                for (homing, _) in self.homings.drain(taken..) {
                    forget(&mut self.homes, &mut self.spares, &homing, self.shape.pages);
                }
                return Err(violation);
            }
        }
        self.pass_homings();
        Ok(())
    }

    fn take_homing(&mut self, homing: &Homing) -> Result<(), PlacementViolation> {
        let Homing { page, source } = *homing;
        let refused =
            |why| Err(PlacementViolation::Homing(format!("page {page} from frame {source}: {why}")));
        if page.0 >= self.shape.pages {
            return refused("no such page");
        }
        let spare = match source.0.checked_sub(self.shape.pages) {
            Some(spare) if spare < self.shape.spares => spare,
            _ => return refused("not a spare frame"),
        };
        // At most one homing a page: so a target has one copy at a time (rule 5), and the
        // homings outstanding are bounded by the spares.
        if self.homes.has(Reason::Homing, page.0) || self.spares.has(Reason::Homing, spare) {
            return refused("another homing of the page or the frame is outstanding");
        }
        self.homes.put(Reason::Homing, page.0, true);
        self.spares.put(Reason::Homing, spare, true);
        self.homings.push_back((*homing, Progress::Waiting));
        Ok(())
    }

    /// The next copy to make. Copies start in sequence; several may run at once.
    pub fn next_copy(&mut self) -> Option<HomingCopy> {
        while let Some((homing, progress)) = self.homings.get(self.next_start).copied() {
            let at = self.next_start;
            self.next_start += 1;
            if !self.is_superseded(&homing) {
                debug_assert_eq!(progress, Progress::Waiting);
                self.homings[at].1 = Progress::Running;
                self.running += 1;
                return Some(HomingCopy {
                    sequence: HomingSequence(self.homed_through.0 + at as u64 + 1),
                    page: homing.page,
                    source: homing.source,
                    target: self.shape.home(homing.page),
                });
            }
            self.homings[at].1 = Progress::Finished;
        }
        self.pass_homings();
        None
    }

    /// A copy touches memory no more. The map changes only if it was not cancelled.
    /// A number that is not a running copy's is ignored.
    pub fn copy_finished(&mut self, sequence: HomingSequence) {
        let at = sequence.0.wrapping_sub(self.homed_through.0).wrapping_sub(1);
        let Some((homing, progress)) = self.homings.get_mut(at as usize) else { return };
        if *progress != Progress::Running {
            return;
        }
        *progress = Progress::Finished;
        let homing = *homing;
        self.running -= 1;
        if !self.is_superseded(&homing) {
            self.displaced.remove(homing.page.0);
            self.homes.put(Reason::Moved, homing.page.0, false);
            self.spares.put(Reason::Moved, homing.source.0 - self.shape.pages, false);
        }
        self.pass_homings();
    }

    /// Whether a homing that is not finished has no effect any more.
    fn is_superseded(&self, homing: &Homing) -> bool {
        !self.homes.has(Reason::Moved, homing.page.0)
            || self.displaced.spare_of(homing.page.0) != Some(homing.source.0 - self.shape.pages)
    }

    /// Moves h over the homings that touch no memory any more.
    fn pass_homings(&mut self) {
        while let Some((homing, progress)) = self.homings.front().copied() {
            let passed = match progress {
                Progress::Finished => true,
                Progress::Waiting => self.is_superseded(&homing),
                Progress::Running => false,
            };
            if !passed {
                return;
            }
            self.homings.pop_front();
            self.next_start = self.next_start.saturating_sub(1);
            self.homed_through = self.homed_through.next();
            forget(&mut self.homes, &mut self.spares, &homing, self.shape.pages);
        }
    }

    /// Whether copies are running.
    pub fn copies_running(&self) -> bool {
        self.running > 0
    }

    /// Whether [`next_copy`](Self::next_copy) may have something to do.
    pub fn copies_waiting(&self) -> bool {
        self.next_start < self.homings.len()
    }

    /// h: no homing up to this one touches memory any more.
    pub fn homed_through(&self) -> HomingSequence {
        self.homed_through
    }

    /// Drops homings that have not begun (the connection they came on is gone); their effect
    /// never happens. Call when no copy runs: since copies start in sequence, what remains then
    /// is exactly what follows h, and the primary drops the same.
    pub fn drop_pending(&mut self) {
        debug_assert!(!self.copies_running());
        self.pass_homings();
        while self.homings.back().is_some_and(|(_, progress)| *progress == Progress::Waiting) {
            if let Some((homing, _)) = self.homings.pop_back() {
                forget(&mut self.homes, &mut self.spares, &homing, self.shape.pages);
            }
        }
        self.next_start = self.homings.len();
    }

    /// Where a page's committed version is.
    pub fn frame_of(&self, page: PageIndex) -> FrameIndex {
        if !self.homes.has(Reason::Moved, page.0) {
            return self.shape.home(page);
        }
        self.displaced
            .spare_of(page.0)
            .map_or(self.shape.home(page), |spare| FrameIndex(self.shape.pages + spare))
    }

    /// How many pages are away from home: what a takeover copies first.
    pub fn displaced_pages(&self) -> u64 {
        self.displaced.count()
    }

    /// The pages away from home, with their frames, sorted by page.
    pub fn displaced(&self) -> Vec<(PageIndex, FrameIndex)> {
        let mut all: Vec<_> = self
            .displaced
            .iter()
            .map(|(page, spare)| (PageIndex(page), FrameIndex(self.shape.pages + spare)))
            .collect();
        all.sort_unstable();
        all
    }

    /// Whether the map or a homing not yet passed uses a frame.
    pub fn is_used(&self, frame: FrameIndex) -> bool {
        match frame.0.checked_sub(self.shape.pages) {
            None => self.homes.is_used(frame.0, true),
            Some(spare) => self.spares.is_used(spare, true),
        }
    }
}

/// A homing touches no memory any more, or never will.
fn forget(homes: &mut Frames, spares: &mut Frames, homing: &Homing, pages: u64) {
    homes.put(Reason::Homing, homing.page.0, false);
    spares.put(Reason::Homing, homing.source.0 - pages, false);
}

/// The end of a run that is not empty and stays within `limit`.
fn end_within(first: u64, count: u64, limit: u64) -> Option<u64> {
    let end = first.checked_add(count)?;
    (count > 0 && end <= limit).then_some(end)
}
