//! One run of the demonstration: start both hosts, protect, kill one, watch the other.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, Phase};
use super::instance::{pid, state};
use super::network;
use super::qemu::{Console, Machine, accelerator};
use super::report::{ClockReport, FailoverReport, GuestCheck, GuestReport, Percentiles, RunReport};
use super::stage::Stage;
use super::{DemoOptions, check_interrupted};
use crate::exit::Failure;

/// Length of a step of the guest's workload.
const GUEST_STEP_MS: f64 = 10.0;
/// Between two requests of the client.
const CLIENT_PACE: Duration = Duration::from_millis(5);
/// How long the client is measured before the guest is protected.
const UNPROTECTED: Duration = Duration::from_secs(3);

fn machine(options: &DemoOptions) -> Machine {
    Machine {
        kind: options.machine.clone(),
        accelerator: accelerator(),
        memory_mib: options.guest_mib,
        check_mib: options.check_mib.unwrap_or((options.guest_mib / 4).min(256)),
        dirty_mib_per_second: options.dirty_mib_per_second,
        halt_after_s: None,
        networked: !options.no_client,
        servers: false,
        work: None,
        image_dir: options.image_dir.clone(),
    }
}

/// Makes one run. A run that went wrong is a report with a failure; an interruption is an error.
pub fn run_once(options: &DemoOptions) -> Result<RunReport, Failure> {
    let machine = machine(options);
    let program =
        std::env::current_exe().map_err(|e| Failure::failed(format!("finding this program: {e}")))?;
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
    let mut stage = Stage::new(machine, &program).map_err(|failure| {
        let without = if options.no_client { "" } else { "; --no-client shows the rest, without a network" };
        Failure::new(failure.code, failure.message + without)
    })?;
    if let Err(failure) = play(options, &mut stage, &mut report) {
        check_interrupted()?;
        println!("  FAILED: {failure}");
        report.failure = Some(failure.message);
    }
    if options.keep || report.failure.is_some() {
        stage.keep_folder();
    }
    Ok(report)
}

fn play(options: &DemoOptions, stage: &mut Stage, report: &mut RunReport) -> Result<(), Failure> {
    let started = Instant::now();
    let mut console = stage.start_guest()?;
    let machine = &stage.machine;
    println!(
        "  a guest of {} MiB runs ({}, {}), up after {:.1} s, checking {} MiB of its memory",
        machine.memory_mib,
        machine.kind,
        machine.accelerator,
        started.elapsed().as_secs_f64(),
        machine.check_mib
    );

    let client = start_client(stage)?;
    let address = stage.start_backup(stage.listen_address())?;
    println!("  a backup stands ready at {address}");

    let started = Instant::now();
    stage.start_protect(&address, options.interval)?;
    stage.wait_protected()?;
    set_phase(&client, Phase::Protected);
    println!("  protected after {:.1} s: a full copy and a trial load", started.elapsed().as_secs_f64());
    if let Some(client) = &client {
        report.silence_before_ms = client.take_silence().as_secs_f64() * 1_000.0;
        println!("  the client heard nothing for {:.0} ms as protection began", report.silence_before_ms);
    }

    let before = protect_for_a_while(options, stage, &mut console, report)?;
    set_phase(&client, Phase::Other);
    let killed = Instant::now();
    // A host that dies sends no farewell: its wires first, so that no socket's end gets out.
    if let Some(network) = &stage.network {
        network.set_wires(stage.side(), false)?;
    }
    stage.kill_primary_host(pid(&before, "/guard_pid"));
    println!(
        "  the primary host is dead; epoch {} was its last acknowledged",
        report.failover.killed_at_epoch
    );

    let outcome = watch_takeover(stage, killed, report).and_then(|()| {
        audit(stage, client.as_ref())?;
        check_guest(stage, &mut console, report)
    });
    let said = client.map_or(Ok(()), |client| finish_client(client, report));
    outcome.and(said)
}

