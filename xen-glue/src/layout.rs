//! A domain's memory as regions: runs of frames that have a page.
//!
//! Each run is a region, named by its first frame (`gfn 0x0`). Its pages are numbered through all
//! regions in order; see [`FrameMap`].

use romulus_checkpoint::wire::limits::MAX_REGIONS;
use romulus_checkpoint::{Extent, GuestLayout, PageIndex, Region};

const PREFIX: &str = "gfn 0x";

/// A run of frames that have a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// The first frame.
    pub first: u64,
    /// How many.
    pub frames: u64,
}

impl FrameRun {
    /// Behind the last frame.
    pub fn end(&self) -> u64 {
        self.first + self.frames
    }
}

/// Which frame is which page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameMap {
    runs: Vec<FrameRun>,
    /// First page of each run.
    pages: Vec<u64>,
}

impl FrameMap {
    /// Of runs that grow and do not touch.
    pub fn new(runs: Vec<FrameRun>) -> Self {
        let mut next = 0;
        let pages = runs.iter().map(|run| {
            let first = next;
            next += run.frames;
            first
        });
        let pages = pages.collect();
        Self { runs, pages }
    }

    /// The map behind a layout; `None` if it is not of a Xen domain.
    pub fn of_layout(layout: &GuestLayout) -> Option<Self> {
        let mut runs: Vec<FrameRun> = Vec::new();
        for region in &layout.regions {
            let first = u64::from_str_radix(region.name.strip_prefix(PREFIX)?, 16).ok()?;
            let run = FrameRun { first, frames: region.pages };
            let after = runs.last().map_or(0, FrameRun::end);
            if run.frames == 0 || run.first < after || run.first.checked_add(run.frames)? > 1 << 52 {
                return None;
            }
            runs.push(run);
        }
        Some(Self::new(runs))
    }

    /// The layout that names these runs.
    pub fn layout(&self) -> GuestLayout {
        let region = |run: &FrameRun| Region { name: format!("{PREFIX}{:x}", run.first), pages: run.frames };
        GuestLayout { regions: self.runs.iter().map(region).collect() }
    }

    /// The runs.
    pub fn runs(&self) -> &[FrameRun] {
        &self.runs
    }

    /// Pages of all runs.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.frames).sum()
    }

    /// The page of a frame.
    pub fn page(&self, frame: u64) -> Option<PageIndex> {
        let index = self.runs.partition_point(|run| run.first <= frame).checked_sub(1)?;
        let run = self.runs[index];
        (frame < run.end()).then(|| PageIndex(self.pages[index] + frame - run.first))
    }

    /// The frame of a page.
    pub fn frame(&self, page: PageIndex) -> Option<u64> {
        let index = self.pages.partition_point(|first| *first <= page.0).checked_sub(1)?;
        let (run, inside) = (self.runs[index], page.0 - self.pages[index]);
        (inside < run.frames).then(|| run.first + inside)
    }

    /// Appends the pages whose frames are set in a bitmap, as extents that grow and do not touch.
    /// Frames without a page are passed over. Bits behind the bitmap's end count as not set.
    pub fn extents(&self, words: &[u64], into: &mut Vec<Extent>) {
        let begin = into.len();
        for (run, first_page) in self.runs.iter().zip(&self.pages) {
            let mut frame = run.first;
            while let Some(start) = next_bit(words, frame, run.end(), true) {
                let end = next_bit(words, start, run.end(), false).unwrap_or(run.end());
                let first = PageIndex(first_page + start - run.first);
                match into[begin..].last_mut() {
                    // Runs that follow each other in pages, if not in frames.
                    Some(last) if last.first.0 + last.pages == first.0 => last.pages += end - start,
                    _ => into.push(Extent { first, pages: end - start }),
                }
                frame = end;
            }
        }
    }
}

/// The first frame from `from` on and before `end` whose bit is as wanted. Whole words are passed at
/// once.
fn next_bit(words: &[u64], from: u64, end: u64, wanted: bool) -> Option<u64> {
    let mut frame = from;
    while frame < end {
        let Some(word) = usize::try_from(frame / 64).ok().and_then(|index| words.get(index)) else {
            return (!wanted).then_some(frame);
        };
        let word = if wanted { *word } else { !*word };
        let rest = word >> (frame % 64);
        if rest != 0 {
            let found = frame + u64::from(rest.trailing_zeros());
            return (found < end).then_some(found);
        }
        frame = (frame / 64 + 1) * 64;
    }
    None
}

/// Runs from whether each frame of a row, beginning with `first`, has a page; rows in any order.
#[derive(Clone, Debug, Default)]
pub struct RunFinder {
    runs: Vec<FrameRun>,
}

