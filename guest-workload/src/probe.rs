//! Measures the guest's pauses from within: a guest that suspends stops its monotonic clock, while
//! the CPU's time stamp counter, which Xen keeps going, runs on. So each jump between the two is
//! one suspension, whatever else keeps the guest from running.
//!
//! Once a second in which there was one: `romulus pauses_us STOPPED/AWAY,...`. STOPPED is how long the
//! guest's clock stood still; AWAY the time from the last moment before in which this thread ran
//! to the first one after, less what it would have slept anyway, which counts the devices' part of
//! the suspension and, on a busy machine, waiting for a CPU.

use std::arch::x86_64::_rdtsc;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Between two looks at the clocks.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the counter's rate is measured at first, and then how far the clocks part by themselves;
/// the guest must not be suspended meanwhile.
const CALIBRATION: Duration = Duration::from_secs(2);
/// Clocks that part by less within one look may differ for other reasons: by this much always, by so
/// many times what they do without a suspension, and by this part of the look since the counter's rate
/// is only nearly known.
const LEAST_JUMP_US: f64 = 200.0;
const LEAST_JUMP_TIMES: f64 = 4.0;
const LEAST_JUMP_PART: f64 = 0.02;

/// Watches the clocks on a thread of its own, without end.
pub fn start() -> std::io::Result<()> {
    std::thread::Builder::new().name("probe".into()).spawn(watch).map(|_| ())
}

fn counter() -> u64 {
    // SAFETY: reading the time stamp counter changes nothing, and every x86_64 CPU has it.
    unsafe { _rdtsc() }
}

/// Both clocks at one moment. A virtual CPU that is taken away between the readings would part
/// them for ever so long, so they are read again until the counter says that they were close.
fn look(close_counts: u64) -> (Instant, u64) {
    loop {
        let before = counter();
        let now = Instant::now();
        let after = counter();
        let apart = after.wrapping_sub(before);
        if apart <= close_counts {
            return (now, before.wrapping_add(apart / 2));
        }
    }
}

/// The least time between two readings of the counter around the clock, times ten: what is close.
fn close_counts() -> u64 {
    let apart = |_| {
        let before = counter();
        let _ = Instant::now();
        counter().wrapping_sub(before)
    };
    10 * (0..1_000).map(apart).min().unwrap_or(u64::MAX / 2)
}

fn watch() {
    let close = close_counts();
    let (started, first) = look(close);
    std::thread::sleep(CALIBRATION);
    let (ended, last) = look(close);
    let per_us = last.wrapping_sub(first) as f64 / (ended - started).as_secs_f64() / 1e6;
    let mut before = look(close);
    let begun = before.0;
    let mut apart_us = 0.0f64;
    while before.0 - begun < CALIBRATION {
        let (gap_us, seen_us) = stretch_us(&mut before, close, per_us);
        apart_us = apart_us.max((gap_us - seen_us).abs());
    }
    let least_us = LEAST_JUMP_US.max(apart_us * LEAST_JUMP_TIMES);
    println!("romulus probe counts_per_us={per_us:.3} least_us={least_us:.0}");
    let mut pauses = String::new();
    let mut told = before.0;
    loop {
        let (gap_us, seen_us) = stretch_us(&mut before, close, per_us);
        let now = before.0;
        if let Some((stopped_us, away_us)) = pause_us(gap_us, seen_us, least_us) {
            let _ = write!(pauses, "{}{stopped_us}/{away_us}", if pauses.is_empty() { "" } else { "," });
        }
        if now - told > Duration::from_secs(1) {
            told = now;
            if !pauses.is_empty() {
                println!("romulus pauses_us {pauses}");
                pauses.clear();
            }
        }
    }
}

/// One stretch from `before` to the next look, by the counter and by the guest's clock.
fn stretch_us(before: &mut (Instant, u64), close: u64, per_us: f64) -> (f64, f64) {
    std::thread::sleep(LOOK_EVERY);
    let now = look(close);
    let (then, counted) = std::mem::replace(before, now);
    let gap_us = now.1.wrapping_sub(counted) as f64 / per_us;
    (gap_us, (now.0 - then).as_secs_f64() * 1e6)
}

/// How long the guest's clock stood still in a stretch that took `gap_us` and of which that clock saw
/// `seen_us`, and how long this thread was away; nothing below `least_us`.
fn pause_us(gap_us: f64, seen_us: f64, least_us: f64) -> Option<(u64, u64)> {
    let jump = gap_us - seen_us;
    let away = (gap_us - LOOK_EVERY.as_secs_f64() * 1e6).max(jump);
    (jump > least_us.max(gap_us * LEAST_JUMP_PART)).then_some((jump as u64, away as u64))
}

#[cfg(test)]
mod tests {
    use super::pause_us;

    #[test]
    fn both_clocks_are_read_at_one_moment() {
        let close = super::close_counts();
        let (first, counted) = super::look(close);
        let (second, count) = super::look(close);
        assert!(second >= first && count > counted);
    }

    #[test]
    fn a_guest_that_waits_is_not_paused_and_one_that_is_suspended_is() {
        assert_eq!(pause_us(1_060.0, 1_060.0, 200.0), None);
        assert_eq!(pause_us(90_000.0, 89_700.0, 200.0), None);
        assert_eq!(pause_us(26_000.0, 3_000.0, 200.0), Some((23_000, 25_000)));
        assert_eq!(pause_us(900.0, 300.0, 200.0), Some((600, 600)));
        assert_eq!(pause_us(900.0, 300.0, 1_000.0), None);
    }
}
