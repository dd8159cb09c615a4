//! From an epoch's transfers to copies and writes: pages that go to consecutive frames lie
//! consecutively in staging memory and leave as one write, however scattered they are in the
//! guest.

use romulus_transport::{RegionId, Write};

use super::copy::{CopyItem, MAX_ITEM_BYTES};
use super::staging::{PIECE_BYTES, Piece};
use crate::PAGE_BYTES;
use crate::driver::borders::Borders;
use crate::extent::Transfer;
use crate::ids::FrameIndex;
use crate::layout::ArenaShape;

/// The frame after the last of the arena's chunk that `frame` lies in.
fn chunk_end(frame: u64, borders: &Borders, shape: &ArenaShape) -> u64 {
    if frame < shape.pages { borders.region(frame).2 } else { shape.frames() }
}

/// The order in which an epoch's pages are sent, and how far it has been carried out. Reused.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Transfers by first frame.
    ordered: Vec<Transfer>,
    /// The next transfer, and how many of its pages are done.
    next: usize,
    pages_done: u64,
    pages_left: u64,
}

/// A place in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    next: usize,
    pages_done: u64,
    pages_left: u64,
}

impl Plan {
    /// Begins with new transfers.
    pub fn begin(&mut self, transfers: &[Transfer]) {
        self.ordered.clear();
        self.ordered.extend_from_slice(transfers);
        let by_frame = |transfer: &Transfer| transfer.first_frame;
        if !self.ordered.is_sorted_by_key(by_frame) {
            self.ordered.sort_unstable_by_key(by_frame);
        }
        self.next = 0;
        self.pages_done = 0;
        self.pages_left = transfers.iter().map(|transfer| transfer.pages).sum();
    }

    /// Pages neither copied nor written yet.
    pub fn pages_left(&self) -> u64 {
        self.pages_left
    }

    /// Appends the copies into `piece`, and to it the writes for the next pages, as many as it
    /// holds.
    pub fn stage(
        &mut self,
        piece: &mut Piece,
        staging: RegionId,
        borders: &Borders,
        shape: &ArenaShape,
        copies: &mut Vec<CopyItem>,
    ) {
        let mut at = piece.offset;
        let end = piece.offset + PIECE_BYTES;
        let mut joiner = Joiner::new(&mut piece.writes, shape);
        while at < end {
            let Some(run) = self.next_run((end - at) / PAGE_BYTES, borders, shape) else { return };
            let bytes = run.pages * PAGE_BYTES;
            push_copies(copies, &run, at, bytes);
            joiner.push(staging, at, &run);
            at += bytes;
        }
    }

    /// Appends the writes of the next pages straight from guest memory, of at most `most` pages.
    pub fn direct(
        &mut self,
        most: u64,
        regions: &[RegionId],
        borders: &Borders,
        shape: &ArenaShape,
        writes: &mut Vec<Write>,
    ) {
        let mut joiner = Joiner::new(writes, shape);
        let mut left = most;
        while left > 0
            && let Some(run) = self.next_run(left, borders, shape)
        {
            left -= run.pages;
            joiner.push(regions[run.region], run.from, &run);
        }
    }

    /// How far it has been carried out, for [`go_on_from`](Self::go_on_from).
    pub fn place(&self) -> Place {
        Place { next: self.next, pages_done: self.pages_done, pages_left: self.pages_left }
    }

    /// Goes back to `place`, and from there on by `pages` pages.
    pub fn go_on_from(&mut self, place: Place, mut pages: u64, borders: &Borders, shape: &ArenaShape) {
        Place { next: self.next, pages_done: self.pages_done, pages_left: self.pages_left } = place;
        while pages > 0
            && let Some(run) = self.next_run(pages, borders, shape)
        {
            pages -= run.pages;
        }
    }

