//! One rate of checkpoints: the guest unprotected, then protected.

use std::time::Duration;

use romulus::demo::stage::Stage;
use serde::Serialize;
use serde_json::Value;

use super::rate::WorkRate;
use crate::exit::{Failure, OrFail};
use crate::results::{Beside, Better, Labels, Measurement, Run, Sampled, names};

/// Protected for so long before it is measured, in seconds, at the least.
const SETTLING_S: f64 = 1.0;
/// What `romulus protect` calls recent goes back so far at the most, in seconds: all of it is to be of
/// the protected guest, without the trial load.
const RECENT_S: f64 = 5.0;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the guest does.
    pub work: String,
    /// What is counted.
    pub unit: &'static str,
    /// Checkpoints a second that are asked for.
    pub rate: f64,
    /// The guest's memory.
    pub guest_mib: u64,
}

/// Unprotected and protected, one after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    unprotected: f64,
    protected: f64,
    checkpoints_per_second: f64,
    late_percent: f64,
    dirty_pages: f64,
    pause_p50_us: f64,
    pause_p99_us: f64,
    commit_p50_us: f64,
    commit_p99_us: f64,
}

impl Pair {
    fn slowdown_percent(&self) -> f64 {
        100.0 * (1.0 - self.protected / self.unprotected.max(f64::MIN_POSITIVE))
    }
}

/// Measures one pair. On success the guest is unprotected again.
pub fn pair(stage: &mut Stage, rate: &mut WorkRate, case: &Case, seconds: f64) -> Result<Pair, Failure> {
    let unprotected = rate.measure(seconds)?;
    let address = stage.start_backup(stage.listen_address()).or_fail("the backup")?;
    stage.start_protect(&address, 1e3 / case.rate).or_fail("protection")?;
    stage.wait_protected().or_fail("protection")?;
    rate.measure(SETTLING_S.max(RECENT_S - seconds))?;
    let before = status(stage)?;
    let protected = rate.measure(seconds)?;
    let after = status(stage)?;
    stage.stop_protection().or_fail("ending protection")?;
    let number = |status: &Value, path: &str| status.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let grown = |path: &str| number(&after, path) - number(&before, path);
    let uptime_s = grown("/metrics/uptime_s");
    if uptime_s <= 0.0 {
        return Err(Failure::failed("romulus protect began anew while it was measured"));
    }
    let epochs = grown("/epochs_committed");
    let recent =
        |name: &str, field: &str| number(&after, &format!("/metrics/recent_phases_us/{name}/{field}"));
    Ok(Pair {
        unprotected,
        protected,
        checkpoints_per_second: epochs / uptime_s,
        late_percent: 100.0 * grown("/late_epochs") / epochs.max(1.0),
        dirty_pages: number(&after, "/dirty_pages/p50"),
        pause_p50_us: recent("pause", "p50"),
        pause_p99_us: recent("pause", "p99"),
        commit_p50_us: recent("commit_latency", "p50"),
        commit_p99_us: recent("commit_latency", "p99"),
    })
}

/// What `romulus protect` says of itself; an error when the guest is not protected.
pub fn status(stage: &mut Stage) -> Result<Value, Failure> {
    let protect = stage.protect.as_mut().ok_or_else(|| Failure::failed("nothing protects the guest"))?;
    protect
        .wait_for("protected guest", Duration::from_secs(20), |status| {
            (status.pointer("/state").and_then(Value::as_str) == Some("protected")).then(|| status.clone())
        })
        .or_fail("the status")
}

/// Above the lines.
pub fn heading() -> String {
    let line = |[work, asked, made, late, dirty, pause, commit, alone, protected, slow]: [&str; 10]| {
        format!(
            "{work:<7} {asked:>5} {made:>5} {late:>5} {dirty:>5} {pause:>11} {commit:>11} {alone:>7} {protected:>9} \
             {slow:>5}"
        )
    };
    let names =
        ["work", "asked", "made", "late", "dirty", "pause ms", "commit ms", "work/s", "work/s", "slower"];
    let units = ["", "/s", "/s", "%", "pages", "p50/p99", "p50/p99", "alone", "protected", "%"];
    format!("{}\n{}", line(names), line(units))
}