/// Starts the client, and measures it for a while before anything is protected.
fn start_client(stage: &Stage) -> Result<Option<Client>, Failure> {
    let Some(network) = &stage.network else { return Ok(None) };
    let server = network::guest_server();
    let client = Client::start(network.world(), server, CLIENT_PACE, Duration::from_secs(20))?;
    client.set_phase(Phase::Unprotected);
    let until = Instant::now() + UNPROTECTED;
    while Instant::now() < until {
        check_interrupted()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    client.set_phase(Phase::Other);
    let latency = client.latency(Phase::Unprotected);
    println!(
        "  a client keeps one connection to {server} and asks {} times a second; answers take {:.1} ms, p99 {:.1} ms",
        1_000 / CLIENT_PACE.as_millis(),
        latency.p50,
        latency.p99
    );
    Ok(Some(client))
}

fn set_phase(client: &Option<Client>, phase: Phase) {
    if let Some(client) = client {
        client.set_phase(phase);
    }
}

/// Asks the resumed guest whether it knows all that it had answered.
fn audit(stage: &Stage, client: Option<&Client>) -> Result<(), Failure> {
    match (client, &stage.network) {
        (Some(client), Some(network)) => client.audit(network.world(), Duration::from_secs(20)),
        _ => Ok(()),
    }
}

/// Ends the client, and tells what it saw.
fn finish_client(client: Client, report: &mut RunReport) -> Result<(), Failure> {
    let (said, complaints) = client.finish(Duration::from_secs(20));
    report.client = Some(said);
    println!(
        "  the client's connection {}: {} requests, {} answers taken back, {} duplicates, longest silence {:.0} ms, \
         {:.1} ms more for an answer while protected (p99 {:.1} ms)",
        if said.survived == said.connections { "went on" } else { "did not go on" },
        said.requests,
        said.answers_taken_back,
        said.duplicates,
        said.longest_silence_ms,
        said.added_latency_ms.p50,
        said.added_latency_ms.p99
    );
    match complaints.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(format!("client: {}", complaints.join("; ")))),
    }
}

/// Lets protection run, and gives the last status before the kill.
fn protect_for_a_while(
    options: &DemoOptions,
    stage: &mut Stage,
    console: &mut Console,
    report: &mut RunReport,
) -> Result<Value, Failure> {
    console.poll();
    let (clock_started, clock_ms) = (Instant::now(), console.last.map_or(0, |report| report.clock_ms));
    let extra_ms = u64::from(random_u16()) % 1_000;
    let end = Instant::now() + Duration::from_secs_f64(options.seconds) + Duration::from_millis(extra_ms);
    while Instant::now() < end {
        check_interrupted()?;
        console.poll();
        let pause = end.saturating_duration_since(Instant::now());
        std::thread::sleep(pause.min(Duration::from_millis(100)));
    }
    console.poll();
    let host_ms = clock_started.elapsed().as_millis() as u64;
    let guest_ms = console.last.map_or(0, |report| report.clock_ms) - clock_ms;
    report.guest_clock = ClockReport { host_ms, guest_ms, rate: guest_ms as f64 / host_ms.max(1) as f64 };
    let protect = stage.protect.as_mut().expect("protect was started");
    let status = protect.wait_for("protected guest at the end", Duration::from_secs(5), |status| {
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
    report.epochs_late = number("/late_epochs");
    report.checkpoints_per_second =
        status.pointer("/checkpoints_per_second").and_then(Value::as_f64).unwrap_or(0.0);
    report.pause_us = percentiles("/pause_us");
    report.ack_us = percentiles("/ack_us");
    report.dirty_pages_per_epoch = percentiles("/dirty_pages");
    let phases = status.pointer("/phases_us").and_then(Value::as_array);
    for phase in phases.into_iter().flatten() {
        let name = phase.pointer("/phase").and_then(Value::as_str).unwrap_or("").to_owned();
        let us = phase.pointer("/us").cloned().unwrap_or_default();
        report.phases_us.insert(name, serde_json::from_value(us).unwrap_or_default());
    }
    report.failover.killed_at_epoch = number("/epoch");
}

fn watch_takeover(stage: &mut Stage, killed: Instant, report: &mut RunReport) -> Result<(), Failure> {
    let backup = stage.backup.as_mut().expect("the backup was started");
    let status = backup.wait_for("takeover", Duration::from_secs(30), |status| {
        (state(status) == "active").then(|| status.clone())
    })?;
    let total_ms = killed.elapsed().as_secs_f64() * 1_000.0;
    let takeover_ms = status.pointer("/takeover/takeover_ms").and_then(Value::as_f64).unwrap_or(0.0);
    report.failover = FailoverReport {
        killed_at_epoch: report.failover.killed_at_epoch,
        resumed_at_epoch: status.pointer("/epoch").and_then(Value::as_u64).unwrap_or(0),
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
    let mut console = stage.backup_console();
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
            return Err(Failure::failed(
                "the resumed guest did not check all of its pages within 120 s".into(),
            ));
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
