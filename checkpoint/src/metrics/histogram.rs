//! One measured value: its distribution over the whole life and over the last few seconds.

use std::time::{Duration, Instant};

use hdrhistogram::{Counter, Histogram};

/// Half of what a live view looks back: it covers the last one to two of these.
pub const WINDOW: Duration = Duration::from_millis(2500);

/// Three significant digits over the whole life, two over the recent windows.
#[derive(Debug)]
pub(super) struct Windowed {
    whole: Histogram<u64>,
    current: Histogram<u32>,
    previous: Histogram<u32>,
    began: Instant,
    /// The current window's number, from 0.
    number: u64,
}

impl Windowed {
    /// For values from 0 to `high`, in steps of about `low`, measured from `now` on.
    pub(super) fn new(low: u64, high: u64, now: Instant) -> Self {
        Self {
            whole: histogram(low, high, 3),
            current: histogram(low, high, 2),
            previous: histogram(low, high, 2),
            began: now,
            number: 0,
        }
    }

    /// Takes a value that was measured at `now`.
    pub(super) fn record(&mut self, value: u64, now: Instant) {
        self.rotate(now);
        self.whole.saturating_record(value);
        self.current.saturating_record(value);
    }

    pub(super) fn whole(&self) -> &Histogram<u64> {
        &self.whole
    }

    /// Adds another whole histogram of the same shape.
    pub(super) fn add(&mut self, other: &Histogram<u64>) {
        self.whole.add(other).expect("all histograms of a kind have the same bounds");
    }

    /// The values of the recent windows. Allocates.
    pub(super) fn recent(&mut self, now: Instant) -> Histogram<u32> {
        self.rotate(now);
        let mut both = self.previous.clone();
        both.add(&self.current).expect("both windows have the same bounds");
        both
    }

    /// How far back the recent windows look: the same for all that began at one instant.
    pub(super) fn recent_span(&self, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.began);
        let whole_windows = (age.as_nanos() / WINDOW.as_nanos()) as u32;
        age - WINDOW * whole_windows.saturating_sub(1)
    }

    /// Windows begin at multiples of [`WINDOW`] after the beginning.
    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        let number = (age.as_nanos() / WINDOW.as_nanos()) as u64;
        if number <= self.number {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        if number > self.number + 1 {
            // What was current is already too old.
            self.previous.reset();
        }
        self.number = number;
    }
}

fn histogram<C: Counter>(low: u64, high: u64, digits: u8) -> Histogram<C> {
    Histogram::new_with_bounds(low, high, digits).expect("the bounds are constants within HDR's limits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_values_leave_after_two_windows() {
        let start = Instant::now();
        let at = |windows: f64| start + WINDOW.mul_f64(windows);
        let mut value = Windowed::new(1, 1 << 20, start);
        value.record(5, at(0.5));
        assert_eq!(value.recent(at(0.9)).len(), 1);
        value.record(6, at(1.2));
        assert_eq!(value.recent(at(1.9)).len(), 2, "one window back is still seen");
        value.record(7, at(2.3));
        assert_eq!(value.recent(at(2.4)).max(), 7);
        assert_eq!(value.recent(at(2.4)).len(), 2, "the first has left");
        assert_eq!(value.recent(at(9.0)).len(), 0, "a long silence leaves nothing");
        assert_eq!(value.whole().len(), 3);
    }

    #[test]
    fn recent_values_and_their_span_give_a_steady_rate() {
        let start = Instant::now();
        let mut value = Windowed::new(1, 1 << 20, start);
        for step in 1..2000 {
            let now = start + Duration::from_millis(25 * step);
            value.record(1, now);
            let rate = value.recent(now).len() as f64 / value.recent_span(now).as_secs_f64();
            assert!((rate - 40.0).abs() < 0.5, "{rate} at step {step}");
        }
    }

    #[test]
    fn a_full_counter_saturates() {
        let mut histogram: Histogram<u32> = histogram(1, 1000, 2);
        histogram.record_n(5, u32::MAX).unwrap();
        histogram.saturating_record(5);
        assert_eq!(histogram.count_at(5), u32::MAX);
    }
}
