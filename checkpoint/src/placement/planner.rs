//! The primary's side: derives which frames are free and chooses among them.

use arrayvec::ArrayVec;

use crate::extent::{Extent, Transfer};
use crate::ids::{Epoch, HomingSequence};
use crate::layout::ArenaShape;
use crate::wire::message::{Homing, MAX_HOMINGS};

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

/// Knows the map at the last acked epoch A, the unacked epochs and the outstanding homings.
#[derive(Clone, Debug)]
pub struct Planner {
    _shape: ArenaShape,
}

impl Planner {
    /// A planner for a fresh arena: no epoch acked, nothing live, all placed at home.
    /// `low_water_spares`: below this many free spares homings are asked for.
    pub fn new(_shape: ArenaShape, _low_water_spares: u64) -> Self {
        todo!("placement")
    }
    /// Forgets everything: the arena holds nothing (new incarnation).
    pub fn reset(&mut self) {
        todo!("placement")
    }
    /// Places the epoch after the last one placed. `dirty` is sorted and without overlap.
    /// Appends to `transfers`, sorted by page. Does not allocate in steady state.
    pub fn place(
        &mut self,
        _epoch: Epoch,
        _dirty: &[Extent],
        _transfers: &mut Vec<Transfer>,
    ) -> Result<(), NotPlaced> {
        todo!("placement")
    }
    /// The Commit of this epoch was sent on the present connection (rule 4).
    pub fn commit_sent(&mut self, _epoch: Epoch) {
        todo!("placement")
    }
    /// Everything up to `committed` is acked, homings up to `homed_through` are done.
    pub fn acked(&mut self, _committed: Epoch, _homed_through: HomingSequence) {
        todo!("placement")
    }
    /// The next homings to ask for, if any are due; they count as outstanding from now on.
    pub fn next_homings(&mut self, _homings: &mut ArrayVec<Homing, MAX_HOMINGS>) -> Option<HomingSequence> {
        todo!("placement")
    }
    /// The connection is dead on both ends and the backup stands at (`committed`,
    /// `homed_through`): drops the epochs after it, appending their pages to `dirty` (unsorted,
    /// may overlap), and the homings not done.
    pub fn reconnected(
        &mut self,
        _committed: Epoch,
        _homed_through: HomingSequence,
        _dirty: &mut Vec<Extent>,
    ) {
        todo!("placement")
    }
    /// Spare frames free now.
    pub fn free_spares(&self) -> u64 {
        todo!("placement")
    }
    /// Pages whose acked version is in a spare frame.
    pub fn displaced_pages(&self) -> u64 {
        todo!("placement")
    }
}
