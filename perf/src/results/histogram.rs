//! A distribution in full: HDR, compressed, and a table of percentiles for readers without HDR.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::labels::Labels;
use crate::exit::{Failure, OrFail};

/// The shares of the percentile table, in percent.
pub const PERCENTILES: [f64; 14] =
    [0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99, 100.0];
/// Longest serialized form that is read, in bytes of base64.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// A distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistogramRecord {
    /// A phase or quantity (`romulus_checkpoint::metrics`), or what the subcommand calls it.
    pub name: String,
    /// What tells it from others of the same name; `side` is `primary` or `backup`.
    #[serde(default)]
    pub labels: Labels,
    /// Of mean, lowest, highest and percentiles.
    pub unit: String,
    /// Values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
    /// `[percent, value]`: so many percent of all values are at most this.
    pub percentiles: Vec<(f64, f64)>,
    /// The HDR histogram, V2 with deflate, base64.
    pub hdr: String,
    /// A value of `hdr` times this is one in `unit`.
    pub hdr_scale: f64,
}

impl HistogramRecord {
    /// Of a histogram whose values times `scale` are in `unit`.
    pub fn of(
        name: &str,
        labels: &Labels,
        (unit, scale): (&str, f64),
        histogram: &Histogram<u64>,
    ) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        serializer
            .serialize(histogram, &mut bytes)
            .map_err(|error| Failure::failed(format!("histogram {name}: {error:?}")))?;
        let at = |percent: f64| histogram.value_at_quantile(percent / 100.0) as f64 * scale;
        let lowest = if histogram.is_empty() { 0.0 } else { histogram.min() as f64 * scale };
        Ok(Self {
            name: name.to_owned(),
            labels: labels.clone(),
            unit: unit.to_owned(),
            count: histogram.len(),
            mean: histogram.mean() * scale,
            lowest,
            highest: histogram.max() as f64 * scale,
            percentiles: PERCENTILES.iter().map(|percent| (*percent, at(*percent))).collect(),
            hdr: STANDARD.encode(bytes),
            hdr_scale: scale,
        })
    }

    /// Of durations in nanoseconds, reported in microseconds.
    pub fn of_ns(name: &str, labels: &Labels, histogram: &Histogram<u64>) -> Result<Self, Failure> {
        Self::of(name, labels, ("us", 1e-3), histogram)
    }

    /// The HDR histogram, for merging and for other percentiles; its values times `hdr_scale` are
    /// in `unit`.
    pub fn histogram(&self) -> Result<Histogram<u64>, Failure> {
        let what = || format!("histogram {} ({})", self.name, self.labels);
        if self.hdr.len() > MAX_TEXT_BYTES {
            return Err(Failure::failed(format!("{}: {} bytes are too many", what(), self.hdr.len())));
        }
        let bytes = STANDARD.decode(&self.hdr).or_fail(what())?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| Failure::failed(format!("{}: {error:?}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_comes_back_in_full() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        (1..=1000u64).for_each(|us| histogram.record(us * 1000).unwrap());
        let record = HistogramRecord::of_ns("pause", &Labels::default(), &histogram).unwrap();
        let json = serde_json::to_string(&record).unwrap();
        let back: HistogramRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(back, record);
        assert_eq!(back.histogram().unwrap(), histogram);
        let p50 = record.percentiles.iter().find(|(percent, _)| *percent == 50.0).unwrap().1;
        assert!((p50 - 500.0).abs() < 1.0, "{p50}");
        assert_eq!(record.count, 1000);
    }

    #[test]
    fn an_empty_one_is_no_trouble_and_nonsense_is_an_error() {
        let histogram = Histogram::<u64>::new_with_bounds(1, 1000, 3).unwrap();
        let record = HistogramRecord::of_ns("pause", &Labels::default(), &histogram).unwrap();
        assert_eq!((record.count, record.lowest, record.highest), (0, 0.0, 0.0));
        for hdr in ["", "AAAA", "not base64!", "HISTFAAA"] {
            let broken = HistogramRecord { hdr: hdr.into(), ..record.clone() };
            assert!(broken.histogram().unwrap_err().message.contains("pause"));
        }
    }
}
