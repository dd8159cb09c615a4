//! Measures the guest's pauses from within: a guest that suspends stops its monotonic clock, while
//! the CPU's time stamp counter, which Xen keeps going, runs on. So each jump between the two is
//! one suspension, whatever else keeps the guest from running.
//!
//! Once a second in which there was one: `romulus pauses_us N,N,...`. Each N is the time from the
//! last moment before the suspension in which this thread ran to the first one after it, less what it would
//! have slept anyway.

use std::arch::x86_64::_rdtsc;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Between two looks at the clocks.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the counter's rate is measured at first; the guest must not be suspended meanwhile.
const CALIBRATION: Duration = Duration::from_secs(2);
/// Clocks that part by less within one look may differ for other reasons, as a rate slightly off.
const LEAST_JUMP_US: f64 = 100.0;

/// Watches the clocks on a thread of its own, without end.
pub fn start() -> std::io::Result<()> {
    std::thread::Builder::new().name("probe".into()).spawn(watch).map(|_| ())
}

fn counter() -> u64 {
    // SAFETY: reading the time stamp counter changes nothing, and every x86_64 CPU has it.
    unsafe { _rdtsc() }
}

fn watch() {
    let (started, first) = (Instant::now(), counter());
    std::thread::sleep(CALIBRATION);
    let per_us = (counter() - first) as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("romulus probe counts_per_us={per_us:.3}");
    let (mut monotonic, mut counted) = (Instant::now(), counter());
    let mut pauses = String::new();
    let mut told = monotonic;
    loop {
        std::thread::sleep(LOOK_EVERY);
        let (now, count) = (Instant::now(), counter());
        let seen_us = (now - monotonic).as_secs_f64() * 1e6;
        let gap_us = count.wrapping_sub(counted) as f64 / per_us;
        if let Some(pause_us) = pause_us(gap_us, seen_us) {
            let _ = write!(pauses, "{}{pause_us}", if pauses.is_empty() { "" } else { "," });
        }
        if now - told > Duration::from_secs(1) {
            told = now;
            if !pauses.is_empty() {
                println!("romulus pauses_us {pauses}");
                pauses.clear();
            }
        }
        (monotonic, counted) = (now, count);
    }
}

/// The pause in a stretch that took `gap_us` and of which the guest's clock saw `seen_us`.
fn pause_us(gap_us: f64, seen_us: f64) -> Option<u64> {
    let jump = gap_us - seen_us;
    (jump > LEAST_JUMP_US).then(|| (gap_us - LOOK_EVERY.as_secs_f64() * 1e6).max(jump) as u64)
}

#[cfg(test)]
mod tests {
    use super::pause_us;

    #[test]
    fn a_guest_that_waits_is_not_paused_and_one_that_is_suspended_is() {
        assert_eq!(pause_us(1_060.0, 1_060.0), None);
        assert_eq!(pause_us(90_000.0, 89_990.0), None);
        assert_eq!(pause_us(26_000.0, 3_000.0), Some(25_000));
        assert_eq!(pause_us(900.0, 300.0), Some(600));
    }
}
