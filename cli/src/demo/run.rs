//! One run of the demonstration: start both hosts, protect, kill one, watch the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::instance::{Instance, kill};
use super::qemu::{Console, Machine, accelerator};
use super::report::{FailoverReport, GuestCheck, GuestReport, Percentiles, RunReport};
use super::{DemoOptions, check_interrupted};
use crate::exit::Failure;

/// Length of a step of the guest's workload.
const GUEST_STEP_MS: f64 = 10.0;

/// Everything a run has started or made; ended and removed when dropped.
struct Stage {
    dir: Option<tempfile::TempDir>,
    ram: PathBuf,
    children: Vec<Child>,
    instances: Vec<Instance>,
}

impl Stage {
    fn new() -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("making a folder for the run: {e}"));
        let dir = tempfile::Builder::new().prefix("romulus-demo-").tempdir().map_err(failed)?;
        let name = dir.path().file_name().unwrap_or_default();
        let ram = Path::new("/dev/shm").join(name);
        Ok(Self { dir: Some(dir), ram, children: Vec::new(), instances: Vec::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.path().join(name)).unwrap_or_default()
    }

    fn keep(&mut self) {
        if let Some(dir) = self.dir.take() {
            println!("  logs and consoles are kept in {}", dir.keep().display());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for instance in &mut self.instances {
            if let Some(pid) = instance.status().as_ref().and_then(standby_pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            kill(&mut instance.child);
        }
        for child in &mut self.children {
            kill(child);
        }
        let _ = std::fs::remove_file(&self.ram);
    }
}

fn standby_pid(status: &Value) -> Option<rustix::process::Pid> {
    pid(status.pointer("/standby_pid")?)
}

fn pid(value: &Value) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(value.as_i64()?.try_into().ok()?)
}

fn machine(options: &DemoOptions) -> Machine {
    Machine {
        kind: options.machine.clone(),
        accelerator: accelerator(),
        memory_mib: options.guest_mib,
        check_mib: options.check_mib.unwrap_or((options.guest_mib / 4).min(256)),
        dirty_mib_per_second: options.dirty_mib_per_second,
        image_dir: options.image_dir.clone(),
    }
}

/// Makes one run. A run that went wrong is a report with a failure; an interruption is an error.
pub fn run_once(options: &DemoOptions) -> Result<RunReport, Failure> {
    let machine = machine(options);
    let mut stage = Stage::new()?;
    let mut report = RunReport {
        guest: GuestReport {
            kind: "qemu".into(),
            accelerator: machine.accelerator.into(),
            machine: machine.kind.clone(),
            memory_mib: machine.memory_mib,
        },
        fabric: "tcp".into(),
        interval_ms: options.interval,
        ..RunReport::default()
    };
    if let Err(failure) = play(options, &machine, &mut stage, &mut report) {
        check_interrupted()?;
        println!("  FAILED: {failure}");
        report.failure = Some(failure.message);
    }
    if options.keep || report.failure.is_some() {
        stage.keep();
    }
    Ok(report)
}

fn play(
    options: &DemoOptions,
    machine: &Machine,
    stage: &mut Stage,
    report: &mut RunReport,
) -> Result<(), Failure> {
    let mut primary_console = start_guest(machine, stage)?;
    start_backup(machine, stage)?;
    start_protection(options, stage)?;
    let before = protect_for_a_while(options, stage, &mut primary_console, report)?;
    let killed = kill_primary_host(stage, &before);
    println!("  the primary host is dead (epoch {} was its last acknowledged)", report.failover.killed_at_epoch);
    watch_takeover(stage, killed, report)?;
    check_guest(stage, &mut primary_console, report)
}

