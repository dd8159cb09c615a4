//! `romulus-perf primary`: runs a synthetic guest and protects it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use romulus_checkpoint::PAGE_BYTES;
use romulus_checkpoint::driver::primary::{
    CaptureMode, PrimaryDriver, PrimaryHandle, PrimaryOptions, PrimaryOutcome, PrimaryParts, PrimaryStatus,
};
use romulus_checkpoint::synthetic::{
    Fill, Pace, Pattern, SyntheticGuest, SyntheticGuestControl, SyntheticOptions,
};
use romulus_host::pinning::PinningPlan;
use serde::Serialize;

use super::affinity::{self, Thread};
use super::common::{CommonOptions, EndRequest, GUEST};
use super::gate::WitnessedGate;
use super::halt::{Halt, HaltingFabric, Zombie};
use super::live;
use crate::bandwidth::{cpu_seconds, touch};
use crate::exit::{Code, Failure, OrFail};
use crate::fabrics::{FabricOptions, thread_setup};
use crate::results::{Better, Labels, Measurement, RunClock, names};

/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// A line of progress this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Protected for so long before the measured part begins.
const SETTLING: Duration = Duration::from_secs(1);

/// How an epoch's pages leave the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Capture {
    /// Copied in the pause, sent after it
    Staged,
    /// Sent from the guest's memory while it is paused
    Direct,
}

/// Which pages the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Writes {
    /// Exactly so many different pages, none beside another
    Strided,
    /// At random; now and then a page twice
    Uniform,
    /// One after another
    Sequential,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// The guest is moved to the backup, which verifies it
    Failover,
    /// Protection ends, the guest stays here
    Stop,
}

/// Options of `romulus-perf primary`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct PrimaryCommand {
    #[command(flatten)]
    fabric: FabricOptions,
    #[command(flatten)]
    common: CommonOptions,

    /// Where `romulus-perf backup` listens
    #[arg(long, value_name = "ADDR:PORT")]
    backup: SocketAddr,

    /// Memory of the guest, all of it written before protection begins
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    guest_mib: u64,

    /// Pages that the guest writes in each epoch, as soon as it runs
    #[arg(long, value_name = "N", default_value_t = 800)]
    dirty_pages_per_epoch: u64,

    /// Which pages
    #[arg(long, value_enum, default_value_t = Writes::Strided)]
    writes: Writes,

    /// Threads of the guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    writers: u64,

    /// Device state of the guest
    #[arg(long, value_name = "KIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=8192))]
    state_kib: u64,

    /// Length of an epoch
    #[arg(long, value_name = "MS", default_value_t = 25.0)]
    interval_ms: f64,

    /// Epochs that are captured and not yet committed at the most
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    depth: u64,

    /// How an epoch's pages leave the guest
    #[arg(long, value_enum, default_value_t = Capture::Staged)]
    capture: Capture,

    /// Copy-only homes, as for guests of Xen: pages reach the standby's own memory by homing alone
    #[arg(long)]
    copy_only: bool,

    /// Threads that copy beside the capturing one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=64))]
    copy_workers: u64,

    /// The backup is taken for lost after so long without a sign of life; shorter than its own
    #[arg(long, value_name = "MS", default_value_t = 150, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    suspect_ms: u64,

    /// Length of the measured part, which begins a second after the first commit; 0: without end
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,

    /// How the run ends
    #[arg(long, value_enum, default_value_t = End::Failover)]
    end: End,

    /// Give up when the backup was lost, or could not be reached, for so long
    #[arg(long, value_name = "S", default_value_t = 60)]
    patience: u64,

    /// End with status 6 below so many checkpoints a second
    #[arg(long, value_name = "RATE")]
    require_rate: Option<f64>,

    /// End with status 6 if more epochs than this were late in the measured part
    #[arg(long, value_name = "N")]
    require_late: Option<u64>,

    /// For tests: stop this process (SIGSTOP) when half of this epoch's writes are posted
    #[arg(long, value_name = "EPOCH", value_parser = clap::value_parser!(u64).range(2..))]
    stop_in_epoch: Option<u64>,
}

/// What was measured between two looks.
#[derive(Clone, Debug, Default, Serialize)]
struct Measured {
    seconds: f64,
    epochs: u64,
    checkpoints_per_second: f64,
    late_epochs: u64,
    cpu_seconds: f64,
    bytes_written: u64,
    /// Pages that the guest wrote.
    guest_writes: u64,
}

/// What came of the run.
#[derive(Debug, Serialize)]
struct Outcome {
    /// `taken_over`, `stopped`, `unreachable`, `guest_ended`, `failed`.
    outcome: String,
    why: String,
    /// Whether the guest was destroyed here because another host owns it.
    guest_destroyed: bool,
    guest_paused: bool,
    /// The latest pause whose output left, and whether the guest was let run alone.
    released_pause: u64,
    ran_alone: bool,
    /// Late epochs of the whole run, its first second included.
    late_epochs_in_all: u64,
    measured: Option<Measured>,
    threads: Vec<Thread>,
    zombie: Option<Zombie>,
    status: PrimaryStatus,
}

