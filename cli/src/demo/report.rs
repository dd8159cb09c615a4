//! What a demonstration run measured: the JSON object of each run, and the summary for people.

use serde::Serialize;

use super::client::ClientReport;

/// Percentiles of a histogram, in its unit.
#[derive(Clone, Copy, Debug, Default, Serialize, serde::Deserialize, PartialEq)]
#[serde(default)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// All runs of a demonstration.
#[derive(Debug, Default, Serialize)]
pub struct DemoReport {
    /// One entry a run.
    pub runs: Vec<RunReport>,
}

/// One run: protect, kill, go on.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunReport {
    /// The guest.
    pub guest: GuestReport,
    /// What moved the bytes.
    pub fabric: String,
    /// Target length of an epoch.
    pub interval_ms: f64,
    /// Epochs committed before the kill.
    pub epochs_committed: u64,
    /// Their rate while protected.
    pub checkpoints_per_second: f64,
    /// From stop to resume.
    pub pause_us: Percentiles,
    /// From the pause to the ack.
    pub ack_us: Percentiles,
    /// The phases of a pause.
    pub phases_us: std::collections::BTreeMap<String, Percentiles>,
    /// Pages captured by an epoch.
    pub dirty_pages_per_epoch: Percentiles,
    /// Epochs that began later than their interval says.
    pub epochs_late: u64,
    /// The guest's clock beside the host's while it was protected.
    pub guest_clock: ClockReport,
    /// The takeover.
    pub failover: FailoverReport,
    /// What the guest says.
    pub guest_check: GuestCheck,
    /// The client outside; none with `--no-client`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientReport>,
    /// The client's longest silence until the guest was protected: as protection began.
    #[serde(rename = "silence_until_protected_ms")]
    pub silence_before_ms: f64,
    /// Why the run failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The guest that was protected.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GuestReport {
    /// `qemu`.
    pub kind: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Machine type.
    pub machine: String,
    /// Its memory.
    pub memory_mib: u64,
}

/// How far two clocks came in the same time. Pauses stand still for the guest.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ClockReport {
    /// The host's clock.
    pub host_ms: u64,
    /// The guest's clock.
    pub guest_ms: u64,
    /// Guest seconds per host second.
    pub rate: f64,
}

/// How the takeover went. Times are of one clock.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FailoverReport {
    /// Last epoch acked at the primary when it was last asked before the kill.
    pub killed_at_epoch: u64,
    /// The epoch that the guest went on from.
    pub resumed_at_epoch: u64,
    /// From the kill to the backup's decision.
    pub detection_ms: f64,
    /// From the decision to the running guest.
    pub takeover_ms: f64,
    /// From the kill to the running guest.
    pub total_ms: f64,
}

/// What the guest's own checks say.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct GuestCheck {
    /// Last counter seen before the kill.
    pub counter_before: u64,
    /// First counter seen after it.
    pub counter_after: u64,
    /// Steps that the guest made anew, because they were not committed.
    pub gap: u64,
    /// Steps that the guest can have made after the last committed pause.
    pub gap_allowed: u64,
    /// Pages that were not what the guest had written last.
    pub corrupt_pages: u64,
    /// Complete checks of all its pages after the takeover.
    pub passes_after: u64,
}

impl RunReport {
    /// Took over, nothing corrupt, nothing lost beyond the last uncommitted epoch.
    pub fn succeeded(&self) -> bool {
        self.failure.is_none()
    }
}

/// The median of what `of` gives, of an even number the mean of the two in the middle; 0 of none.
fn median<T>(all: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

/// What the clients saw, of all runs.
fn client_rows(clients: &[ClientReport], row: &mut impl FnMut(&str, String)) {
    let sum = |of: fn(&ClientReport) -> u64| clients.iter().map(of).sum::<u64>();
    let middle = |of: fn(&ClientReport) -> f64| median(clients, of);
    row(
        "connections that went on",
        format!("{} of {}", sum(|client| client.survived), sum(|client| client.connections)),
    );
    row("requests", sum(|client| client.requests).to_string());
    row("answers taken back", sum(|client| client.answers_taken_back).to_string());
    row("duplicates", sum(|client| client.duplicates).to_string());
    row(
        "added latency in ms, p50 / p99",
        format!(
            "{:.1} / {:.1}",
            middle(|client| client.added_latency_ms.p50),
            middle(|client| client.added_latency_ms.p99)
        ),
    );
    row("longest silence in ms", format!("{:.0}", middle(|client| client.longest_silence_ms)));
}

/// The table at the end.
pub fn summary(report: &DemoReport) -> String {
    let good: Vec<RunReport> = report.runs.iter().filter(|run| run.succeeded()).cloned().collect();
    let all = report.runs.len();
    let mut lines = vec![format!("{:<34}{} of {all}", "guests that went on", good.len())];
    let mut row = |name: &str, value: String| lines.push(format!("{name:<34}{value}"));
    let corrupt: u64 = report.runs.iter().map(|run| run.guest_check.corrupt_pages).sum();
    row("corrupt pages", corrupt.to_string());
    if !good.is_empty() {
        let us = |of: fn(&RunReport) -> u64| format!("{:.0}", median(&good, |run| of(run) as f64));
        row("checkpoints per second", format!("{:.1}", median(&good, |run| run.checkpoints_per_second)));
        row("dirty pages per checkpoint, p50", us(|run| run.dirty_pages_per_epoch.p50));
        row(
            "pause in us, p50 / p99",
            format!("{} / {}", us(|run| run.pause_us.p50), us(|run| run.pause_us.p99)),
        );
        row(
            "pause to commit in us, p50 / p99",
            format!("{} / {}", us(|run| run.ack_us.p50), us(|run| run.ack_us.p99)),
        );
        row("guest seconds per second", format!("{:.3}", median(&good, |run| run.guest_clock.rate)));
        let ms = |of: fn(&FailoverReport) -> f64| format!("{:.0}", median(&good, |run| of(&run.failover)));
        row("kill to running guest in ms", ms(|failover| failover.total_ms));
        row("  of it detection", ms(|failover| failover.detection_ms));
        row("  of it takeover", ms(|failover| failover.takeover_ms));
        row("steps made anew by the guest", us(|run| run.guest_check.gap));
    }
    let clients: Vec<ClientReport> = report.runs.iter().filter_map(|run| run.client).collect();
    if !clients.is_empty() {
        client_rows(&clients, &mut row);
        let silence = median(&report.runs, |run| run.silence_before_ms);
        row("  and when protection began", format!("{silence:.0}"));
    }
    if all > 1 {
        lines.push("(figures are medians over the runs)".into());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle_whatever_the_number() {
        let median = |values: &[f64]| median(values, |value| *value);
        assert_eq!([median(&[]), median(&[7.0]), median(&[3.0, 1.0, 2.0])], [0.0, 7.0, 2.0]);
        assert_eq!(median(&[4.0, 1.0, 2.0, 30.0]), 3.0);
    }
}