fn start_guest(machine: &Machine, stage: &mut Stage) -> Result<Console, Failure> {
    let console_path = stage.path("primary.console");
    let child =
        machine.start(&stage.ram, &console_path, &stage.path("primary.qmp"), &stage.path("primary-qemu.log"))?;
    stage.children.push(child);
    let mut console = Console::new(&console_path);
    let started = Instant::now();
    let limit = Duration::from_secs(60 + machine.memory_mib / 16);
    while console.last.is_none() {
        console.poll();
        check_interrupted()?;
        if let Ok(Some(status)) = stage.children[0].try_wait() {
            let log = std::fs::read_to_string(stage.path("primary-qemu.log")).unwrap_or_default();
            return Err(Failure::failed(format!("QEMU ended ({status}): {log}")));
        }
        if started.elapsed() > limit {
            return Err(Failure::failed(format!("the guest did not boot within {limit:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!(
        "  a guest of {} MiB runs ({}, {}), up after {:.1} s, checking {} MiB of its memory",
        machine.memory_mib,
        machine.kind,
        machine.accelerator,
        started.elapsed().as_secs_f64(),
        machine.check_mib
    );
    Ok(console)
}

fn start_backup(machine: &Machine, stage: &mut Stage) -> Result<(), Failure> {
    let standby = stage.path("standby.args");
    let arguments = machine.arguments("{image}", &stage.path("backup.console"));
    let text = format!("qemu-system-x86_64\n{}\n", arguments.join("\n"));
    std::fs::write(&standby, text)
        .map_err(|e| Failure::failed(format!("writing {}: {e}", standby.display())))?;
    let arguments = [
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--standby".into(),
        standby.to_string_lossy().into_owned(),
        "--host".into(),
        "backup".into(),
        "--arbiter".into(),
        arbiter(stage),
    ];
    stage.instances.push(Instance::start("backup", &stage.path(""), &arguments)?);
    Ok(())
}

fn arbiter(stage: &Stage) -> String {
    format!("file:{}", stage.path("arbiter").display())
}

fn start_protection(options: &DemoOptions, stage: &mut Stage) -> Result<(), Failure> {
    let address = stage.instances[0].wait_for("listening backup", Duration::from_secs(10), |status| {
        Some(status.pointer("/listen")?.as_str()?.to_owned())
    })?;
    println!("  a backup stands ready at {address}");
    let arguments = [
        "--guest".into(),
        format!("qemu:{}", stage.path("primary.qmp").display()),
        "--backup".into(),
        address,
        "--name".into(),
        "demo".into(),
        "--host".into(),
        "primary".into(),
        "--interval-ms".into(),
        options.interval.to_string(),
        "--arbiter".into(),
        arbiter(stage),
    ];
    let started = Instant::now();
    stage.instances.push(Instance::start("protect", &stage.path(""), &arguments)?);
    let limit = Duration::from_secs(60 + options.guest_mib / 16);
    stage.instances[1].wait_for("protected guest", limit, |status| (state(status) == "protected").then_some(()))?;
    println!("  protected after {:.1} s (first full copy and a trial load)", started.elapsed().as_secs_f64());
    Ok(())
}

fn state(status: &Value) -> &str {
    status.pointer("/state").and_then(Value::as_str).unwrap_or("")
}

/// Lets protection run, and gives the last status before the kill.
fn protect_for_a_while(
    options: &DemoOptions,
    stage: &mut Stage,
    console: &mut Console,
    report: &mut RunReport,
) -> Result<Value, Failure> {
    let extra_ms = u64::from(random_u16()) % 1_000;
    let end = Instant::now() + Duration::from_secs_f64(options.seconds) + Duration::from_millis(extra_ms);
    while Instant::now() < end {
        check_interrupted()?;
        console.poll();
        let pause = end.saturating_duration_since(Instant::now());
        std::thread::sleep(pause.min(Duration::from_millis(100)));
    }
    let status = stage.instances[1].wait_for("protected guest at the end", Duration::from_secs(5), |status| {
        (state(status) == "protected").then(|| status.clone())
    })?;
    measure(&status, report);
    println!(
        "  {} checkpoints committed, {:.1} a second; pause p50 {} us, p99 {} us",
        report.epochs_committed, report.checkpoints_per_second, report.pause_us.p50, report.pause_us.p99
    );
    Ok(status)
}

fn random_u16() -> u16 {
    let mut bytes = [0; 2];
    // Without the system's randomness the moment of the kill is merely less random.
    let _ = getrandom::fill(&mut bytes);
    u16::from_le_bytes(bytes)
}

fn measure(status: &Value, report: &mut RunReport) {
    let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let percentiles = |path: &str| -> Percentiles {
        status.pointer(path).and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
    };
    report.epochs_committed = number("/epochs_committed");
    report.epochs_late = number("/epochs_late");
    report.checkpoints_per_second =
        status.pointer("/checkpoints_per_second").and_then(Value::as_f64).unwrap_or(0.0);
    report.pause_us = percentiles("/pause_us");
    report.ack_us = percentiles("/ack_us");
    report.dirty_pages_per_epoch = percentiles("/dirty_pages_per_epoch");
    report.phases_us = ["stop", "state", "collect", "place", "copy", "resume"]
        .iter()
        .map(|phase| (phase.to_string(), percentiles(&format!("/phases_us/{phase}"))))
        .collect::<BTreeMap<_, _>>();
    report.failover.killed_at_epoch = number("/acked_epoch");
}

/// Kills what a dying host takes with it: the guard, Romulus and QEMU.
fn kill_primary_host(stage: &mut Stage, status: &Value) -> Instant {
    let killed = Instant::now();
    if let Some(guard) = status.pointer("/guard_pid").and_then(pid) {
        let _ = rustix::process::kill_process(guard, rustix::process::Signal::KILL);
    }
    let _ = stage.instances[1].child.kill();
    let _ = stage.children[0].kill();
    let _ = stage.instances[1].child.wait();
    let _ = stage.children[0].wait();
    killed
}

fn watch_takeover(stage: &mut Stage, killed: Instant, report: &mut RunReport) -> Result<(), Failure> {
    let status = stage.instances[0].wait_for("takeover", Duration::from_secs(30), |status| {
        (state(status) == "active").then(|| status.clone())
    })?;
    let total_ms = killed.elapsed().as_secs_f64() * 1_000.0;
    let takeover_ms = status.pointer("/takeover_ms").and_then(Value::as_f64).unwrap_or(0.0);
    report.failover = FailoverReport {
        killed_at_epoch: report.failover.killed_at_epoch,
        resumed_at_epoch: status.pointer("/committed_epoch").and_then(Value::as_u64).unwrap_or(0),
        detection_ms: (total_ms - takeover_ms).max(0.0),
        takeover_ms,
        total_ms,
    };
    println!(
        "  the backup resumed the guest {total_ms:.0} ms after the kill, from epoch {} ({takeover_ms:.0} ms of it \
         takeover)",
        report.failover.resumed_at_epoch
    );
    Ok(())
}

/// Lets the resumed guest check all of its pages once, and compares its counter.
fn check_guest(stage: &mut Stage, primary: &mut Console, report: &mut RunReport) -> Result<(), Failure> {
    primary.poll();
    let before = primary.last.unwrap_or_default();
    let mut console = Console::new(&stage.path("backup.console"));
    let started = Instant::now();
    loop {
        console.poll();
        check_interrupted()?;
        let (Some(first), Some(last)) = (console.first, console.last) else {
            if started.elapsed() > Duration::from_secs(20) {
                return Err(Failure::failed("the resumed guest says nothing on its console".into()));
            }
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        // The pass that was under way at the takeover does not count, the next one does.
        let passes_after = last.passes.saturating_sub(first.passes + 1);
        let gap = (before.counter + 1).saturating_sub(first.counter);
        report.guest_check = GuestCheck {
            counter_before: before.counter,
            counter_after: first.counter,
            gap,
            gap_allowed: gap_allowed(report),
            corrupt_pages: last.corrupt,
            passes_after,
        };
        if last.corrupt > 0 || !console.complaints.is_empty() {
            return Err(Failure::failed(format!("the guest found {}", console.complaints.join("; "))));
        }
        if passes_after >= 1 {
            break;
        }
        if started.elapsed() > Duration::from_secs(120) {
            return Err(Failure::failed("the resumed guest did not check all of its pages within 120 s".into()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let check = &report.guest_check;
    println!(
        "  it goes on at step {} (step {} was the last seen before), all its pages are intact",
        check.counter_after, check.counter_before
    );
    if check.gap > check.gap_allowed {
        return Err(Failure::failed(format!(
            "the guest lost {} steps, the last uncommitted epoch can explain {}",
            check.gap, check.gap_allowed
        )));
    }
    Ok(())
}

/// Steps between the last committed pause and the kill: an interval, the longest commit seen,
/// and one step begun and not printed on either side.
fn gap_allowed(report: &RunReport) -> u64 {
    let ms = report.interval_ms + (report.ack_us.max.max(report.pause_us.max)) as f64 / 1_000.0;
    (ms / GUEST_STEP_MS).ceil() as u64 + 2
}
