//! memcpy: by threads, of scattered pages and of large blocks.

use std::time::{Duration, Instant};

use romulus_transport::Memory;

use super::command::{Found, LimitsCommand, fits};
use crate::bandwidth::limits::plain::touched;
use crate::exit::Failure;
use crate::results::{Better, Labels, Measurement, Sampled, names};

/// Sizes of a copy: a page, and where starting a copy costs nothing any more.
const SIZES: [u64; 2] = [4 << 10, 1 << 20];

/// Measures all of it.
pub fn measure(command: &LimitsCommand, found: &mut Found) -> Result<(), Failure> {
    let window_bytes = command.window_mib << 20;
    fits(2 * window_bytes).map_err(Failure::failed)?;
    let (from, into) = (touched(window_bytes)?, touched(window_bytes)?);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in 1..=cores {
        for size_bytes in SIZES.into_iter().filter(|size| *size <= window_bytes / threads as u64) {
            let once = |_| bandwidth(&from, &into, threads, size_bytes as usize, command.time());
            let labels = Labels::default()
                .with("threads", threads as u64)
                .with("size_bytes", size_bytes)
                .with("scattered", size_bytes == SIZES[0]);
            let value = Sampled::of((0..command.rounds).map(once));
            found.push(Measurement::new(names::MEMCPY_BANDWIDTH, &labels, "MB/s", Better::Higher, value));
        }
    }
    Ok(())
}

/// Millions of bytes a second that threads copy, each in a part of its own, from scattered places to
/// places one after the other: as an epoch is copied to staging.
fn bandwidth(from: &Memory, into: &Memory, threads: usize, size_bytes: usize, time: Duration) -> f64 {
    let part_bytes = from.len_bytes() / threads / size_bytes * size_bytes;
    let begun = Instant::now();
    let copied: usize = std::thread::scope(|scope| {
        let work = |index: usize| {
            let part = |memory: &Memory| memory.part(index * part_bytes, part_bytes);
            let (from, into) = (part(from), part(into));
            move || copy_for(&from, &into, size_bytes, time)
        };
        let threads: Vec<_> = (0..threads).map(|index| scope.spawn(work(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    });
    copied as f64 / begun.elapsed().as_secs_f64() / 1e6
}

fn copy_for(from: &Memory, into: &Memory, size_bytes: usize, time: Duration) -> usize {
    /// Copies between two looks at the clock.
    const BATCH: usize = 64;
    let places = from.len_bytes() / size_bytes;
    // A step without a common divisor would visit all; this one visits enough, and no neighbours.
    let step = (places as f64 * 0.618) as usize | 1;
    let (begun, mut copies) = (Instant::now(), 0);
    while copies == 0 || begun.elapsed() < time {
        for _ in 0..BATCH {
            let source = copies * step % places;
            from.copy_to(source * size_bytes, into, copies % places * size_bytes, size_bytes);
            copies += 1;
        }
    }
    copies * size_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_copies_what_is_there() {
        let (from, into) = (Memory::anonymous(64 * 4096), Memory::anonymous(64 * 4096));
        (0..64).for_each(|page| from.write(page * 4096, &[7; 4096]));
        for threads in [1, 2, 3] {
            assert!(bandwidth(&from, &into, threads, 4096, Duration::from_millis(1)) > 0.0);
        }
        let mut bytes = [0; 4096];
        into.read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}
