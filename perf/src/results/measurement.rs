//! A figure with its samples, and what stands beside it.

use serde::{Deserialize, Serialize};

use super::labels::Labels;
use crate::statistics::Spread;

/// Which direction is an improvement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Rates.
    Higher,
    /// Times and costs.
    Lower,
    /// Neither: it describes the run.
    Neither,
}

/// Repeated values; a single one is a spread of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
    /// All, in the order measured.
    pub samples: Vec<f64>,
}

impl Sampled {
    /// Of these; all zero when there are none. What is no finite number is no sample, and JSON has no
    /// word for it.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let samples: Vec<f64> = samples.into_iter().filter(|sample| sample.is_finite()).collect();
        let Spread { median, min, max, .. } = Spread::of(samples.iter().copied());
        Self { median, lowest: min, highest: max, samples }
    }
}

/// A limit of the machine, or what people would use instead, measured in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// What it is: `memcpy`, `plain tcp`, `ib_write_bw`, `qemu multifd`, `xl remus`.
    pub name: String,
    /// In the unit of the measurement; its median if it was measured repeatedly.
    pub value: f64,
    /// The measurement by this; the median of the pairs if they were measured in pairs.
    pub ratio: f64,
    /// Lowest and highest ratio of the pairs, where there were pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_range: Option<(f64, f64)>,
}

impl Beside {
    /// A single value beside a single value; `None` where there is nothing to divide by.
    pub fn single(name: &str, value: f64, measured: f64) -> Option<Self> {
        let ratio = measured / value;
        (value > 0.0 && ratio.is_finite()).then(|| Self {
            name: name.to_owned(),
            value,
            ratio,
            ratio_range: None,
        })
    }

    /// Measured in pairs of measurement and this.
    pub fn paired(name: &str, pairs: &[(f64, f64)]) -> Option<Self> {
        let ratios = crate::statistics::ratios(pairs);
        let value = Spread::of(pairs.iter().map(|pair| pair.1)).median;
        (ratios.count > 0).then(|| Self {
            name: name.to_owned(),
            value,
            ratio: ratios.median,
            ratio_range: Some((ratios.min, ratios.max)),
        })
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What it is: see [`super::names`].
    pub name: String,
    /// What tells it from others of the same name.
    #[serde(default)]
    pub labels: Labels,
    /// `us`, `1/s`, `MB/s`, `%`, `s/GiB`, `pages`, `1` for ratios.
    pub unit: String,
    /// Which direction is an improvement.
    pub better: Better,
    /// The figure and all its samples.
    #[serde(flatten)]
    pub value: Sampled,
    /// What the machine can do at the most.
    #[serde(default)]
    pub limit: Option<Beside>,
    /// What people would use instead.
    #[serde(default)]
    pub peer: Option<Beside>,
}

impl Measurement {
    /// One figure.
    pub fn new(name: &str, labels: &Labels, unit: &str, better: Better, value: Sampled) -> Self {
        let (name, unit, labels) = (name.to_owned(), unit.to_owned(), labels.clone());
        Self { name, labels, unit, better, value, limit: None, peer: None }
    }

    /// One figure that was measured once.
    pub fn single(name: &str, labels: &Labels, unit: &str, better: Better, value: f64) -> Self {
        Self::new(name, labels, unit, better, Sampled::of([value]))
    }

    /// With its limit.
    pub fn with_limit(mut self, limit: Option<Beside>) -> Self {
        self.limit = limit;
        self
    }

    /// With its peer.
    pub fn with_peer(mut self, peer: Option<Beside>) -> Self {
        self.peer = peer;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_survives_json_and_keeps_its_samples_in_order() {
        let labels = Labels::default().with("dirty_pages", 1000u64);
        let value = Sampled::of([30.0, 10.0, 20.0]);
        let figure = Measurement::new("pause_p50_us", &labels, "us", Better::Lower, value)
            .with_limit(Beside::single("memcpy", 10.0, 20.0))
            .with_peer(Beside::paired("other", &[(30.0, 60.0), (10.0, 10.0), (20.0, 0.0)]));
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(json["samples"], serde_json::json!([30.0, 10.0, 20.0]));
        assert_eq!(
            (&json["median"], &json["lowest"], &json["highest"]),
            (&20.0.into(), &10.0.into(), &30.0.into())
        );
        assert_eq!(json["limit"]["ratio"], 2.0);
        assert_eq!(json["peer"]["ratio_range"], serde_json::json!([0.5, 1.0]));
        assert_eq!(serde_json::from_value::<Measurement>(json).unwrap(), figure);
    }

    #[test]
    fn what_is_no_number_is_no_sample() {
        let sampled = Sampled::of([f64::NAN, 2.0, f64::INFINITY]);
        assert_eq!(sampled, Sampled { median: 2.0, lowest: 2.0, highest: 2.0, samples: vec![2.0] });
    }

    #[test]
    fn nothing_stands_beside_a_limit_of_zero() {
        assert_eq!(Beside::single("memcpy", 0.0, 20.0), None);
        assert_eq!(Beside::paired("memcpy", &[(1.0, 0.0)]), None);
    }
}