impl PrimaryCommand {
    fn guest_options(&self) -> SyntheticOptions {
        let pages = (self.guest_mib << 20) / PAGE_BYTES;
        SyntheticOptions {
            name: GUEST.into(),
            regions: vec![pages],
            filled_pages: pages,
            state_bytes: self.state_kib << 10,
            writers: self.writers as usize,
            pattern: match self.writes {
                Writes::Strided => Pattern::Strided,
                Writes::Uniform => Pattern::Uniform,
                Writes::Sequential => Pattern::Sequential,
            },
            fill: Fill::Whole,
            pace: Pace::PerResume(self.dirty_pages_per_epoch),
            ..SyntheticOptions::default()
        }
    }

    fn driver_options(&self, guest: &SyntheticGuest, shared: bool) -> Result<PrimaryOptions, Failure> {
        if !(self.interval_ms >= 0.1 && self.interval_ms <= 60_000.0) {
            let text = format!("--interval-ms {}: between 0.1 and 60000", self.interval_ms);
            return Err(Failure::usage(text));
        }
        let pages = (self.guest_mib << 20) / PAGE_BYTES;
        if self.dirty_pages_per_epoch > pages / 2 {
            return Err(Failure::usage(format!(
                "--dirty-pages-per-epoch {}: at most half of the guest's {pages} pages; raise --guest-mib",
                self.dirty_pages_per_epoch
            )));
        }
        let mut options = PrimaryOptions::new("primary", self.backup, guest).or_fail("random numbers")?;
        options.machine.interval = Duration::from_secs_f64(self.interval_ms / 1e3);
        options.machine.depth = self.depth;
        options.machine.suspect_after = Duration::from_millis(self.suspect_ms);
        options.machine.heartbeat_every = Duration::from_millis((self.suspect_ms / 8).clamp(2, 20));
        options.machine.solo_automatic = shared;
        options.machine.shared_arbiter = shared;
        options.machine.sync_target_pages = 4096.max(2 * self.dirty_pages_per_epoch);
        options.spares = options.spares.max(4 * self.dirty_pages_per_epoch);
        options.machine.low_water_spares = options.spares / 2;
        options.staging_bytes = (64 << 20).max(4 * self.dirty_pages_per_epoch * PAGE_BYTES);
        options.copy_workers = self.copy_workers as usize;
        options.spin = self.fabric.spin();
        options.copy_only_homes = self.copy_only;
        options.capture = match self.capture {
            Capture::Staged => CaptureMode::Staged,
            Capture::Direct => CaptureMode::Direct,
        };
        Ok(options)
    }
}

/// Runs the command.
pub fn run(command: &PrimaryCommand) -> Result<ExitCode, Failure> {
    let clock = RunClock::start();
    let end = EndRequest::watch()?;
    let plan = command.fabric.plan()?;
    let setup = thread_setup(plan.clone());
    let (arbiter, shared) = command.common.arbiter()?;
    let guest = SyntheticGuest::start(command.guest_options()).or_fail("starting the guest")?;
    let control = guest.control();
    let driver = command.driver_options(&guest, shared)?;
    let staging_bytes = driver.staging_bytes;
    let gate = Arc::new(WitnessedGate::new(control.clone(), command.backup)?);
    let halt = command.stop_in_epoch.map(Halt::in_epoch);
    let mut fabric = command.fabric.open(&setup, None)?;
    if let Some(halt) = &halt {
        fabric = Arc::new(HaltingFabric::new(fabric, Arc::clone(halt)));
    }
    let mut parts = PrimaryParts::new(Box::new(guest), arbiter, fabric);
    parts.gate = gate.clone();
    // First touches are dear on some machines (user-mode Linux) and are no part of an epoch.
    let staging = romulus_host::memory::staging(staging_bytes as usize).or_fail("staging memory")?;
    touch(&staging);
    parts.staging = Some(staging);
    parts.threads = Arc::new(move |name: &str| setup(name));
    let handle = PrimaryDriver::spawn(driver, parts).or_fail("protection cannot begin")?;
    let mut watch = Watch::new(command, &handle, control.clone(), plan);
    let (outcome, why) = watch.run(&end)?;
    let outcome = Outcome {
        outcome: outcome.to_owned(),
        why,
        guest_destroyed: control.is_destroyed(),
        guest_paused: control.is_paused(),
        released_pause: gate.released_pause(),
        ran_alone: gate.was_opened(),
        late_epochs_in_all: handle.status().late_epochs,
        measured: watch.measured,
        threads: watch.threads,
        zombie: halt.and_then(|halt| halt.zombie()),
        status: handle.status(),
    };
    let mut run = clock.run("primary", command)?;
    run.device = command.fabric.used_device();
    run.measurements = figures(command, &outcome);
    run.result = serde_json::to_value(&outcome).or_fail("the outcome as JSON")?;
    run.write(command.common.json.as_deref())?;
    println!("{}", summary(&outcome));
    affinity::check(&outcome.threads)?;
    judge(command, &outcome, watch.asked)
}

