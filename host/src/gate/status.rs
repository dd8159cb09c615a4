//! What a gate tells about itself.

use hdrhistogram::Histogram;
use romulus_checkpoint::driver::primary::Percentiles;

/// Longest time told apart: ten minutes.
const LONGEST_US: u64 = 600_000_000;

/// A snapshot of one card's gate.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GateStatus {
    /// What QEMU calls the card.
    pub nic: String,
    /// `redirect`, `filter-buffer` or `none`.
    pub kind: String,
    /// The kernel interface, or the hypervisor's name of the back end.
    pub interface: String,
    /// Whether output is held at all at the moment; otherwise it leaves at once.
    pub holding: bool,
    /// Packets held now.
    pub held_packets: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Packets let go since protection began.
    pub released_packets: u64,
    /// Bytes let go since protection began.
    pub released_bytes: u64,
    /// Packets that the kernel dropped since the gate was stopped or full for too long, or that the
    /// bridge's side refused.
    pub dropped_packets: u64,
    /// How often the bound was reached, and the epoch ended early.
    pub bound_hits: u64,
    /// How often packets had to wait in the kernel because the gate's memory was full.
    pub full_hits: u64,
    /// How often somebody took the gate's filter away while output was held. What the guest sent until
    /// it was set again left unheld.
    #[serde(default)]
    pub filter_lost: u64,
    /// For how long that may have been, in milliseconds in all: from the last look that found the filter
    /// to its return.
    #[serde(default)]
    pub unheld_ms_at_most: u64,
    /// How long packets were held, in microseconds, from the gate's read to its write.
    pub held_us: Percentiles,
}

/// A histogram of times held, in microseconds.
pub(super) fn time_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("fixed bounds are good")
}

/// Its summary.
pub(super) fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    if histogram.is_empty() {
        return Percentiles::default();
    }
    Percentiles {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
    }
}
