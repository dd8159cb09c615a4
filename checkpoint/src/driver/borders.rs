//! Where the regions of a guest lie among its pages.

use std::ops::Range;

use crate::layout::GuestLayout;

/// Where each region ends, in pages; the last end is P.
#[derive(Clone, Debug)]
pub(super) struct Borders {
    ends: Vec<u64>,
}

impl Borders {
    pub fn new(layout: &GuestLayout) -> Self {
        let mut end = 0;
        let ends = layout.regions.iter().map(|region| {
            end += region.pages;
            end
        });
        Self { ends: ends.collect() }
    }

    /// The region of a page: its index and its pages; `None` beyond the guest.
    pub fn find(&self, page: u64) -> Option<(usize, Range<u64>)> {
        let index = self.ends.partition_point(|end| *end <= page);
        let first = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((index, first..*self.ends.get(index)?))
    }

    /// As [`find`](Self::find), for a page of the guest: its index, its first page, the page after its
    /// last.
    ///
    /// # Panics
    /// If the guest has no such page.
    pub fn region(&self, page: u64) -> (usize, u64, u64) {
        let (index, pages) = self.find(page).expect("a page of the guest");
        (index, pages.start, pages.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Region;

    #[test]
    fn each_page_lies_in_one_region() {
        let region = |name: &str, pages| Region { name: name.into(), pages };
        let borders = Borders::new(&GuestLayout { regions: vec![region("low", 3), region("high", 2)] });
        let found: Vec<_> = (0..6).map(|page| borders.find(page)).collect();
        let (low, high) = (Some((0, 0..3)), Some((1, 3..5)));
        assert_eq!(found, [low.clone(), low.clone(), low, high.clone(), high, None]);
        assert_eq!(borders.region(4), (1, 3, 5));
        assert_eq!(borders.find(u64::MAX), None);
    }
}