/// Follows a protected guest to the end.
struct Watch<'a> {
    command: &'a PrimaryCommand,
    handle: &'a PrimaryHandle,
    guest: SyntheticGuestControl,
    plan: PinningPlan,
    begun: Instant,
    protected: Option<Instant>,
    /// Status, processor time and writes when the measured part began.
    baseline: Option<(Instant, PrimaryStatus, f64, u64)>,
    measured: Option<Measured>,
    threads: Vec<Thread>,
    connected: Instant,
    asked: bool,
}

impl<'a> Watch<'a> {
    fn new(
        command: &'a PrimaryCommand,
        handle: &'a PrimaryHandle,
        guest: SyntheticGuestControl,
        plan: PinningPlan,
    ) -> Self {
        let (begun, connected) = (Instant::now(), Instant::now());
        let (protected, baseline, measured) = (None, None, None);
        let threads = Vec::new();
        Self {
            command,
            handle,
            guest,
            plan,
            begun,
            protected,
            baseline,
            measured,
            threads,
            connected,
            asked: false,
        }
    }

    fn run(&mut self, end: &EndRequest) -> Result<(&'static str, String), Failure> {
        let mut told = Instant::now();
        loop {
            if let Some(outcome) = self.handle.wait_for(LOOK) {
                return Ok(name_of(outcome));
            }
            // A snapshot sums up histograms that are written meanwhile: rarely once all is well.
            let settling =
                self.protected.is_some_and(|at| self.baseline.is_none() && at.elapsed() >= SETTLING);
            let due = told.elapsed() >= TELL_EVERY || settling || self.is_over();
            if self.protected.is_some() && !due && !end.came() {
                continue;
            }
            let status = self.handle.status();
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                eprintln!("{}", live::line(self.begun.elapsed().as_secs_f64(), &status));
            }
            self.look(status)?;
            if end.came() && !self.asked {
                self.asked = true;
                self.handle.request_stop();
            }
            if self.connected.elapsed() >= Duration::from_secs(self.command.patience) {
                let text =
                    format!("no connection to {} for {} s", self.command.backup, self.command.patience);
                return Ok(("unreachable", text));
            }
        }
    }

    fn is_over(&self) -> bool {
        let length = Duration::from_secs(self.command.seconds);
        let begun = self.baseline.as_ref().map(|baseline| baseline.0);
        !self.asked && !length.is_zero() && begun.is_some_and(|begun| begun.elapsed() >= length)
    }

    fn look(&mut self, status: PrimaryStatus) -> Result<(), Failure> {
        if status.connected {
            self.connected = Instant::now();
        }
        if let Some(refusal) = status.refusal.as_ref().filter(|_| self.protected.is_none()) {
            return Err(Failure::failed(format!("the backup refuses: {}", refusal.text)));
        }
        if self.protected.is_none() && status.state == "protected" {
            self.protected = Some(Instant::now());
        }
        let now = (cpu_seconds(), self.guest.writes());
        if self.baseline.is_none() && self.protected.is_some_and(|at| at.elapsed() >= SETTLING) {
            self.threads = affinity::threads(&self.plan)?;
            self.baseline = Some((Instant::now(), status, now.0, now.1));
            return Ok(());
        }
        let over = self.is_over();
        let Some((at, before, cpu, writes)) = &self.baseline else { return Ok(()) };
        if !self.asked {
            let seconds = at.elapsed().as_secs_f64();
            let epochs = status.epochs_committed - before.epochs_committed;
            self.measured = Some(Measured {
                seconds,
                epochs,
                checkpoints_per_second: epochs as f64 / seconds,
                late_epochs: status.late_epochs - before.late_epochs,
                cpu_seconds: now.0 - cpu,
                bytes_written: status.bytes_written - before.bytes_written,
                guest_writes: now.1 - writes,
            });
        }
        if over {
            self.asked = true;
            self.finish()?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), Failure> {
        match self.command.end {
            End::Stop => self.handle.request_stop(),
            End::Failover => self.handle.request_failover().or_fail("moving the guest to the backup")?,
        }
        Ok(())
    }
}

