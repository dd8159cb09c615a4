//! QEMU COLO, as far as the installed QEMU can: tried for a bounded time, and what it did is
//! counted in its own trace. Without its block replication and network proxy, which the guest has
//! no use for: it has neither disk nor card.

use std::path::Path;
use std::time::{Duration, Instant};

use romulus::demo::check_interrupted;
use romulus::demo::stage::Stage;
use romulus_qemu::qmp::Client;
use serde_json::{Value, json};

use super::PeersCommand;
use super::receiver::{Receiver, set_capabilities};
use crate::exit::{Failure, OrFail};
use crate::guest::status;
use crate::results::{Beside, Better, Measurement, Run, names};

/// For one command: a COLO that hangs must not hang this.
const COMMAND: Duration = Duration::from_secs(5);
/// Until COLO's first checkpoint begins.
const BEGINNING: Duration = Duration::from_secs(60);
/// What the primary's trace says of a checkpoint that the secondary has loaded.
const LOADED: &str = "Receive 'vmstate-loaded' message";
/// What it says of one that begins.
const REQUESTED: &str = "Send 'checkpoint-request' message";

/// What came of the attempt.
struct Attempt {
    checkpoints: usize,
    /// Of them in the second half of the time: COLO that goes on, not only COLO that began.
    late_checkpoints: usize,
    seconds: f64,
    evidence: String,
}

/// Tries COLO, and beside it Romulus at the same interval; a failure of any of it is a note.
pub fn run(command: &PeersCommand, program: &Path, run: &mut Run) -> Result<(), Failure> {
    if let Err(failure) = measure(command, program, run) {
        check_interrupted().or_fail("COLO")?;
        run.notes.push(format!("colo: not measured: {failure}"));
    }
    Ok(())
}

fn measure(command: &PeersCommand, program: &Path, run: &mut Run) -> Result<(), Failure> {
    let mut machine = command.real.machine(None, command.content_mib(), command.dirty_mib_per_second);
    // On q35 the secondary of QEMU 7.2 ends with a failed assertion in its first checkpoint.
    machine.kind = "pc".into();
    let mut stage = Stage::new(machine, program).or_fail("the stage")?;
    stage.arbitrated = false;
    stage.start_guest().or_fail("the guest for COLO")?;
    let ours = rate_of_romulus(&mut stage, command)?;
    let attempt = attempt(&stage, command)?;
    let rate = attempt.checkpoints as f64 / attempt.seconds;
    if attempt.late_checkpoints == 0 {
        run.notes.push(format!(
            "colo: did not work with this QEMU: {} checkpoints in {:.0} s, none of them in the second half of it; {}",
            attempt.checkpoints, attempt.seconds, attempt.evidence
        ));
        return Ok(());
    }
    println!(
        "colo: {rate:.1} checkpoints/s, Romulus {ours:.1}; one in {} ms was asked for",
        command.colo_interval_ms
    );
    let labels = command.labels().with("interval_ms", command.colo_interval_ms).with("beside", "colo");
    let figure = Measurement::single(names::CHECKPOINTS_PER_SECOND, &labels, "1/s", Better::Higher, ours);
    run.measurements.push(figure.with_peer(Beside::single("qemu colo", rate, ours)));
    Ok(())
}

fn rate_of_romulus(stage: &mut Stage, command: &PeersCommand) -> Result<f64, Failure> {
    let address = stage.start_backup(stage.listen_address()).or_fail("the backup")?;
    stage.start_protect(&address, command.colo_interval_ms as f64).or_fail("protection")?;
    stage.wait_protected().or_fail("protection")?;
    let epochs = |status: &Value| status["epochs_committed"].as_f64().unwrap_or(0.0);
    let before = epochs(&status(stage)?);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(command.colo_seconds) {
        check_interrupted().or_fail("Romulus beside COLO")?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let rate = (epochs(&status(stage)?) - before) / began.elapsed().as_secs_f64();
    stage.stop_protection().or_fail("ending protection")?;
    Ok(rate)
}

/// Lines of a trace that hold this.
fn count(log: &Path, text: &str) -> usize {
    let trace = std::fs::read_to_string(log).unwrap_or_default();
    trace.lines().filter(|line| line.contains(text)).count()
}

fn attempt(stage: &Stage, command: &PeersCommand) -> Result<Attempt, Failure> {
    let log = stage.dir().join("primary-qemu.log");
    let mut secondary = Receiver::start(&stage.machine, stage.dir())?;
    let mut primary = Client::connect(&stage.qmp(), COMMAND).or_fail("the guest's QMP")?;
    for event in ["colo_send_message", "colo_receive_message"] {
        let set = primary.execute("trace-event-set-state", json!({"name": event, "enable": true}));
        set.or_fail(format!("the trace event {event}"))?;
    }
    for monitor in [&mut primary, &mut secondary.monitor] {
        set_capabilities(monitor, &[("x-ignore-shared", false), ("x-colo", true)])?;
        let parameters =
            json!({"x-checkpoint-delay": command.colo_interval_ms, "max-bandwidth": 1_u64 << 40});
        monitor.execute("migrate-set-parameters", parameters).or_fail("migrate-set-parameters")?;
    }
    let uri = secondary.listen()?;
    primary.execute("migrate", json!({"uri": uri})).or_fail("migrate")?;
    let began = Instant::now();
    while count(&log, REQUESTED) == 0 && secondary.end().is_none() {
        check_interrupted().or_fail("COLO")?;
        if began.elapsed() > BEGINNING {
            return Err(Failure::failed(format!("no checkpoint begun within {BEGINNING:?}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let began = Instant::now();
    let whole = Duration::from_secs(command.colo_seconds);
    let mut first_half = None;
    while began.elapsed() < whole && secondary.end().is_none() {
        check_interrupted().or_fail("COLO")?;
        std::thread::sleep(Duration::from_millis(20));
        if began.elapsed() >= whole / 2 && first_half.is_none() {
            first_half = Some(count(&log, LOADED));
        }
    }
    let (checkpoints, seconds) = (count(&log, LOADED), began.elapsed().as_secs_f64());
    let evidence = secondary.end().unwrap_or_else(|| {
        let trace = std::fs::read_to_string(&log).unwrap_or_default();
        let last = trace.lines().last().unwrap_or_default();
        let state = primary.execute("query-status", json!({}));
        let state = state.map_or_else(|why| why.to_string(), |state| state["status"].to_string());
        format!("the primary's last trace: {last:?}; its status: {state}")
    });
    let late_checkpoints = first_half.map_or(0, |first| checkpoints - first);
    Ok(Attempt { checkpoints, late_checkpoints, seconds, evidence })
}
