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

/// Hands out the writes of [`Pace::PerSecond`], by the guest's running time.
#[derive(Clone, Copy, Debug)]
struct Pacer {
    /// Running time before this has been handed out; later by every pause since.
    handed_out: Instant,
}

impl Pacer {
    fn new(now: Instant) -> Self {
        Self { handed_out: now }
    }

    /// The writes of the running time up to now; `None` while a step goes on.
    fn due(&mut self, rate: u64, now: Instant) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.handed_out);
        let count = (rate as f64 * elapsed.as_secs_f64()) as u64;
        if elapsed < PACE_STEP || count == 0 {
            return None;
        }
        // What is left of a write counts for the next.
        self.handed_out += Duration::from_secs_f64(count as f64 / rate as f64);
        Some(count)
    }

    /// The guest stood still. What it had run of a step before counts when it goes on: else intervals
    /// not much longer than a step would leave nothing to write.
    fn stood_still(&mut self, from: Instant, to: Instant) {
        self.handed_out += to.saturating_duration_since(from);
    }
}

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
        let mut pacer = Pacer::new(Instant::now());
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
                let parked = Instant::now();
                self.park(matches!(pace, Pace::PerEpoch(_)).then_some(last_resume));
                pacer.stood_still(parked, Instant::now());
                continue;
            }
            match pace {
                Pace::Unlimited => budget = 1,
                Pace::PerResume(_) | Pace::PerEpoch(_) => {}
                Pace::PerSecond(rate) => {
                    // What a slow machine did not manage in a step is not made up for.
                    budget = pacer.due(rate, Instant::now()).unwrap_or(budget);
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

    /// Writes handed out in a second of running time that is cut into pieces by pauses as long, looked
    /// at `looks` times in each piece.
    fn handed_out(rate: u64, run: Duration, looks: u32) -> u64 {
        let mut now = Instant::now();
        let mut pacer = Pacer::new(now);
        let mut written = 0;
        for _ in 0..Duration::from_secs(1).as_nanos() / run.as_nanos() {
            for _ in 0..looks {
                now += run / looks;
                written += pacer.due(rate, now).unwrap_or(0);
            }
            pacer.stood_still(now, now + run);
            now += run;
        }
        written
    }

    #[test]
    fn paced_writing_goes_by_running_time_however_short_its_pieces() {
        for (run_us, looks) in
            [(1_000_000, 4000), (10_000, 7), (1000, 1), (1000, 3), (999, 1), (300, 2), (10, 1)]
        {
            for rate in [500, 1000, 12_345, 1_000_000] {
                let written = handed_out(rate, Duration::from_micros(run_us), looks);
                // The last step may not be over.
                let open = rate / 1000 + 1;
                let pieces = 1_000_000 / run_us * run_us;
                let all = rate * pieces / 1_000_000;
                let most = all + 1;
                assert!(
                    (all.saturating_sub(open)..=most).contains(&written),
                    "{written} of {all} at {rate}/s in pieces of {run_us} us"
                );
            }
        }
    }

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
