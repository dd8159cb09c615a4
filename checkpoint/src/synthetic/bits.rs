//! A set of pages that many threads add to and one takes from: a bit a page, and above it a bit for
//! each word that may hold any, so that taking costs little however large the guest is.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

use crate::extent::Extent;
use crate::ids::PageIndex;

/// So many zeros, in memory that the system backs only where it is written.
pub(super) fn zeros(count: u64) -> Vec<AtomicU64> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    AtomicU64::new_vec_zeroed(count).unwrap_or_else(|_| panic!("no address space for {count} numbers"))
}

/// The set.
#[derive(Debug)]
pub(super) struct Bits {
    words: Vec<AtomicU64>,
    summary: Vec<AtomicU64>,
}

impl Bits {
    /// An empty set of so many pages at the most.
    pub fn new(pages: u64) -> Self {
        let words = pages.div_ceil(64);
        Self { words: zeros(words), summary: zeros(words.div_ceil(64)) }
    }

    /// Adds a page.
    pub fn add(&self, page: u64) {
        let word = page / 64;
        // The bit before the one above it: who takes the upper one finds the lower.
        self.words[word as usize].fetch_or(1 << (page % 64), Ordering::Release);
        self.summary[(word / 64) as usize].fetch_or(1 << (word % 64), Ordering::AcqRel);
    }

    /// Appends all pages in order and empties the set.
    pub fn take(&self, into: &mut Vec<Extent>) {
        self.visit(into, true);
    }

    /// Appends all pages in order.
    pub fn list(&self, into: &mut Vec<Extent>) {
        self.visit(into, false);
    }

    fn visit(&self, into: &mut Vec<Extent>, take: bool) {
        let get = |word: &AtomicU64| match take {
            // Reading first keeps the line shared where there is nothing to take.
            true if word.load(Ordering::Relaxed) == 0 => 0,
            true => word.swap(0, Ordering::AcqRel),
            false => word.load(Ordering::Acquire),
        };
        for (index, summary) in self.summary.iter().enumerate() {
            let mut words = get(summary);
            while words != 0 {
                let word = index * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                push_word(into, word as u64 * 64, get(&self.words[word]));
            }
        }
    }
}

fn push_word(into: &mut Vec<Extent>, base: u64, mut bits: u64) {
    while bits != 0 {
        let first = bits.trailing_zeros();
        let pages = (bits >> first).trailing_ones();
        push(into, base + u64::from(first), u64::from(pages));
        bits &= !((u64::MAX >> (64 - pages)) << first);
    }
}

fn push(into: &mut Vec<Extent>, first: u64, pages: u64) {
    match into.last_mut() {
        Some(last) if last.first.0 + last.pages == first => last.pages += pages,
        _ => into.push(Extent { first: PageIndex(first), pages }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_once_and_listed_as_often_as_wanted() {
        let bits = Bits::new(1 << 20);
        let pages = [0, 1, 63, 64, 4095, 4096, 300_000, (1 << 20) - 1];
        pages.iter().for_each(|page| bits.add(*page));
        let flat = |extents: &[Extent]| -> Vec<u64> {
            extents.iter().flat_map(|extent| extent.first.0..extent.first.0 + extent.pages).collect()
        };
        for _ in 0..2 {
            let mut listed = Vec::new();
            bits.list(&mut listed);
            assert_eq!(flat(&listed), pages);
            assert_eq!(listed.len(), 5);
        }
        let (mut taken, mut again) = (Vec::new(), Vec::new());
        bits.take(&mut taken);
        bits.take(&mut again);
        assert_eq!((flat(&taken), again), (pages.to_vec(), vec![]));
    }

    #[test]
    fn no_page_added_meanwhile_is_lost() {
        let bits = Bits::new(1 << 14);
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut counts = vec![0u32; 1 << 14];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..1 << 14).for_each(|page| bits.add(page * 7919 % (1 << 14)));
                done.store(true, Ordering::Release);
            });
            loop {
                let last = done.load(Ordering::Acquire);
                let mut taken = Vec::new();
                bits.take(&mut taken);
                for extent in taken {
                    (extent.first.0..extent.first.0 + extent.pages)
                        .for_each(|page| counts[page as usize] += 1);
                }
                if last {
                    break;
                }
            }
        });
        assert!(counts.iter().all(|count| *count == 1));
    }
}
