//! What the replication model needs of a primary's and a backup's placement. There are two of
//! each: the rules spelled out (`spelled`) and the production code (`production`).

use std::fmt::Debug;
use std::hash::Hash;

use crate::rules::Config;

/// Most pages of a configuration.
pub const MAX_PAGES: usize = 3;
/// No frame: the page is not part of the epoch.
pub const NONE: u8 = u8::MAX;

/// For each page the frame it is placed in, or [`NONE`].
pub type Targets = [u8; MAX_PAGES];

/// A homing: sequence, page, source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Homing {
    pub sequence: u8,
    pub page: u8,
    pub source: u8,
}

/// The pages of a placement.
pub fn placed(targets: &Targets) -> impl Iterator<Item = (u8, u8)> + '_ {
    targets.iter().enumerate().filter(|(_, frame)| **frame != NONE).map(|(page, frame)| (page as u8, *frame))
}

/// The primary's placement.
pub trait PrimarySide: Clone + Debug + Eq + Hash {
    fn new(config: &Config) -> Self;
    /// The ways to place these pages (a set of bits) now.
    fn placements(&self, config: &Config, pages: u8) -> Vec<Targets>;
    fn place(&mut self, config: &Config, epoch: u8, targets: &Targets);
    fn commit_sent(&mut self, epoch: u8);
    /// The batches of homings that may be asked for now.
    fn homings(&self, config: &Config) -> Vec<Vec<Homing>>;
    fn ask(&mut self, config: &Config, homings: &[Homing]);
    fn acked(&mut self, config: &Config, committed: u8, homed_through: u8);
    /// Returns the pages of the epochs dropped.
    fn reconnected(&mut self, config: &Config, committed: u8, homed_through: u8) -> u8;
    /// A and h.
    fn knows(&self) -> (u8, u8);
    fn unacked(&self) -> u8;
}

/// The backup's map and homings.
pub trait BackupSide: Clone + Debug + Eq + Hash {
    fn new(config: &Config) -> Self;
    /// Whether the slot was accepted.
    fn commit(&mut self, config: &Config, targets: &Targets, first: bool) -> bool;
    fn take(&mut self, config: &Config, homings: &[Homing]) -> bool;
    /// The homings that may start to be copied now.
    fn startable(&self, config: &Config) -> Vec<Homing>;
    fn start(&mut self, homing: &Homing);
    fn running(&self) -> Vec<Homing>;
    fn finish(&mut self, config: &Config, homing: &Homing);
    fn homed_through(&self, config: &Config) -> u8;
    fn drop_pending(&mut self, config: &Config);
    fn frame_of(&self, page: u8) -> u8;
    /// Homes a page without being asked ([`crate::rules::Rule::NoHomingUnasked`] left out).
    fn force_home(&mut self, page: u8);
}
