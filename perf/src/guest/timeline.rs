//! One guest through protection and failover, over time.

use std::path::Path;
use std::time::{Duration, Instant};

use romulus::demo::check_interrupted;
use romulus::demo::instance::{pid, state};
use romulus::demo::stage::Stage;

use super::protected::status;
use super::rate::WorkRate;
use crate::exit::{Failure, OrFail};
use crate::real::RealOptions;
use crate::results::{Better, Event, Labels, Measurement, Run, Series};

/// How often it is looked whether a part is over.
const LOOK: Duration = Duration::from_millis(10);
/// Of one point.
const STEP: Duration = Duration::from_millis(100);
/// Each part is followed for so long.
const PART: Duration = Duration::from_secs(4);
/// Length of an epoch.
const INTERVAL_MS: f64 = 25.0;
/// A takeover ends within so long, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

struct Timeline<'a> {
    began: Instant,
    labels: Labels,
    series: Series,
    run: &'a mut Run,
}

impl Timeline<'_> {
    fn event(&mut self, name: &str, text: String) {
        let at_s = self.began.elapsed().as_secs_f64();
        println!("{at_s:>8.2} s  {text}");
        self.run.events.push(Event { at_s, name: name.into(), text, labels: self.labels.clone() });
    }

    /// Follows the count until `over` says so; each point's rate is of the time since the one
    /// before.
    fn follow(
        &mut self,
        rate: &mut WorkRate,
        mut over: impl FnMut() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut last = (Instant::now(), rate.count());
        loop {
            check_interrupted().or_fail("the timeline")?;
            std::thread::sleep(LOOK);
            let over = over()?;
            if last.0.elapsed() < STEP && !over {
                continue;
            }
            let now = (Instant::now(), rate.count());
            // A guest that has gone back to its last epoch has done nothing new yet.
            let done = now.1.zip(last.1).map_or(0, |(now, last)| now.saturating_sub(last));
            let at_s = (now.0 - self.began).as_secs_f64();
            self.series.points.push((at_s, done as f64 / (now.0 - last.0).as_secs_f64()));
            last = now;
            if over {
                return Ok(());
            }
        }
    }
}

fn elapsed(part: Duration) -> impl FnMut() -> Result<bool, Failure> {
    let began = Instant::now();
    move || Ok(began.elapsed() >= part)
}

/// Follows a guest unprotected, protected, through the death of its host, and after; it is in the run as
/// far as it came.
pub fn follow(real: &RealOptions, program: &Path, run: &mut Run) -> Result<(), Failure> {
    let labels = Labels::default()
        .with("work", "redis")
        .with("rate", 1e3 / INTERVAL_MS)
        .with("interval_ms", INTERVAL_MS)
        .with("guest_mib", real.guest_mib);
    let series = Series::new("work_rate", &labels, "commands/s");
    let mut timeline = Timeline { began: Instant::now(), labels, series, run };
    let played = play(real, program, &mut timeline);
    let Timeline { labels, series, run, .. } = timeline;
    run.series.push(series);
    let (total_ms, takeover_ms) = played?;
    let figure = |name, value| Measurement::single(name, &labels, "ms", Better::Lower, value);
    run.measurements.push(figure("failover_total_ms", total_ms));
    run.measurements.push(figure("failover_takeover_ms", takeover_ms));
    Ok(())
}

/// All parts. Returns how long the failover took and the takeover in it, in milliseconds.
fn play(real: &RealOptions, program: &Path, timeline: &mut Timeline<'_>) -> Result<(f64, f64), Failure> {
    let mut stage = Stage::new(real.machine(Some("redis"), 8, 0.0), program).or_fail("the stage")?;
    let console = stage.start_guest().or_fail("the guest with redis")?;
    let mut rate = WorkRate::follow(console)?;
    timeline.began = Instant::now();
    timeline.follow(&mut rate, elapsed(PART))?;

    let address = stage.start_backup(stage.listen_address()).or_fail("the backup")?;
    timeline.event("synchronizing", "the first synchronization begins".into());
    stage.start_protect(&address, INTERVAL_MS).or_fail("protection")?;
    timeline.follow(&mut rate, || {
        let protect = stage.protect.as_ref().ok_or_else(|| Failure::failed("nothing protects"))?;
        Ok(protect.status().is_some_and(|status| state(&status) == "protected"))
    })?;
    timeline.event("protected", "protected".into());
    timeline.follow(&mut rate, elapsed(PART))?;

    let before = status(&mut stage)?;
    timeline.event("killed", "the primary host is dead".into());
    let killed = stage.kill_primary_host(pid(&before, "/guard_pid"));
    let mut resumed = None;
    timeline.follow(&mut rate, || {
        let backup = stage.backup.as_ref().ok_or_else(|| Failure::failed("there is no backup"))?;
        resumed = backup.status().filter(|status| state(status) == "active");
        if killed.elapsed() > PATIENCE {
            return Err(Failure::failed(format!("no takeover within {PATIENCE:?}")));
        }
        Ok(resumed.is_some())
    })?;
    let number =
        |path: &str| resumed.as_ref().and_then(|status| status.pointer(path)?.as_f64()).unwrap_or(0.0);
    // The last sign of life lies a heartbeat before the kill at most.
    let (total_ms, takeover_ms) = (number("/takeover/total_ms"), number("/takeover/takeover_ms"));
    timeline
        .event("active", format!("the backup runs the guest, {total_ms:.0} ms after the last sign of life"));
    let mut rate = WorkRate::follow(stage.backup_console())?;
    timeline.follow(&mut rate, elapsed(PART))?;
    Ok((total_ms, takeover_ms))
}