/// One line for people.
pub fn line(case: &Case, pair: &Pair) -> String {
    format!(
        "{:<7} {:>5} {:>5.1} {:>5.1} {:>5.0} {:>5.1}/{:>5.1} {:>5.1}/{:>5.1} {:>7.0} {:>9.0} {:>5.1}",
        case.work,
        case.rate,
        pair.checkpoints_per_second,
        pair.late_percent,
        pair.dirty_pages,
        pair.pause_p50_us / 1e3,
        pair.pause_p99_us / 1e3,
        pair.commit_p50_us / 1e3,
        pair.commit_p99_us / 1e3,
        pair.unprotected,
        pair.protected,
        pair.slowdown_percent()
    )
}

/// Puts all pairs of a case into a run; without any there are no figures.
pub fn fill(run: &mut Run, case: &Case, pairs: &[Pair]) {
    if pairs.is_empty() {
        return;
    }
    let labels = Labels::default()
        .with("work", case.work.as_str())
        .with("rate", case.rate)
        .with("interval_ms", 1e3 / case.rate)
        .with("guest_mib", case.guest_mib)
        .with("fabric", "tcp");
    let all = |value: fn(&Pair) -> f64| Sampled::of(pairs.iter().map(value));
    let mut add = |name: &str, unit: &str, better, value| {
        run.measurements.push(Measurement::new(name, &labels, unit, better, value));
    };
    add(names::GUEST_SLOWDOWN_PERCENT, "%", Better::Lower, all(Pair::slowdown_percent));
    add(names::CHECKPOINTS_PER_SECOND, "1/s", Better::Higher, all(|pair| pair.checkpoints_per_second));
    add(names::LATE_EPOCHS_PERCENT, "%", Better::Lower, all(|pair| pair.late_percent));
    add(names::DIRTY_PAGES_P50, "pages", Better::Neither, all(|pair| pair.dirty_pages));
    add(names::PAUSE_P50_US, "us", Better::Lower, all(|pair| pair.pause_p50_us));
    add(names::PAUSE_P99_US, "us", Better::Lower, all(|pair| pair.pause_p99_us));
    add(names::COMMIT_P50_US, "us", Better::Lower, all(|pair| pair.commit_p50_us));
    add(names::COMMIT_P99_US, "us", Better::Lower, all(|pair| pair.commit_p99_us));
    let unit = case.unit;
    let work = Measurement::new("work_rate", &labels, unit, Better::Higher, all(|pair| pair.protected));
    let unprotected: Vec<_> = pairs.iter().map(|pair| (pair.protected, pair.unprotected)).collect();
    run.measurements.push(work.with_limit(Beside::paired("unprotected", &unprotected)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::RunClock;

    #[test]
    fn what_is_printed_fits_a_terminal() {
        let pair = Pair {
            unprotected: 1_234_567.8,
            protected: 234_567.8,
            checkpoints_per_second: 199.9,
            late_percent: 100.0,
            dirty_pages: 12_345.0,
            pause_p50_us: 123_456.0,
            pause_p99_us: 987_654.0,
            commit_p50_us: 123_456.0,
            commit_p99_us: 987_654.0,
        };
        let case = Case { work: "compile".into(), unit: "files/s", rate: 200.0, guest_mib: 512 };
        let printed = format!("{}\n{}", heading(), line(&case, &pair));
        assert!(printed.lines().all(|line| line.len() <= 80), "{printed}");
    }

    #[test]
    fn slow_down_is_of_pairs_and_work_stands_beside_the_unprotected() {
        let pair = |unprotected, protected| Pair {
            unprotected,
            protected,
            checkpoints_per_second: 40.0,
            late_percent: 0.0,
            dirty_pages: 10.0,
            pause_p50_us: 1.0,
            pause_p99_us: 2.0,
            commit_p50_us: 3.0,
            commit_p99_us: 4.0,
        };
        let case = Case { work: "redis".into(), unit: "commands/s", rate: 40.0, guest_mib: 512 };
        let mut run = RunClock::start().run("guest", &()).unwrap();
        fill(&mut run, &case, &[pair(100.0, 80.0), pair(50.0, 45.0), pair(10.0, 7.0)]);
        let labels = Labels::default().with("work", "redis").with("rate", 40.0);
        let slow = run.find(names::GUEST_SLOWDOWN_PERCENT, &labels).unwrap();
        assert!((slow.value.median - 20.0).abs() < 1e-9 && (slow.value.highest - 30.0).abs() < 1e-9);
        let work = run.find("work_rate", &labels).unwrap();
        assert!((work.limit.as_ref().unwrap().ratio - 0.8).abs() < 1e-9);
    }
}
