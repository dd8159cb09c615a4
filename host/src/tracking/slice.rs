//! One slice of the tracked memory: what one thread scans at a time.

use std::io;
use std::os::fd::BorrowedFd;

use romulus_checkpoint::{Extent, PAGE_BYTES, PageIndex};

use super::DirtyRange;
use super::kernel::{self, PageRegion, Protect};
use super::windows::Windows;

/// Runs that one system call reports at most.
const REGIONS_PER_CALL: usize = 2048;
/// Slices begin and end at multiples of this, unless the range itself does not, so that no page
/// table is shared between two scanning threads.
const SLICE_ALIGN_BYTES: u64 = 2 << 20;

/// Whether the writers of the tracked memory stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do: look first, then protect only around what was written (in one step where that was
    /// nearly everywhere the last time).
    Stopped,
    /// They do not: look and protect in one step everywhere.
    Running,
}

/// A slice with all the room that scanning it needs.
#[derive(Debug)]
pub struct Slice {
    start: u64,
    end: u64,
    first: PageIndex,
    page_bytes: u64,
    regions: Box<[PageRegion]>,
    windows: Windows,
    found: Vec<Extent>,
    /// Windows of the last collection covered most of the slice: looking first does not pay.
    scattered: bool,
    /// `found` holds pages of an earlier scan whose collection failed.
    left_over: bool,
    error: Option<io::Error>,
}

impl Slice {
    fn new(start: u64, end: u64, first: PageIndex, page_bytes: u64) -> Self {
        Self {
            start,
            end,
            first,
            page_bytes,
            regions: vec![PageRegion::default(); REGIONS_PER_CALL].into_boxed_slice(),
            windows: Windows::default(),
            found: Vec::new(),
            scattered: false,
            left_over: false,
            error: None,
        }
    }

