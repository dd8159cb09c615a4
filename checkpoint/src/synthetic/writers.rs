//! The writer threads: they write, report what they wrote, and park when the guest is paused.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use romulus_transport::Memory;

use super::bits::{Bits, zeros};
use super::load::{Chooser, Fill, Pace, Pattern};
use super::page::{digest_of, write_page};
use crate::PAGE_BYTES;
use crate::driver::signal::Signal;
use crate::extent::Extent;

/// Length of a step of paced writing.
const PACE_STEP: Duration = Duration::from_millis(1);
/// Longest sleep of a writer; it is woken anyway.
const SLEEP: Duration = Duration::from_millis(200);

/// What the threads and the guest share.
#[derive(Debug)]
pub(super) struct World {
    pub regions: Vec<Memory>,
    /// First page of each region, and the number of all pages at the end.
    pub borders: Vec<u64>,
    pub fill: Fill,
    dirty: Bits,
    /// Pages ever written.
    populated: Bits,
    /// The version of each page.
    versions: Vec<AtomicU64>,
    pub writes: AtomicU64,
    pub digest: AtomicU64,
    pub paused: AtomicBool,
    /// Counts resumes; the first is 0, before any.
    pub resumes: AtomicU64,
    /// Pages to write beyond the pace.
    pub burst: AtomicU64,
    pub stop: AtomicBool,
    parked: AtomicUsize,
    /// Writers that have done what [`Pace::PerEpoch`] gives them, counted over all resumes.
    quotas_done: AtomicU64,
    /// Something for the writers changed.
    pub wake_writers: Signal,
    /// A writer has parked.
    pub has_parked: Signal,
}

impl World {
    pub fn new(regions: Vec<Memory>, fill: Fill) -> Self {
        let mut borders = vec![0];
        for region in &regions {
            borders.push(borders[borders.len() - 1] + region.len_bytes() as u64 / PAGE_BYTES);
        }
        let pages = borders[borders.len() - 1];
        Self {
            regions,
            borders,
            fill,
            dirty: Bits::new(pages),
            populated: Bits::new(pages),
            versions: zeros(pages),
            writes: AtomicU64::new(0),
            digest: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            resumes: AtomicU64::new(0),
            burst: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            quotas_done: AtomicU64::new(0),
            wake_writers: Signal::new(Duration::ZERO),
            has_parked: Signal::new(Duration::ZERO),
        }
    }

    pub fn pages(&self) -> u64 {
        self.versions.len() as u64
    }

