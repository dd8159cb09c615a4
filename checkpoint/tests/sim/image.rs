//! The memory that a backup lends, and comparisons of it with the guest.

use romulus_checkpoint::layout::ArenaShape;
use romulus_checkpoint::placement::committed::HomingCopy;
use romulus_checkpoint::wire::slot::SlotHeader;
use romulus_checkpoint::{Epoch, FrameIndex, PAGE_BYTES, PageIndex};
use romulus_transport::{Arena, Memory};

use super::guest::{Snapshot, holds};
use super::rng::mix;

#[derive(Debug)]
pub struct Image {
    shape: ArenaShape,
    frames: Memory,
    slots: Memory,
}

impl Image {
    pub fn new(shape: ArenaShape) -> Self {
        Self {
            frames: Memory::anonymous((shape.frames() * PAGE_BYTES) as usize),
            slots: Memory::anonymous((shape.slots * shape.slot_bytes) as usize),
            shape,
        }
    }

    /// What is lent: not the homes if they are copy-only.
    pub fn arena(&self) -> Arena {
        let first = (self.shape.first_lent_frame().0 * PAGE_BYTES) as usize;
        Arena::new([self.frames.part(first, self.frames.len_bytes() - first), self.slots.clone()])
    }

    /// The slot of an epoch.
    pub fn slot(&self, epoch: Epoch) -> Memory {
        let bytes = self.shape.slot_bytes as usize;
        self.slots.part((epoch.0 % self.shape.slots) as usize * bytes, bytes)
    }

    /// The state in the slot of an epoch.
    pub fn state(&self, epoch: Epoch, header: &SlotHeader) -> Vec<u8> {
        let mut state = vec![0; header.state_bytes as usize];
        self.slot(epoch).read(header.state_offset_bytes as usize, &mut state);
        state
    }

    /// Makes one half of a copy.
    pub fn copy_half(&self, copy: &HomingCopy, half: u64) {
        let at = |frame: FrameIndex| (frame.0 * PAGE_BYTES + half * PAGE_BYTES / 2) as usize;
        self.frames.copy_to(at(copy.source), &self.frames, at(copy.target), PAGE_BYTES as usize / 2);
    }

    /// The first page that is not as in the snapshot where the map says it is.
    pub fn wrong_page(
        &self,
        snapshot: &Snapshot,
        frame_of: impl Fn(PageIndex) -> FrameIndex,
    ) -> Option<(u64, FrameIndex)> {
        (0..self.shape.pages).map(|page| (page, frame_of(PageIndex(page)))).find(|(page, frame)| {
            let version = snapshot.versions[*page as usize];
            !holds(&self.frames, (frame.0 * PAGE_BYTES) as usize, *page, version)
        })
    }

    /// The first page whose home is not as in the snapshot.
    pub fn wrong_home(&self, snapshot: &Snapshot) -> Option<u64> {
        self.wrong_page(snapshot, |page| self.shape.home(page)).map(|(page, _)| page)
    }

    /// What of the committed epoch lies in a range of the arena.
    pub fn hits(
        &self,
        offset: u64,
        len_bytes: u64,
        committed: Epoch,
        frame_of: impl Fn(PageIndex) -> FrameIndex,
    ) -> Option<String> {
        let slot = self.shape.slot_offset_bytes(committed);
        if overlaps(offset, len_bytes, slot, self.shape.slot_bytes) {
            return Some(format!("the slot of the committed epoch {committed}"));
        }
        let pages = (0..self.shape.pages).map(|page| (page, frame_of(PageIndex(page))));
        let hit = pages.into_iter().find(|(_, frame)| self.in_frame(offset, len_bytes, *frame));
        hit.map(|(page, frame)| format!("frame {frame}, which holds the committed page {page}"))
    }

    /// Whether a range of the arena is part of a copy.
    pub fn touches(&self, offset: u64, len_bytes: u64, copy: &HomingCopy) -> bool {
        self.in_frame(offset, len_bytes, copy.source) || self.in_frame(offset, len_bytes, copy.target)
    }

    fn in_frame(&self, offset: u64, len_bytes: u64, frame: FrameIndex) -> bool {
        let lent = frame >= self.shape.first_lent_frame();
        lent && overlaps(offset, len_bytes, self.shape.frame_offset_bytes(frame), PAGE_BYTES)
    }

    /// A number that changes with any byte of the image.
    pub fn fingerprint(&self) -> u64 {
        let mut sum = 0;
        for memory in [&self.frames, &self.slots] {
            let mut bytes = vec![0; memory.len_bytes()];
            memory.read(0, &mut bytes);
            for word in bytes.as_chunks::<8>().0 {
                sum = mix(sum ^ u64::from_le_bytes(*word));
            }
        }
        sum
    }
}

fn overlaps(a: u64, a_bytes: u64, b: u64, b_bytes: u64) -> bool {
    a < b + b_bytes && b < a + a_bytes
}