    /// The next pages that lie together in one region and in one chunk.
    fn next_run(&mut self, most: u64, borders: &Borders, shape: &ArenaShape) -> Option<Run> {
        let transfer = *self.ordered.get(self.next)?;
        let page = transfer.first_page.0 + self.pages_done;
        let frame = transfer.first_frame.0 + self.pages_done;
        let (region, first, end) = borders.region(page);
        let chunk_end = chunk_end(frame, borders, shape);
        let left = transfer.pages - self.pages_done;
        let pages = left.min(end - page).min(chunk_end - frame).min(most);
        if pages == left {
            self.next += 1;
            self.pages_done = 0;
        } else {
            self.pages_done += pages;
        }
        self.pages_left -= pages;
        Some(Run { region, from: (page - first) * PAGE_BYTES, frame, chunk_end, pages })
    }
}

struct Run {
    region: usize,
    from: u64,
    frame: u64,
    chunk_end: u64,
    pages: u64,
}

fn push_copies(copies: &mut Vec<CopyItem>, run: &Run, to: u64, bytes: u64) {
    let mut done = 0;
    while done < bytes {
        let len_bytes = (bytes - done).min(MAX_ITEM_BYTES);
        copies.push(CopyItem { region: run.region, from: run.from + done, to: to + done, len_bytes });
        done += len_bytes;
    }
}

/// Appends writes, joining what is consecutive on both sides and in one chunk.
struct Joiner<'a> {
    writes: &'a mut Vec<Write>,
    shape: &'a ArenaShape,
    chunk_end: u64,
}

impl<'a> Joiner<'a> {
    fn new(writes: &'a mut Vec<Write>, shape: &'a ArenaShape) -> Self {
        Self { writes, shape, chunk_end: 0 }
    }