fn figures(command: &PrimaryCommand, outcome: &Outcome) -> Vec<Measurement> {
    let Some(measured) = &outcome.measured else { return Vec::new() };
    let status = &outcome.status;
    let labels = Labels::default()
        .with("fabric", command.fabric.fabric.name())
        .with("streams", command.fabric.streams)
        .with("guest_mib", command.guest_mib)
        .with("dirty_pages", command.dirty_pages_per_epoch)
        .with("interval_ms", command.interval_ms)
        .with("capture", if command.capture == Capture::Direct { "direct" } else { "staged" })
        .with("copy_workers", command.copy_workers);
    let figure = |name, unit, better, value| Measurement::single(name, &labels, unit, better, value);
    let late = 100.0 * measured.late_epochs as f64 / (measured.epochs.max(1)) as f64;
    vec![
        figure(names::CHECKPOINTS_PER_SECOND, "1/s", Better::Higher, measured.checkpoints_per_second),
        figure(names::LATE_EPOCHS_PERCENT, "%", Better::Lower, late),
        figure(names::PAUSE_P50_US, "us", Better::Lower, status.pause_us.p50 as f64),
        figure(names::PAUSE_P99_US, "us", Better::Lower, status.pause_us.p99 as f64),
        figure(names::COMMIT_P50_US, "us", Better::Lower, status.ack_us.p50 as f64),
        figure(names::COMMIT_P99_US, "us", Better::Lower, status.ack_us.p99 as f64),
        figure(names::DIRTY_PAGES_P50, "pages", Better::Neither, status.dirty_pages.p50 as f64),
    ]
}

fn name_of(outcome: PrimaryOutcome) -> (&'static str, String) {
    match outcome {
        PrimaryOutcome::Stopped => ("stopped", String::new()),
        PrimaryOutcome::GuestEnded => ("guest_ended", String::new()),
        PrimaryOutcome::GuestDied(why) => ("guest_died", why),
        PrimaryOutcome::GuestDiedUnprotected(why) => ("guest_died_unprotected", why),
        PrimaryOutcome::TakenOver => ("taken_over", String::new()),
        PrimaryOutcome::Failed(why) => ("failed", why),
    }
}

fn summary(outcome: &Outcome) -> String {
    let mut text = format!("outcome: {} {}", outcome.outcome, outcome.why).trim_end().to_owned();
    if let Some(measured) = &outcome.measured {
        let status = &outcome.status;
        text += &format!(
            "\n{:.2} checkpoints/s over {:.1} s, {} late, {} in the whole run; {} dirty pages an epoch (p50), {:.1} \
             MB/s written, {:.2} CPU seconds a second\npause p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; commit p50 \
             {:.2} ms, p99 {:.2} ms, max {:.2} ms; overflows {}, stalls {}, connections {}",
            measured.checkpoints_per_second,
            measured.seconds,
            measured.late_epochs,
            outcome.late_epochs_in_all,
            status.dirty_pages.p50,
            measured.bytes_written as f64 / measured.seconds / 1e6,
            measured.cpu_seconds / measured.seconds,
            status.pause_us.p50 as f64 / 1e3,
            status.pause_us.p99 as f64 / 1e3,
            status.pause_us.max as f64 / 1e3,
            status.ack_us.p50 as f64 / 1e3,
            status.ack_us.p99 as f64 / 1e3,
            status.ack_us.max as f64 / 1e3,
            status.overflows,
            status.stalled_epochs,
            status.connections,
        );
    }
    if let Some(zombie) = &outcome.zombie {
        text += &format!("\nzombie: {} + {} bytes, errors: ", zombie.bytes_before, zombie.bytes_after);
        text += &zombie.errors.join("; ");
        text += &format!("; the connection: {}", zombie.ended.as_deref().unwrap_or("no end seen"));
    }
    text
}

fn judge(command: &PrimaryCommand, outcome: &Outcome, asked: bool) -> Result<ExitCode, Failure> {
    match outcome.outcome.as_str() {
        "taken_over" if asked => {}
        "stopped" => {}
        "taken_over" => return Err(Failure::new(Code::Moved, "the backup has taken the guest over")),
        other => return Err(Failure::failed(format!("{other}: {}", outcome.why))),
    }
    let Some(measured) = &outcome.measured else {
        if command.require_rate.is_some() || command.require_late.is_some() {
            return Err(Failure::new(Code::Short, "the run ended before anything was measured"));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let rate = measured.checkpoints_per_second;
    if let Some(least) = command.require_rate.filter(|least| rate < *least) {
        return Err(Failure::new(Code::Short, format!("{rate:.2} checkpoints/s, {least} are required")));
    }
    let late = measured.late_epochs;
    if let Some(most) = command.require_late.filter(|most| late > *most) {
        return Err(Failure::new(Code::Short, format!("{late} epochs were late, {most} are allowed")));
    }
    Ok(ExitCode::SUCCESS)
}
