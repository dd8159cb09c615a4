//! The backup's side: the committed map, and homings carried out beside it.

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
    /// A page or a frame twice in one epoch.
    #[error("{0} twice in one epoch")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The map at the last committed epoch C, and the homings received.
#[derive(Clone, Debug)]
pub struct CommittedMap {
    _shape: ArenaShape,
}

impl CommittedMap {
    /// The map of a fresh arena: every page at home.
    pub fn new(_shape: ArenaShape) -> Self {
        todo!("placement")
    }
    /// Back to the fresh arena.
    pub fn reset(&mut self) {
        todo!("placement")
    }
    /// Checks an epoch's transfers; on success the map is the new one, and running or pending
    /// homings of the same pages are cancelled. `first` says that nothing is live yet.
    pub fn commit(&mut self, _transfers: &[Transfer], _first: bool) -> Result<(), PlacementViolation> {
        todo!("placement")
    }
    /// Takes homings numbered from `first_sequence` on.
    pub fn take_homings(
        &mut self,
        _first_sequence: HomingSequence,
        _homings: &[Homing],
    ) -> Result<(), PlacementViolation> {
        todo!("placement")
    }
    /// The next copy to make, if one is due and its target has no other running.
    pub fn next_copy(&mut self) -> Option<HomingCopy> {
        todo!("placement")
    }
    /// A copy touches memory no more. The map changes only if it was not cancelled.
    pub fn copy_finished(&mut self, _sequence: HomingSequence) {
        todo!("placement")
    }
    /// Whether copies are running.
    pub fn copies_running(&self) -> bool {
        todo!("placement")
    }
    /// h: no homing up to this one touches memory any more.
    pub fn homed_through(&self) -> HomingSequence {
        todo!("placement")
    }
    /// Drops homings that have not begun (the connection they came on is gone); their effect
    /// never happens. Call when no copy runs.
    pub fn drop_pending(&mut self) {
        todo!("placement")
    }
    /// Where a page's committed version is.
    pub fn frame_of(&self, _page: PageIndex) -> FrameIndex {
        todo!("placement")
    }
    /// The pages away from home, with their frames, sorted by page.
    pub fn displaced(&self) -> Vec<(PageIndex, FrameIndex)> {
        todo!("placement")
    }
}
