//! Which page is in which spare frame, both ways.

/// Frames an arena may have at most (16 TiB of them): page and spare numbers are kept in 32 bits.
pub const MAX_FRAMES: u64 = u32::MAX as u64;

/// Neighbouring pages share a cache line of the table.
const GROUP_BITS: u32 = 4;

/// A one-to-one relation between displaced pages and the spare frames that hold them.
///
/// There are never more displaced pages than spares, so the memory is proportional to the
/// spares: 4 bytes for the page in each, and an open-addressed table from page to spare with at
/// most half of its 4-byte entries in use. Fixed at construction: nothing here allocates later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Displaced {
    /// Of a spare that holds one: its page. Otherwise 0.
    page_of: Vec<u32>,
    /// Spare number plus one; 0 is an empty entry.
    table: Vec<u32>,
    count: u64,
}

impl Displaced {
    /// No page is displaced.
    ///
    /// # Panics
    /// If the numbers do not fit 32 bits; a shape from a peer is checked before.
    pub fn new(pages: u64, spares: u64) -> Self {
        assert!(
            pages.checked_add(spares).is_some_and(|frames| frames <= MAX_FRAMES),
            "{pages} pages and {spares} spares exceed {MAX_FRAMES} frames"
        );
        let entries = (spares.max(1) * 2).next_power_of_two().max(1 << (GROUP_BITS + 1));
        Self { page_of: vec![0; spares as usize], table: vec![0; entries as usize], count: 0 }
    }

    /// How many pages are displaced.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The page in a spare that is known to hold one.
    pub fn page_in(&self, spare: u64) -> u64 {
        u64::from(self.page_of[spare as usize])
    }

    /// The spare that holds a page.
    pub fn spare_of(&self, page: u64) -> Option<u64> {
        self.find(page).map(|(_, spare)| spare)
    }

    /// Puts a page into a spare that holds none; returns the spare that held the page before.
    pub fn put(&mut self, page: u64, spare: u64) -> Option<u64> {
        let old = match self.find(page) {
            Some((entry, old)) => {
                self.table[entry] = spare as u32 + 1;
                self.page_of[old as usize] = 0;
                Some(old)
            }
            None => {
                let mut entry = self.preferred(page);
                while self.table[entry] != 0 {
                    entry = self.after(entry);
                }
                self.table[entry] = spare as u32 + 1;
                self.count += 1;
                None
            }
        };
        self.page_of[spare as usize] = page as u32;
        old
    }

    /// The page is displaced no more; returns the spare that held it.
    pub fn remove(&mut self, page: u64) -> Option<u64> {
        let (mut hole, spare) = self.find(page)?;
        // Entries behind the hole that could not be had earlier move up, so that a search may
        // always end at the first empty entry.
        let mut entry = hole;
        loop {
            entry = self.after(entry);
            let Some(at) = self.table[entry].checked_sub(1) else { break };
            let preferred = self.preferred(u64::from(self.page_of[at as usize]));
            let mask = self.table.len() - 1;
            if entry.wrapping_sub(preferred) & mask >= entry.wrapping_sub(hole) & mask {
                self.table[hole] = self.table[entry];
                hole = entry;
            }
        }
        self.table[hole] = 0;
        self.page_of[spare as usize] = 0;
        self.count -= 1;
        Some(spare)
    }

    /// All displaced pages with their spares, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.table
            .iter()
            .filter_map(|entry| entry.checked_sub(1))
            .map(|spare| (self.page_in(u64::from(spare)), u64::from(spare)))
    }

    fn find(&self, page: u64) -> Option<(usize, u64)> {
        let mut entry = self.preferred(page);
        loop {
            let spare = self.table[entry].checked_sub(1)?;
            if u64::from(self.page_of[spare as usize]) == page {
                return Some((entry, u64::from(spare)));
            }
            entry = self.after(entry);
        }
    }

    fn preferred(&self, page: u64) -> usize {
        let group_index_bits = self.table.len().trailing_zeros() - GROUP_BITS;
        let group = (page >> GROUP_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - group_index_bits);
        ((group << GROUP_BITS) | (page & ((1 << GROUP_BITS) - 1))) as usize
    }

    fn after(&self, entry: usize) -> usize {
        (entry + 1) & (self.table.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0u64..40, 0u64..24, any::<bool>()), 0..200)) {
            // Pages far apart and near, so that groups and collisions both occur.
            let page = |number: u64| if number < 20 { number } else { number * 0x1357 };
            let mut displaced = Displaced::new(1 << 20, 24);
            let mut model = BTreeMap::new();
            for (number, spare, insert) in steps {
                let page = page(number);
                if insert {
                    if !model.values().any(|held| *held == spare) {
                        prop_assert_eq!(displaced.put(page, spare), model.insert(page, spare));
                    }
                } else {
                    prop_assert_eq!(displaced.remove(page), model.remove(&page));
                }
                prop_assert_eq!(displaced.count(), model.len() as u64);
                for number in 0..40 {
                    let page = if number < 20 { number } else { number * 0x1357 };
                    prop_assert_eq!(displaced.spare_of(page), model.get(&page).copied());
                }
            }
            let mut all: Vec<_> = displaced.iter().collect();
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