    fn push(&mut self, region: RegionId, local_offset: u64, run: &Run) {
        let remote_offset = self.shape.frame_offset_bytes(FrameIndex(run.frame));
        let len_bytes = run.pages * PAGE_BYTES;
        if run.chunk_end == self.chunk_end
            && let Some(last) = self.writes.last_mut()
            && last.region == region
            && last.local_offset + last.len_bytes == local_offset
            && last.remote_offset + last.len_bytes == remote_offset
        {
            last.len_bytes += len_bytes;
            return;
        }
        self.chunk_end = run.chunk_end;
        self.writes.push(Write { region, local_offset, remote_offset, len_bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Identity, PageIndex};
    use crate::layout::{GuestLayout, Region};

    fn fixture() -> (Borders, ArenaShape) {
        let region = |name: &str, pages| Region { name: name.into(), pages };
        let layout = GuestLayout { regions: vec![region("a", 10), region("b", 6)] };
        let shape = ArenaShape { pages: 16, spares: 8, slots: 3, slot_bytes: 4096, copy_only_homes: false };
        (Borders::new(&layout), shape)
    }

    fn transfer(page: u64, frame: u64, pages: u64) -> Transfer {
        Transfer { first_page: PageIndex(page), first_frame: FrameIndex(frame), pages }
    }

    fn staged(fixture: (Borders, ArenaShape), transfers: &[Transfer]) -> Vec<(Vec<CopyItem>, Vec<Write>)> {
        let (borders, shape) = fixture;
        let mut plan = Plan::default();
        plan.begin(transfers);
        let mut pieces = Vec::new();
        while plan.pages_left() > 0 {
            let mut piece = Piece { offset: 4096, writes: Vec::new(), identity: Identity::default() };
            let mut copies = Vec::new();
            plan.stage(&mut piece, RegionId(9), &borders, &shape, &mut copies);
            pieces.push((copies, piece.writes));
        }
        pieces
    }

    #[test]
    fn scattered_pages_to_consecutive_frames_are_one_write() {
        let pieces = staged(fixture(), &[transfer(1, 16, 1), transfer(5, 17, 1), transfer(12, 18, 2)]);
        let [(copies, writes)] = &pieces[..] else { panic!("{pieces:?}") };
        let write =
            Write { region: RegionId(9), local_offset: 4096, remote_offset: 16 * 4096, len_bytes: 4 * 4096 };
        assert_eq!(writes, &[write]);
        let places: Vec<_> = copies.iter().map(|copy| (copy.region, copy.from / 4096)).collect();
        assert_eq!(places, [(0, 1), (0, 5), (1, 2)]);
    }

    #[test]
    fn no_write_crosses_a_chunk_and_no_copy_a_region() {
        // Pages 8 to 13 at home lie in both regions; frames 15 and 16 are consecutive but in two chunks.
        let pieces = staged(fixture(), &[transfer(15, 15, 1), transfer(8, 8, 6), transfer(0, 16, 1)]);
        let [(copies, writes)] = &pieces[..] else { panic!("{pieces:?}") };
        let frames: Vec<_> =
            writes.iter().map(|write| (write.remote_offset / 4096, write.len_bytes / 4096)).collect();
        assert_eq!(frames, [(8, 2), (10, 4), (15, 1), (16, 1)]);
        let places: Vec<_> =
            copies.iter().map(|copy| (copy.region, copy.from / 4096, copy.len_bytes / 4096)).collect();
        assert_eq!(places, [(0, 8, 2), (1, 0, 4), (1, 5, 1), (0, 0, 1)]);
    }

    #[test]
    fn what_does_not_fit_comes_in_pieces() {
        let regions = vec![Region { name: "a".into(), pages: 1000 }];
        let shape =
            ArenaShape { pages: 1000, spares: 800, slots: 3, slot_bytes: 4096, copy_only_homes: false };
        let large = (Borders::new(&GuestLayout { regions }), shape);
        let pieces = staged(large, &[transfer(0, 1000, 600), transfer(700, 1600, 1)]);
        let pages: Vec<u64> =
            pieces.iter().map(|(_, writes)| writes.iter().map(|w| w.len_bytes / 4096).sum()).collect();
        assert_eq!(pages, [256, 256, 89]);
        let frames: Vec<_> =
            pieces.iter().flat_map(|(_, writes)| writes).map(|w| w.remote_offset / 4096).collect();
        assert_eq!(frames, [1000, 1256, 1512]);
    }

    #[test]
    fn direct_writes_come_from_guest_memory() {
        let (borders, shape) = fixture();
        let mut plan = Plan::default();
        plan.begin(&[transfer(8, 8, 4), transfer(0, 17, 1), transfer(1, 18, 1)]);
        let mut writes = Vec::new();
        plan.direct(u64::MAX, &[RegionId(3), RegionId(4)], &borders, &shape, &mut writes);
        let found: Vec<_> = writes
            .iter()
            .map(|w| (w.region.0, w.local_offset / 4096, w.remote_offset / 4096, w.len_bytes / 4096))
            .collect();
        assert_eq!(found, [(3, 8, 8, 2), (4, 0, 10, 2), (3, 0, 17, 2)]);
        assert_eq!(plan.pages_left(), 0);
    }

    #[test]
    fn what_was_not_taken_is_planned_again() {
        let (borders, shape) = fixture();
        let mut plan = Plan::default();
        plan.begin(&[transfer(8, 8, 4), transfer(0, 17, 1), transfer(1, 18, 1)]);
        let regions = [RegionId(3), RegionId(4)];
        let mut writes = Vec::new();
        let begin = plan.place();
        plan.direct(3, &regions, &borders, &shape, &mut writes);
        assert_eq!(plan.pages_left(), 3);
        plan.go_on_from(begin, 1, &borders, &shape);
        assert_eq!(plan.pages_left(), 5);
        writes.clear();
        plan.direct(3, &regions, &borders, &shape, &mut writes);
        let found: Vec<_> =
            writes.iter().map(|w| (w.region.0, w.remote_offset / 4096, w.len_bytes / 4096)).collect();
        assert_eq!(found, [(3, 9, 1), (4, 10, 2)]);
        plan.go_on_from(begin, 6, &borders, &shape);
        assert_eq!((plan.pages_left(), plan.place().next), (0, 3));
    }
}
