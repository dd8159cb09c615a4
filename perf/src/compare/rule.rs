//! What counts as a change.
//!
//! A figure has changed when both hold: its samples before and after do not overlap (the lowest of
//! one set lies above the highest of the other), and the medians lie further apart than a
//! threshold. With fewer than three samples on either side there is no spread to speak of, and the
//! threshold is the wider one. Figures in percent are compared by points, as 0.1 % and 0.2 % of
//! late epochs are one and the same; with fewer than three samples by twice as many.

use clap::Args;
use serde::Serialize;

use crate::exit::Failure;
use crate::results::{Better, Measurement};

/// Samples that show a spread.
const SAMPLES: usize = 3;

/// With fewer samples so many times the points.
const FEW_SAMPLES_POINTS: f64 = 2.0;

/// Thresholds.
#[derive(Args, Clone, Copy, Debug, Serialize)]
pub struct Rule {
    /// Medians within so much of each other are the same
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    threshold_percent: f64,

    /// The same for figures with fewer than three samples, whose spread is unknown
    #[arg(long, value_name = "PERCENT", default_value_t = 25.0)]
    single_percent: f64,

    /// Figures in percent are the same within so many points, twice as many with fewer than three samples
    #[arg(long, value_name = "POINTS", default_value_t = 3.0)]
    points: f64,
}

impl Default for Rule {
    fn default() -> Self {
        Self { threshold_percent: 5.0, single_percent: 25.0, points: 3.0 }
    }
}

impl Rule {
    /// An error that names what makes no sense.
    pub fn check(&self) -> Result<(), Failure> {
        for (name, value) in [
            ("--threshold-percent", self.threshold_percent),
            ("--single-percent", self.single_percent),
            ("--points", self.points),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Failure::usage(format!("{name} {value}: a number from 0 on")));
            }
        }
        Ok(())
    }

    /// In words.
    pub fn describe(&self) -> String {
        format!(
            "a change is one of more than {} % ({} % with fewer than {SAMPLES} samples), of figures in percent {} points \
             ({} with fewer than {SAMPLES}), with ranges that do not overlap",
            self.threshold_percent,
            self.single_percent,
            self.points,
            self.points * FEW_SAMPLES_POINTS
        )
    }
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// For the worse.
    Worse,
    /// For the better.
    Better,
    /// It is neither better nor worse to have more of it.
    Changed,
    /// Within the noise.
    Same,
}

impl Change {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Change::Worse => "worse",
            Change::Better => "better",
            Change::Changed => "changed",
            Change::Same => "same",
        }
    }
}

/// Compares one figure.
pub fn judge(before: &Measurement, after: &Measurement, rule: &Rule) -> Change {
    let (old, new) = (&before.value, &after.value);
    let few = old.samples.len().min(new.samples.len()) < SAMPLES;
    let threshold = match (before.unit == "%", few) {
        (true, few) => rule.points * if few { FEW_SAMPLES_POINTS } else { 1.0 },
        (false, true) => old.median.abs() * rule.single_percent / 100.0,
        (false, false) => old.median.abs() * rule.threshold_percent / 100.0,
    };
    let apart = new.lowest > old.highest || old.lowest > new.highest;
    if !apart || (new.median - old.median).abs() <= threshold {
        return Change::Same;
    }
    match (before.better, new.median > old.median) {
        (Better::Neither, _) => Change::Changed,
        (Better::Higher, true) | (Better::Lower, false) => Change::Better,
        _ => Change::Worse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Labels, Sampled};

    fn of(samples: &[f64], unit: &str) -> Measurement {
        let value = Sampled::of(samples.iter().copied());
        Measurement::new("x", &Labels::default(), unit, Better::Lower, value)
    }

    #[test]
    fn noise_is_no_change() {
        let rule = Rule::default();
        for (before, after, unit, verdict) in [
            // They overlap, though the medians lie apart.
            (&[10.0, 11.0, 20.0][..], &[12.0, 19.0, 21.0][..], "us", Change::Same),
            // They do not overlap, and the medians are near.
            (&[10.0, 10.1, 10.2], &[10.3, 10.4, 10.5], "us", Change::Same),
            (&[10.0, 10.1, 10.2], &[11.3, 11.4, 11.5], "us", Change::Worse),
            (&[11.3, 11.4, 11.5], &[10.0, 10.1, 10.2], "us", Change::Better),
            // One sample each: only what is far apart.
            (&[10.0], &[12.0], "us", Change::Same),
            (&[10.0], &[13.0], "us", Change::Worse),
            // Percent by points, from zero too.
            (&[0.0, 0.0, 0.1], &[0.2, 0.3, 0.4], "%", Change::Same),
            (&[0.0, 0.0, 0.1], &[4.0, 4.5, 5.0], "%", Change::Worse),
            (&[0.0], &[5.0], "%", Change::Same),
            (&[0.0], &[7.0], "%", Change::Worse),
            // From nothing to something.
            (&[0.0], &[1.0], "us", Change::Worse),
        ] {
            assert_eq!(judge(&of(before, unit), &of(after, unit), &rule), verdict, "{before:?} {after:?}");
        }
    }

    #[test]
    fn it_is_said_what_holds() {
        let said = Rule::default().describe();
        assert!(
            said.contains("25 % with fewer than 3") && said.contains("3 points (6 with fewer than 3)"),
            "{said}"
        );
    }
}
