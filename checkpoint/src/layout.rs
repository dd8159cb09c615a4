//! The shape of a guest's memory and of the arena that shadows it.

use crate::PAGE_BYTES;
use crate::ids::{FrameIndex, PageIndex};

/// One region of guest memory (a RAM block): consecutive pages of the guest, a file of its own
/// on the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The hypervisor's name for it, the same on both hosts.
    pub name: String,
    /// Its length in pages.
    pub pages: u64,
}

/// The guest's memory: its regions in order. `PageIndex` counts through them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestLayout {
    /// The regions.
    pub regions: Vec<Region>,
}

impl GuestLayout {
    /// Pages of all regions.
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(|region| region.pages).sum()
    }
}

/// The arena: `pages` home frames, `spares` spare frames, then `slots` commit slots of
/// `slot_bytes` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArenaShape {
    /// P, the guest's pages and so the home frames.
    pub pages: u64,
    /// S, the spare frames.
    pub spares: u64,
    /// K, the commit slots; at least D + 1.
    pub slots: u64,
    /// Length of one slot, a multiple of the page size.
    pub slot_bytes: u64,
    /// Homes are only reached by homing (their memory cannot be registered): placement uses
    /// spares alone, and the homes are no part of the arena.
    pub copy_only_homes: bool,
}

impl ArenaShape {
    /// Homes and spares.
    pub fn frames(&self) -> u64 {
        self.pages + self.spares
    }

    /// The home frame of a page.
    pub fn home(&self, page: PageIndex) -> FrameIndex {
        FrameIndex(page.0)
    }

    /// Whether a frame is the home of some page.
    pub fn is_home(&self, frame: FrameIndex) -> bool {
        frame.0 < self.pages
    }

    /// The first frame that the arena holds: a home, or with copy-only homes a spare.
    pub fn first_lent_frame(&self) -> FrameIndex {
        FrameIndex(if self.copy_only_homes { self.pages } else { 0 })
    }

    /// Byte offset of a frame in the arena.
    ///
    /// # Panics
    /// If it is a copy-only home, which the arena does not hold.
    pub fn frame_offset_bytes(&self, frame: FrameIndex) -> u64 {
        let lent = frame.0.checked_sub(self.first_lent_frame().0);
        lent.expect("a copy-only home is no part of the arena") * PAGE_BYTES
    }

    /// Byte offset of the slot of an epoch.
    pub fn slot_offset_bytes(&self, epoch: crate::Epoch) -> u64 {
        self.slots_offset_bytes() + (epoch.0 % self.slots) * self.slot_bytes
    }

    /// Length of the arena.
    pub fn len_bytes(&self) -> u64 {
        self.slots_offset_bytes() + self.slots * self.slot_bytes
    }

    fn slots_offset_bytes(&self) -> u64 {
        (self.frames() - self.first_lent_frame().0) * PAGE_BYTES
    }
}
