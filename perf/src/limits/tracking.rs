//! Dirty tracking on memory of this process: the scan of clean memory, the scan that finds pages and
//! protects them again, and the first write to a protected page.

use std::time::Instant;

use romulus_checkpoint::driver::shared_mapping;
use romulus_host::tracking::DirtyTracker;
use romulus_transport::Memory;

use super::command::{Found, LimitsCommand, fits};
use crate::bandwidth::touch;
use crate::epochs::write_protect_tracker;
use crate::exit::{Failure, OrFail};
use crate::results::{Better, Labels, Measurement, Sampled, names};

const PAGE_BYTES: usize = 4096;
/// Pages that are written, at the most a tenth of all.
const DIRTY_PAGES: u64 = 10_000;

/// One repetition, in microseconds.
struct Times {
    clean: f64,
    dirty: f64,
    /// Writing the pages when they are protected, and when they no longer are.
    first_write: f64,
    second_write: f64,
}

/// Measures all of it.
pub fn measure(command: &LimitsCommand, found: &mut Found) -> Result<(), Failure> {
    for mib in &command.tracked_mib {
        match fits(mib << 20) {
            Ok(()) => measure_one(*mib, command.rounds, found)?,
            Err(why) => found.note(format!("tracking of {mib} MiB: {why}")),
        }
    }
    Ok(())
}

fn measure_one(mib: u64, rounds: u64, found: &mut Found) -> Result<(), Failure> {
    let memory = shared_mapping((mib << 20) as usize).or_fail(format!("mapping {mib} MiB"))?;
    touch(&memory);
    let mut tracker = write_protect_tracker(std::slice::from_ref(&memory)).or_fail("tracking")?;
    tracker.start().or_fail("tracking")?;
    let pages = memory.len_bytes() / PAGE_BYTES;
    let dirty_pages = DIRTY_PAGES.min(pages as u64 / 10).max(1);
    let times: Vec<Times> = (0..rounds)
        .map(|round| once(&memory, &mut *tracker, dirty_pages as usize, round as usize))
        .collect::<Result<_, _>>()?;
    let gib = mib as f64 / 1024.0;
    let labels = Labels::default().with("guest_mib", mib);
    let mut push = |name: &str, labels: &Labels, unit: &str, each: &dyn Fn(&Times) -> f64| {
        found.push(Measurement::new(name, labels, unit, Better::Lower, Sampled::of(times.iter().map(each))));
    };
    push(names::PAGE_SCAN_US_PER_GIB, &labels.clone().with("dirty_pages", 0u64), "us/GiB", &|t| {
        t.clean / gib
    });
    let labels = labels.with("dirty_pages", dirty_pages);
    push(names::WRITE_PROTECT_US_PER_GIB, &labels, "us/GiB", &|times| times.dirty / gib);
    let each = dirty_pages as f64;
    push("write_protect_us_per_page", &labels, "us", &|times| (times.dirty - times.clean) / each);
    push("first_write_us_per_page", &labels, "us", &|times| (times.first_write - times.second_write) / each);
    Ok(())
}

fn once(
    memory: &Memory,
    tracker: &mut dyn DirtyTracker,
    dirty: usize,
    round: usize,
) -> Result<Times, Failure> {
    let pages = memory.len_bytes() / PAGE_BYTES;
    let step = (pages / dirty).max(1);
    let write = || {
        let begun = Instant::now();
        // Other pages each time, none beside another where there is room.
        (0..dirty)
            .for_each(|index| memory.write((index * step + round % step) * PAGE_BYTES, &[round as u8; 8]));
        begun.elapsed().as_secs_f64() * 1e6
    };
    let mut collect = |expected: usize| {
        let mut extents = Vec::with_capacity(expected);
        let begun = Instant::now();
        tracker.collect_stopped(&mut extents).or_fail("scanning")?;
        let us = begun.elapsed().as_secs_f64() * 1e6;
        let seen: u64 = extents.iter().map(|extent| extent.pages).sum();
        match seen == expected as u64 {
            true => Ok(us),
            false => Err(Failure::failed(format!("{expected} pages written, {seen} found"))),
        }
    };
    let clean = collect(0)?;
    let (first_write, second_write) = (write(), write());
    Ok(Times { clean, dirty: collect(dirty)?, first_write, second_write })
}
