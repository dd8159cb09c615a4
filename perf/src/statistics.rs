//! Repeated measurements in few numbers.

use serde::Serialize;

/// Repeated values: the middle one and how far they lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many values.
    pub count: usize,
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; all zero when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Self::default() };
        let count = values.len();
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Self { count, median, min, max }
    }
}

/// What was measured and its limit, alternating in one run: value and limit of each pair.
pub fn ratios(pairs: &[(f64, f64)]) -> Spread {
    Spread::of(pairs.iter().filter(|(_, limit)| *limit > 0.0).map(|(value, limit)| value / limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle_whatever_the_order() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { count: 3, median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([7.0]), Spread { count: 1, median: 7.0, min: 7.0, max: 7.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn ratios_are_of_pairs_and_not_of_medians() {
        // The machine was half as fast in the second pair; the ratio does not see it.
        let spread = ratios(&[(90.0, 100.0), (45.0, 50.0), (1.0, 0.0)]);
        assert_eq!(spread, Spread { count: 2, median: 0.9, min: 0.9, max: 0.9 });
    }
}