    /// First address and first address after.
    pub fn span(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    /// Finds and protects what was written. Pages found stay here until [`take`](Self::take);
    /// an error stays until [`take_error`](Self::take_error).
    pub fn collect(&mut self, pagemap: BorrowedFd<'_>, mode: Mode) {
        self.left_over = !self.found.is_empty();
        let result = match mode {
            Mode::Running => self.protect(pagemap, self.start, self.end),
            Mode::Stopped if self.scattered => {
                let result = self.protect(pagemap, self.start, self.end);
                self.window_what_was_found();
                result
            }
            Mode::Stopped => self.look(pagemap).and_then(|()| self.protect_windows(pagemap)),
        };
        if mode == Mode::Stopped {
            self.scattered = self.windows.covered_bytes() > (self.end - self.start) / 2;
        }
        self.error = result.err();
    }

    /// The error of the last scan.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Appends what was found and forgets it.
    pub fn take(&mut self, dirty: &mut Vec<Extent>) {
        if self.left_over {
            self.found.sort_unstable_by_key(|extent| extent.first);
            self.left_over = false;
        }
        for extent in self.found.drain(..) {
            append(dirty, extent);
        }
    }

    fn look(&mut self, pagemap: BorrowedFd<'_>) -> io::Result<()> {
        self.windows.clear();
        let mut at = self.start;
        while at < self.end {
            let (filled, stopped_at) = kernel::scan(pagemap, at, self.end, Protect::No, &mut self.regions)?;
            for region in &self.regions[..filled] {
                self.windows.include(region.start, region.end, self.page_bytes, (self.start, self.end));
            }
            at = stopped_at;
        }
        Ok(())
    }

    /// The windows that a look would have chosen.
    fn window_what_was_found(&mut self) {
        self.windows.clear();
        for extent in &self.found {
            let start = self.start + (extent.first.0 - self.first.0) * PAGE_BYTES;
            let end = start + extent.pages * PAGE_BYTES;
            self.windows.include(start, end, self.page_bytes, (self.start, self.end));
        }
    }

    fn protect_windows(&mut self, pagemap: BorrowedFd<'_>) -> io::Result<()> {
        for index in 0..self.windows.spans().len() {
            let (start, end) = self.windows.spans()[index];
            self.protect(pagemap, start, end)?;
        }
        Ok(())
    }

    /// Reports what the protecting scan itself saw, also in windows that an earlier look chose: a
    /// page written between the two is then reported, or stays unprotected for the next time.
    fn protect(&mut self, pagemap: BorrowedFd<'_>, start: u64, end: u64) -> io::Result<()> {
        let mut at = start;
        while at < end {
            match kernel::scan(pagemap, at, end, Protect::Matching, &mut self.regions) {
                Ok((filled, stopped_at)) => {
                    for index in 0..filled {
                        let region = self.regions[index];
                        self.push(region.start, region.end);
                    }
                    at = stopped_at;
                }
                Err(error) => {
                    // The call may have protected pages without telling which: all count as
                    // written.
                    self.push(at, end);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, start: u64, end: u64) {
        let start = start.max(self.start);
        let end = end.min(self.end);
        if start < end {
            let first = PageIndex(self.first.0 + (start - self.start) / PAGE_BYTES);
            append(&mut self.found, Extent { first, pages: (end - start) / PAGE_BYTES });
        }
    }
}

/// Appends an extent, joined with the last one where they touch or overlap.
fn append(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last)
            if last.first <= extent.first && extent.first.0 <= last.first.0.saturating_add(last.pages) =>
        {
            let end = (last.first.0 + last.pages).max(extent.first.0 + extent.pages);
            last.pages = end - last.first.0;
        }
        _ => extents.push(extent),
    }
}

/// Cuts the ranges into about `parts` slices, in order, each in one range. `page_bytes` is the
/// size of the pages behind each range (more than 4 KiB on hugetlbfs).
pub fn cut(ranges: &[(DirtyRange, u64)], parts: usize) -> Vec<Slice> {
    let total: u64 = ranges.iter().map(|(range, _)| range.end() - range.address).sum();
    let target = total.div_ceil(parts.max(1) as u64).max(1);
    let mut slices = Vec::new();
    for (range, page_bytes) in ranges {
        let align = SLICE_ALIGN_BYTES.max(*page_bytes);
        let mut at = range.address;
        while at < range.end() {
            let cut = (at + target).checked_next_multiple_of(align).unwrap_or(u64::MAX);
            let end = cut.min(range.end());
            let first = PageIndex(range.first.0 + (at - range.address) / PAGE_BYTES);
            slices.push(Slice::new(at, end, first, *page_bytes));
            at = end;
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first: u64, pages: u64) -> Extent {
        Extent { first: PageIndex(first), pages }
    }

    #[test]
    fn slices_cover_the_ranges_without_overlap() {
        let ranges = [
            (DirtyRange { address: 0x1000, pages: 5000, first: PageIndex(0) }, PAGE_BYTES),
            (DirtyRange { address: 1 << 40, pages: 512 * 3, first: PageIndex(5000) }, 2 << 20),
        ];
        for parts in 1..20 {
            let slices = cut(&ranges, parts);
            let mut next_page = 0;
            for slice in &slices {
                assert_eq!(slice.first.0, next_page);
                next_page += (slice.end - slice.start) / PAGE_BYTES;
                assert!(slice.start % SLICE_ALIGN_BYTES == 0 || slice.start == 0x1000);
            }
            assert_eq!(next_page, 5000 + 512 * 3);
            assert!(slices.len() <= parts + ranges.len());
        }
    }

    #[test]
    fn pages_of_a_failed_collection_are_reported_once_by_the_next() {
        let range = DirtyRange { address: 0x10000, pages: 100, first: PageIndex(1000) };
        let mut slice = cut(&[(range, PAGE_BYTES)], 1).remove(0);
        slice.push(0x10000 + 50 * PAGE_BYTES, 0x10000 + 60 * PAGE_BYTES);
        slice.left_over = true;
        slice.push(0x10000, 0x10000 + PAGE_BYTES);
        slice.push(0x10000 + 55 * PAGE_BYTES, 0x10000 + 70 * PAGE_BYTES);
        let mut dirty = Vec::new();
        slice.take(&mut dirty);
        assert_eq!(dirty, [extent(1000, 1), extent(1050, 20)]);
        dirty.clear();
        slice.take(&mut dirty);
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_scan_that_fails_counts_its_whole_range_as_written() {
        let range = DirtyRange { address: 0x10000, pages: 100, first: PageIndex(0) };
        let mut slice = cut(&[(range, PAGE_BYTES)], 1).remove(0);
        let not_a_pagemap = std::fs::File::open("/dev/null").unwrap();
        slice.collect(std::os::fd::AsFd::as_fd(&not_a_pagemap), Mode::Running);
        assert!(slice.take_error().is_some());
        let mut dirty = Vec::new();
        slice.take(&mut dirty);
        assert_eq!(dirty, [extent(0, 100)]);
    }
}
