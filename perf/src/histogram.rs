//! Latencies in a histogram that keeps three digits from a nanosecond to minutes.

use std::time::Duration;

use serde_json::{Value, json};

/// The longest time told apart, in nanoseconds: longer ones count as this.
const MAX_NS: u64 = 600_000_000_000;

/// Times of one kind.
#[derive(Clone, Debug)]
pub struct Latencies(hdrhistogram::Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = hdrhistogram::Histogram::new_with_bounds(1, MAX_NS, 3);
        Self(histogram.expect("the bounds are in order and three digits are possible"))
    }
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, MAX_NS);
        self.0.saturating_record(ns);
    }

    /// Adds all of another.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are the same");
    }

    /// In nanoseconds.
    pub fn histogram(&self) -> &hdrhistogram::Histogram<u64> {
        &self.0
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that a share (0 to 1) of all is at most, in microseconds.
    pub fn quantile_us(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1e3
    }

    /// The mean, in microseconds.
    pub fn mean_us(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let at = |share| self.quantile_us(share);
        format!(
            "p50 {:.1}, p90 {:.1}, p99 {:.1}, max {:.1} us ({} times)",
            at(0.5),
            at(0.9),
            at(0.99),
            self.0.max() as f64 / 1e3,
            self.0.len()
        )
    }

    /// For reports: a summary, and every bucket that holds anything (`[value_us, count]`).
    pub fn json(&self) -> Value {
        let us = |ns: u64| ns as f64 / 1e3;
        let buckets: Vec<_> = self
            .0
            .iter_recorded()
            .map(|at| json!([us(at.value_iterated_to()), at.count_at_value()]))
            .collect();
        json!({
            "count": self.0.len(),
            "mean_us": self.mean_us(),
            "p50_us": self.quantile_us(0.5),
            "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99),
            "p999_us": self.quantile_us(0.999),
            "max_us": us(self.0.max()),
            "buckets": buckets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_with_three_digits_and_in_full() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        assert!((latencies.quantile_us(0.5) - 500.0).abs() < 1.0);
        assert!((latencies.quantile_us(0.99) - 990.0).abs() < 2.0);
        let json = latencies.json();
        let buckets = json["buckets"].as_array().unwrap();
        let counted: u64 = buckets.iter().map(|bucket| bucket[1].as_u64().unwrap()).sum();
        assert_eq!(counted, 1000);
        let mut twice = latencies.clone();
        twice.add(&latencies);
        assert_eq!(twice.count(), 2000);
    }

    #[test]
    fn times_beyond_the_bounds_are_kept_at_the_border() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.quantile_us(1.0) >= 599e6);
    }
}