impl RunFinder {
    /// Takes the frames of one row.
    pub fn add(&mut self, first: u64, there: impl IntoIterator<Item = bool>) {
        for (frame, there) in (first..).zip(there) {
            if !there {
                continue;
            }
            match self.runs.last_mut() {
                Some(run) if run.end() == frame => run.frames += 1,
                _ => self.runs.push(FrameRun { first: frame, frames: 1 }),
            }
        }
    }

    /// Frames with a page so far.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.frames).sum()
    }

    /// The map; an error if it has more regions than a layout may have.
    pub fn finish(mut self) -> Result<FrameMap, String> {
        self.runs.sort_unstable_by_key(|run| run.first);
        self.runs.dedup_by(|next, last| {
            let touches = last.end() == next.first;
            if touches {
                last.frames += next.frames;
            }
            touches
        });
        if self.runs.len() > MAX_REGIONS {
            return Err(format!(
                "its memory lies in {} pieces; {MAX_REGIONS} are possible: start the domain without memory ballooning \
                 (maxmem equal to memory)",
                self.runs.len()
            ));
        }
        Ok(FrameMap::new(self.runs))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map_of(there: &[bool]) -> FrameMap {
        let mut finder = RunFinder::default();
        // In two pieces, as batches come, the later one first.
        let (one, two) = there.split_at(there.len() / 2);
        finder.add(one.len() as u64, two.iter().copied());
        finder.add(0, one.iter().copied());
        assert_eq!(finder.pages(), there.iter().filter(|there| **there).count() as u64);
        finder.finish().unwrap()
    }

    proptest! {
        #[test]
        fn frames_and_pages_name_each_other(there in prop::collection::vec(any::<bool>(), 0..300)) {
            let map = map_of(&there);
            let frames: Vec<u64> = (0..there.len() as u64).filter(|frame| there[*frame as usize]).collect();
            prop_assert_eq!(map.pages(), frames.len() as u64);
            for (page, frame) in frames.iter().enumerate() {
                prop_assert_eq!(map.page(*frame), Some(PageIndex(page as u64)));
                prop_assert_eq!(map.frame(PageIndex(page as u64)), Some(*frame));
            }
            prop_assert_eq!(map.frame(PageIndex(map.pages())), None);
            prop_assert_eq!(map.page(there.len() as u64), None);
            prop_assert_eq!(FrameMap::of_layout(&map.layout()), Some(map));
        }

        #[test]
        fn extents_are_the_pages_whose_bit_is_set(
            there in prop::collection::vec(prop::bool::weighted(0.8), 1..400),
            dirty in prop::collection::vec(prop::bool::weighted(0.4), 1..400),
            cut in 0usize..8,
        ) {
            let map = map_of(&there);
            let mut words = vec![0u64; dirty.len().div_ceil(64)];
            for (frame, _) in dirty.iter().enumerate().filter(|(_, dirty)| **dirty) {
                words[frame / 64] |= 1 << (frame % 64);
            }
            words.truncate(cut);
            let is_dirty = |frame: u64| {
                frame < 64 * words.len() as u64 && dirty.get(frame as usize).copied().unwrap_or(false)
            };
            let mut extents = vec![Extent { first: PageIndex(0), pages: 0 }];
            map.extents(&words, &mut extents);
            let mut pages = Vec::new();
            let mut after = None;
            for extent in &extents[1..] {
                prop_assert!(extent.pages > 0);
                prop_assert!(after.is_none_or(|after| extent.first.0 > after), "extents touch or overlap");
                after = Some(extent.first.0 + extent.pages);
                pages.extend(extent.first.0..extent.first.0 + extent.pages);
            }
            let expected: Vec<u64> = (0..map.pages())
                .filter(|page| is_dirty(map.frame(PageIndex(*page)).unwrap()))
                .collect();
            prop_assert_eq!(pages, expected);
        }
    }

    #[test]
    fn layouts_of_others_are_told_apart() {
        let layout = |regions: &[(&str, u64)]| GuestLayout {
            regions: regions
                .iter()
                .map(|(name, pages)| Region { name: (*name).into(), pages: *pages })
                .collect(),
        };
        assert!(FrameMap::of_layout(&layout(&[("gfn 0x0", 3), ("gfn 0xff", 1)])).is_some());
        for wrong in [
            &[("ram", 3)][..],
            &[("gfn 0xzz", 3)],
            &[("gfn 0x0", 0)],
            &[("gfn 0x10", 3), ("gfn 0x12", 1)],
            &[("gfn 0xffffffffffffffff", 3)],
        ] {
            assert_eq!(FrameMap::of_layout(&layout(wrong)), None, "{wrong:?}");
        }
    }

    #[test]
    fn memory_in_too_many_pieces_is_refused() {
        let mut finder = RunFinder::default();
        finder.add(0, (0..2 * MAX_REGIONS as u64 + 2).map(|frame| frame % 2 == 0));
        assert!(finder.finish().unwrap_err().contains("pieces"));
    }
}
