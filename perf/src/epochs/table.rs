//! What a case gave, as lines for people.

use romulus_checkpoint::metrics::{Phase, Quantity};

use super::figures::Outcome;

/// Longest line.
const WIDTH: usize = 80;

/// The columns, below a line with the case's name.
pub fn header() -> String {
    line(["cps", "late%", "pages", "pause50", "pause99", "memcpy", "ratio", "commit50", "commit99", "image"])
        + "\n(times in us)"
}

fn line<T: std::fmt::Display>(cells: [T; 10]) -> String {
    let [cps, late, pages, pause50, pause99, memcpy, ratio, commit50, commit99, image] = cells;
    format!(
        "{cps:>6} {late:>5} {pages:>7} {pause50:>7} {pause99:>7} {memcpy:>7} {ratio:>6} {commit50:>8} {commit99:>8}  \
         {image}"
    )
}

/// One case: its name, its figures, and below them what is rarely looked at.
pub fn rows(outcome: &Outcome) -> String {
    let measured = &outcome.measured;
    let us = |phase, share| measured.primary.phase_us(phase, share);
    let memcpy = outcome.memcpy_p50_us();
    let pause = us(Phase::Pause, 0.5);
    let figures = line([
        format!("{:.1}", measured.rate()),
        format!("{:.1}", measured.late_percent()),
        measured.primary.quantity(Quantity::DirtyPages).value_at_quantile(0.5).to_string(),
        format!("{pause:.0}"),
        format!("{:.0}", us(Phase::Pause, 0.99)),
        format!("{memcpy:.0}"),
        if memcpy > 0.0 { format!("{:.2}", pause / memcpy) } else { "-".into() },
        format!("{:.0}", us(Phase::CommitLatency, 0.5)),
        format!("{:.0}", us(Phase::CommitLatency, 0.99)),
        if outcome.verified.exact { "exact" } else { "NOT EXACT" }.to_owned(),
    ]);
    format!("{}\n{figures}\n{}\n{}", outcome.case.name, wrapped(&costs(outcome)), wrapped(&phases(outcome)))
}

/// What protection costs beside the pauses.
fn costs(outcome: &Outcome) -> Vec<String> {
    let (primary, backup) = outcome.cpu_s_per_gib();
    let slow = outcome.slowdown_percent().map(|percent| format!("writers {percent:.1} % slower"));
    let still = format!("stood still {:.1} %", outcome.paused_percent());
    let cpu = |side: &str, value: Option<f64>| value.map(|value| format!("{side} {value:.2}"));
    let (primary, backup) = (cpu("cpu s/GiB: primary", primary), cpu("backup", backup));
    [slow, Some(still), primary, backup].into_iter().flatten().collect()
}

/// The phases of a case: p50 and p99 in microseconds.
fn phases(outcome: &Outcome) -> Vec<String> {
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
    let mut parts: Vec<_> = shown.iter().filter_map(phase).collect();
    if let Some(first) = parts.first_mut() {
        first.insert_str(0, "p50/p99 us: ");
    }
    parts
}

/// Parts in a list, on as many indented lines as they take.
fn wrapped(parts: &[String]) -> String {
    const INDENT: &str = "    ";
    let mut lines = vec![String::from(INDENT)];
    for (index, part) in parts.iter().enumerate() {
        let comma = if index + 1 < parts.len() { "," } else { "" };
        let mut last = lines.pop().unwrap_or_default();
        if last.len() > INDENT.len() {
            if last.len() + 1 + part.len() + comma.len() > WIDTH {
                lines.push(std::mem::replace(&mut last, INDENT.into()));
            } else {
                last.push(' ');
            }
        }
        lines.push(last + part + comma);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_a_terminal_and_nothing_is_lost() {
        let figures =
            ["1234.5", "100.0", "1234567", "1234567", "1234567", "1234567", "123.45", "12345678", "12345678"];
        let mut cells = [""; 10];
        cells[..9].copy_from_slice(&figures);
        cells[9] = "NOT EXACT";
        assert!(line(cells).len() <= WIDTH && header().lines().all(|line| line.len() <= WIDTH));

        let parts: Vec<String> = (0..30).map(|n| format!("phase-{n} {n}/{n}")).collect();
        let text = wrapped(&parts);
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.len() <= WIDTH), "{text}");
        let joined = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        assert_eq!(joined, parts.join(", "));
    }
}
