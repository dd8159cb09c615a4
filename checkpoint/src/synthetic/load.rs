//! What a synthetic guest's writers do.

use super::page::mix;

/// Which pages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// All pages alike, at random.
    Uniform,
    /// `percent` of the writes go to the first `pages` pages, the rest to all alike.
    HotSet {
        /// Size of the hot set, in pages.
        pages: u64,
        /// Share of the writes that go there.
        percent: u8,
    },
    /// Page ranks by Zipf's law with exponent 1: the k-th most popular page is written 1/k as often
    /// as the first. Popular pages are scattered over the guest.
    Zipf,
    /// One page after another, around and around.
    Sequential,
    /// Every page once before any comes again, in long strides: so many writes are as many dirty
    /// pages, none beside another.
    Strided,
    /// The first `pages` pages in an order drawn once, around and around: as many writes as there
    /// are pages in it, or fewer, never touch a page twice.
    Shuffled {
        /// Size of the set, in pages.
        pages: u64,
    },
}

/// How much of a page a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// All of it.
    Whole,
    /// A few words at both ends: a cheap way to make a page dirty.
    Touch,
}

/// How fast the writers write, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Not at all.
    Idle,
    /// So many pages a second of running time.
    PerSecond(u64),
    /// So many pages after each resume, as fast as they can; then nothing until the next one.
    PerResume(u64),
    /// As [`PerResume`](Self::PerResume), and a pause comes only after all of them: each epoch has
    /// exactly these writes, however fast the machine is.
    PerEpoch(u64),
    /// As fast as they can.
    Unlimited,
}

/// Chooses pages for one writer, which alone writes `first..first + pages`.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    pattern: Pattern,
    first: u64,
    pages: u64,
    state: u64,
    /// See [`stride`].
    stride: u64,
    /// The order of [`Pattern::Shuffled`], else empty.
    order: Vec<u32>,
}

impl Chooser {
    pub fn new(pattern: Pattern, first: u64, pages: u64, seed: u64) -> Self {
        let mut chooser = Self {
            pattern,
            first,
            pages,
            state: mix(seed ^ first),
            stride: stride(pages),
            order: Vec::new(),
        };
        if let Pattern::Shuffled { pages: set } = pattern {
            let set = set.min(pages).min(u64::from(u32::MAX)) as u32;
            let mut order: Vec<u32> = (0..set).collect();
            (1..order.len()).rev().for_each(|last| {
                order.swap(last, chooser.random(last as u64 + 1) as usize);
            });
            chooser.order = order;
        }
        chooser
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mix(self.state)) * u128::from(below)) >> 64) as u64
    }

    /// The next page to write.
    pub fn next(&mut self) -> u64 {
        let within = match self.pattern {
            Pattern::Uniform => self.random(self.pages),
            Pattern::HotSet { pages, percent } => {
                let hot = self.random(100) < u64::from(percent);
                let below = if hot { pages.clamp(1, self.pages) } else { self.pages };
                self.random(below)
            }
            Pattern::Zipf => {
                // The continuous law 1/x between 1 and n + 1, rounded down.
                let share = self.random(1 << 53) as f64 / (1u64 << 53) as f64;
                let rank = ((self.pages + 1) as f64).powf(share) as u64 - 1;
                let scattered = u128::from(rank.min(self.pages - 1)) * u128::from(self.stride);
                (scattered % u128::from(self.pages)) as u64
            }
            Pattern::Sequential => {
                self.state = self.state.wrapping_add(1);
                self.state % self.pages
            }
            Pattern::Strided => {
                self.state = (self.state % self.pages + self.stride) % self.pages;
                self.state
            }
            Pattern::Shuffled { .. } => {
                self.state = self.state.wrapping_add(1);
                u64::from(self.order[(self.state % self.order.len() as u64) as usize])
            }
        };
        self.first + within
    }
}

/// A step that visits all of so many pages: near the golden section, without a common divisor.
fn stride(pages: u64) -> u64 {
    let golden = (pages as f64 * 0.618_033_988_75) as u64;
    (golden.max(1)..).find(|step| common_divisor(*step, pages) == 1).unwrap_or(1)
}

fn common_divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { common_divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_visit_every_page_once_and_never_a_neighbour() {
        for pages in [1, 2, 3, 100, 4096, 6561, 262_144] {
            let mut chooser = Chooser::new(Pattern::Strided, 10, pages, 7);
            let mut seen = vec![false; pages as usize];
            let mut last = u64::MAX;
            for _ in 0..pages {
                let page = chooser.next() - 10;
                assert!(!std::mem::replace(&mut seen[page as usize], true), "{page} of {pages} twice");
                assert!(pages < 100 || last.abs_diff(page) > 1, "{last} and {page} of {pages}");
                last = page;
            }
        }
    }

    #[test]
    fn popularity_falls_as_zipf_says() {
        let pages = 1000;
        let mut chooser = Chooser::new(Pattern::Zipf, 0, pages, 3);
        let mut hits = vec![0u32; pages as usize];
        (0..1_000_000).for_each(|_| hits[chooser.next() as usize] += 1);
        let rank = |k: u64| f64::from(hits[(k * stride(pages) % pages) as usize]);
        // P(k) = ln((k + 2) / (k + 1)) / ln(n + 1), with ranks from 0.
        for k in [0, 1, 9, 99] {
            let expected = 1e6 * ((k + 2) as f64 / (k + 1) as f64).ln() / ((pages + 1) as f64).ln();
            assert!((rank(k) / expected - 1.0).abs() < 0.1, "rank {k}: {} of {expected}", rank(k));
        }
        assert!(hits.iter().all(|hits| *hits > 0));
    }

    #[test]
    fn a_shuffled_set_is_walked_through_without_repetition() {
        let mut chooser = Chooser::new(Pattern::Shuffled { pages: 30 }, 100, 50, 7);
        let mut seen = [0u32; 50];
        let walk: Vec<u64> = (0..60).map(|_| chooser.next()).collect();
        walk.iter().for_each(|page| seen[(page - 100) as usize] += 1);
        assert!(seen[..30].iter().all(|count| *count == 2) && seen[30..].iter().all(|count| *count == 0));
        assert!(walk[..30].windows(2).any(|pair| pair[1] != pair[0] + 1));
    }

    #[test]
    fn every_pattern_stays_within_the_writers_pages() {
        let hot = Pattern::HotSet { pages: 4, percent: 90 };
        for pattern in [Pattern::Uniform, hot, Pattern::Sequential, Pattern::Strided, Pattern::Zipf] {
            let mut chooser = Chooser::new(pattern, 100, 50, 1);
            let mut hits = [0u32; 50];
            (0..5000).for_each(|_| hits[(chooser.next() - 100) as usize] += 1);
            let hot_hits: u32 = hits[..4].iter().sum();
            match pattern {
                Pattern::HotSet { .. } => assert!(hot_hits > 4000),
                Pattern::Zipf => assert!(hits.iter().all(|hits| *hits > 10)),
                _ => assert!(hits.iter().all(|hits| *hits > 20)),
            }
        }
    }
}