    /// Writes the next version of a page. Only one thread writes a page at a time.
    pub fn write(&self, page: u64) {
        let region = self.borders.partition_point(|first| *first <= page) - 1;
        let offset = (page - self.borders[region]) * PAGE_BYTES;
        let old = self.versions[page as usize].load(Ordering::Relaxed);
        write_page(&self.regions[region], offset as usize, page, old + 1, self.fill);
        self.versions[page as usize].store(old + 1, Ordering::Relaxed);
        let change = digest_of(page, old + 1).wrapping_sub(digest_of(page, old));
        self.digest.fetch_add(change, Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
        // After the write: a page that is collected and read in between comes again.
        if old == 0 {
            self.populated.add(page);
        }
        self.dirty.add(page);
    }

    /// Appends the dirty pages and forgets them.
    pub fn collect(&self, into: &mut Vec<Extent>) {
        self.dirty.take(into);
    }

    /// Appends the pages that were ever written.
    pub fn populated(&self, into: &mut Vec<Extent>) {
        self.populated.list(into);
    }

    /// Waits until `writers` writers are parked, and have done their quota for each resume if
    /// `pace` gives them one.
    pub fn wait_parked(&self, writers: usize, pace: Pace) {
        let quotas = match pace {
            Pace::PerEpoch(_) => writers as u64 * (self.resumes.load(Ordering::Acquire) + 1),
            _ => 0,
        };
        loop {
            let seen = self.has_parked.seen();
            let done = self.quotas_done.load(Ordering::Acquire) >= quotas;
            if done && self.parked.load(Ordering::Acquire) == writers {
                return;
            }
            self.has_parked.wait(seen, SLEEP);
        }
    }

    /// Waits for the end of the pause, or for a quota of a later resume than `done`.
    fn park(&self, done: Option<u64>) {
        self.parked.fetch_add(1, Ordering::AcqRel);
        self.has_parked.notify();
        loop {
            let seen = self.wake_writers.seen();
            let has_quota = done.is_some_and(|done| self.resumes.load(Ordering::Acquire) != done);
            if has_quota || !self.paused.load(Ordering::Acquire) || self.stop.load(Ordering::Acquire) {
                break;
            }
            self.wake_writers.wait(seen, SLEEP);
        }
        self.parked.fetch_sub(1, Ordering::AcqRel);
    }

    fn take_burst(&self) -> bool {
        self.burst.load(Ordering::Acquire) > 0
            && self
                .burst
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1))
                .is_ok()
    }

    /// A writer that shares `pages` with nobody.
    pub fn run_writer(&self, first: u64, pages: u64, pattern: Pattern, pace: Pace, seed: u64) {
        let mut chooser = Chooser::new(pattern, first, pages, seed);
        let mut last_resume = u64::MAX;
        let mut budget = 0;
        let mut step_began = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let seen = self.wake_writers.seen();
            if let Pace::PerResume(count) | Pace::PerEpoch(count) = pace {
                let resume = self.resumes.load(Ordering::Acquire);
                if resume != last_resume {
                    last_resume = resume;
                    budget = if pages > 0 { count } else { 0 };
                    if budget == 0 {
                        self.quotas_done.fetch_add(1, Ordering::AcqRel);
                    }
                }
            }
            let unfinished = matches!(pace, Pace::PerEpoch(_)) && budget > 0;
            if self.paused.load(Ordering::Acquire) && !unfinished {
                self.park(matches!(pace, Pace::PerEpoch(_)).then_some(last_resume));
                step_began = Instant::now();
                continue;
            }
            match pace {
                Pace::Unlimited => budget = 1,
                Pace::PerResume(_) | Pace::PerEpoch(_) => {}
                Pace::PerSecond(rate) => {
                    let elapsed = step_began.elapsed();
                    if elapsed >= PACE_STEP {
                        // What a slow machine did not manage in a step is not made up for.
                        budget = (rate as f64 * elapsed.as_secs_f64()) as u64;
                        step_began = Instant::now();
                    }
                }
                Pace::Idle => {}
            }
            if pages > 0 && (budget > 0 || self.take_burst()) {
                self.write(chooser.next());
                if budget > 0 {
                    budget -= 1;
                    self.quotas_done.fetch_add(u64::from(budget == 0), Ordering::AcqRel);
                }
            } else {
                let sleep = if matches!(pace, Pace::PerSecond(_)) { PACE_STEP } else { SLEEP };
                self.wake_writers.wait(seen, sleep);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageIndex;

    #[test]
    fn dirty_pages_are_collected_once_as_extents() {
        let world = World::new(vec![Memory::anonymous(70 * 4096), Memory::anonymous(80 * 4096)], Fill::Touch);
        for page in [0, 1, 63, 64, 65, 100, 69, 70, 149] {
            world.write(page);
        }
        let mut found = Vec::new();
        world.collect(&mut found);
        let found: Vec<_> = found.iter().map(|extent| (extent.first.0, extent.pages)).collect();
        assert_eq!(found, [(0, 2), (63, 3), (69, 2), (100, 1), (149, 1)]);
        let mut again = Vec::new();
        world.collect(&mut again);
        assert_eq!(again, []);
        (0..64).for_each(|page| world.write(page));
        world.collect(&mut again);
        assert_eq!(again, [Extent { first: PageIndex(0), pages: 64 }]);
    }
}
