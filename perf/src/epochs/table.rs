//! What a case gave, as a line for people.

use romulus_checkpoint::metrics::{Phase, Quantity};

use super::figures::Outcome;

/// The columns.
pub fn header() -> String {
    format!(
        "{:<32} {:>7} {:>6} {:>7} {:>8} {:>8} {:>8} {:>6} {:>8} {:>8} {:>6} {:>6} {:>11}  {}",
        "case",
        "cps",
        "late%",
        "pages",
        "pause50",
        "pause99",
        "memcpy",
        "ratio",
        "commit50",
        "commit99",
        "slow%",
        "still%",
        "cpu s/GiB",
        "image (times in us)"
    )
}

/// One case.
pub fn row(outcome: &Outcome) -> String {
    let measured = &outcome.measured;
    let us = |phase, share| measured.primary.phase_us(phase, share);
    let memcpy = outcome.memcpy_p50_us();
    let pause = us(Phase::Pause, 0.5);
    let ratio = if memcpy > 0.0 { format!("{:.2}", pause / memcpy) } else { "-".into() };
    let slow = outcome.slowdown_percent().map_or("-".into(), |percent| format!("{percent:.1}"));
    let (primary, backup) = outcome.cpu_s_per_gib();
    let cpu = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let image = if outcome.verified.exact { "exact" } else { "NOT EXACT" };
    format!(
        "{:<32} {:>7.1} {:>6.1} {:>7} {:>8.0} {:>8.0} {:>8.0} {:>6} {:>8.0} {:>8.0} {:>6} {:>6.1} {:>11}  {}",
        outcome.case.name,
        measured.rate(),
        measured.late_percent(),
        measured.primary.quantity(Quantity::DirtyPages).value_at_quantile(0.5),
        pause,
        us(Phase::Pause, 0.99),
        memcpy,
        ratio,
        us(Phase::CommitLatency, 0.5),
        us(Phase::CommitLatency, 0.99),
        slow,
        outcome.paused_percent(),
        format!("{} {}", cpu(primary), cpu(backup)),
        image
    )
}

/// The phases of a case: p50 and p99 in microseconds.
pub fn phases(outcome: &Outcome) -> String {
    let phase = |phase: &Phase| {
        let side = if matches!(phase, Phase::BackupCommit | Phase::Homing) {
            &outcome.measured.backup
        } else {
            &outcome.measured.primary
        };
        let us = |share| side.phase_us(*phase, share);
        (!side.phase(*phase).is_empty()).then(|| format!("{} {:.0}/{:.0}", phase.name(), us(0.5), us(0.99)))
    };
    let shown = [
        Phase::Stop,
        Phase::Gate,
        Phase::State,
        Phase::Collect,
        Phase::Place,
        Phase::Throttle,
        Phase::Copy,
        Phase::Resume,
        Phase::Post,
        Phase::Ack,
        Phase::BackupCommit,
        Phase::Homing,
    ];
    format!("    p50/p99 us: {}", shown.iter().filter_map(phase).collect::<Vec<_>>().join(", "))
}
