//! Where a value lies on a chart, and which values are written beside it.

/// Ticks of a linear axis, about.
const TICKS: f64 = 6.0;

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    /// For these values, drawn from one place to the other. `zero`: a linear axis begins at zero.
    pub fn of(values: impl Iterator<Item = f64>, log: bool, zero: bool, (from, to): (f64, f64)) -> Self {
        let usable = |value: &f64| value.is_finite() && (!log || *value > 0.0);
        let (mut low, mut high) = values
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            (low, high) = if log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if log {
            // Round values at both ends, and never an axis of one point.
            (low, high) = (step_down(low), step_up(high));
            if high <= low {
                high = low * 10.0;
            }
        } else {
            if zero {
                low = low.min(0.0);
            }
            if high <= low {
                high = low + 1.0;
            }
            let step = step_up((high - low) / TICKS);
            (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        }
        Self { low, high, log, from, to }
    }

    /// Whether a value can be shown.
    pub fn shows(&self, value: f64) -> bool {
        value.is_finite() && value >= self.low && value <= self.high
    }

    /// Where it lies.
    pub fn at(&self, value: f64) -> f64 {
        let share = match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.from + share * (self.to - self.from)
    }

    /// The values to write.
    pub fn ticks(&self) -> Vec<f64> {
        if !self.log {
            let step = step_up((self.high - self.low) / TICKS);
            let count = ((self.high - self.low) / step).round() as usize;
            return (0..=count).map(|index| self.low + step * index as f64).collect();
        }
        let decades = (self.high / self.low).log10();
        let parts: &[f64] = if decades <= 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let all = (first..=last).flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)));
        all.filter(|tick| *tick >= self.low * 0.999 && *tick <= self.high * 1.001).collect()
    }
}

/// The nearest 1, 2 or 5 times a power of ten that is not larger.
fn step_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let part = value / power * 1.000_001;
    power
        * if part >= 5.0 {
            5.0
        } else if part >= 2.0 {
            2.0
        } else {
            1.0
        }
}

/// The nearest 1, 2 or 5 times a power of ten that is not smaller.
fn step_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let part = value / power * 0.999_999;
    power
        * if part <= 1.0 {
            1.0
        } else if part <= 2.0 {
            2.0
        } else if part <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// A value with three digits at the most, large ones with commas.
pub fn tick_text(value: f64) -> String {
    let size = value.abs();
    let digits = if size >= 100.0 || value == 0.0 {
        0
    } else {
        (2 - size.log10().floor() as i32).clamp(0, 6) as usize
    };
    let text = format!("{value:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    let (sign, whole) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    if whole.contains('.') || whole.len() <= 4 {
        return if whole == "0" { "0".into() } else { format!("{sign}{whole}") };
    }
    let groups: Vec<String> = whole
        .bytes()
        .rev()
        .collect::<Vec<_>>()
        .chunks(3)
        .map(|group| group.iter().rev().map(|digit| *digit as char).collect())
        .collect();
    format!("{sign}{}", groups.into_iter().rev().collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let scale = Scale::of([3.0, 97.0].into_iter(), false, true, (0.0, 100.0));
        assert_eq!(scale.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert!((scale.at(50.0) - 50.0).abs() < 1e-9);
        let scale = Scale::of([100.0, 10_000.0].into_iter(), true, false, (0.0, 10.0));
        assert!((scale.at(1000.0) - 5.0).abs() < 1e-9);
        assert_eq!(scale.ticks().first(), Some(&100.0));
        assert!(Scale::of([7.0].into_iter(), true, false, (0.0, 1.0)).at(7.0).is_finite());
    }

    #[test]
    fn values_are_written_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (12.345, "12.3"),
            (1500.0, "1500"),
            (1_234_567.0, "1,234,567"),
            (-2.0, "-2"),
            (-12345.0, "-12,345"),
            (-0.000_000_01, "0"),
        ] {
            assert_eq!(tick_text(value), text, "{value}");
        }
    }
}
