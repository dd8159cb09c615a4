//! How protection ends: planned failover, the guest's own end, the death of its QEMU, and a takeover
//! by a standby that had to be replaced.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use romulus::demo::instance::{kill, pid, state};
use romulus::demo::qemu::Report;
use romulus::demo::stage::Stage;

const LONG: Duration = Duration::from_secs(30);

fn protected_stage(prepare: impl FnOnce(&mut Stage)) -> Stage {
    let mut stage = support::stage();
    prepare(&mut stage);
    stage.start_guest().expect("a guest");
    let address = stage.start_backup("127.0.0.1:0").expect("a backup");
    stage.start_protect(&address, 25.0).expect("protection");
    stage.wait_protected().expect("protected");
    stage
}

fn backup_becomes(stage: &mut Stage, wanted: &str) {
    let backup = stage.backup.as_mut().expect("the backup runs");
    backup
        .wait_for(wanted, LONG, |status| (state(status) == wanted).then_some(()))
        .unwrap_or_else(|e| panic!("{e}"));
}

/// The guest runs at the backup: it makes progress and finds no corrupt page in a whole pass.
fn goes_on_at_the_backup(stage: &mut Stage) -> Report {
    let mut console = stage.backup_console();
    let deadline = Instant::now() + LONG;
    loop {
        console.poll();
        assert_eq!(console.complaints, Vec::<String>::new());
        if let (Some(first), Some(last)) = (console.first, console.last)
            && last.passes > first.passes + 1
        {
            return first;
        }
        assert!(Instant::now() < deadline, "the guest does not go on: {:?}", console.last);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn exit_code_of_protect(stage: &mut Stage) -> Option<i32> {
    let mut protect = stage.protect.take().expect("protect runs");
    protect.child.wait().expect("protect ends").code()
}

/// Both recordings of a session hold against docs/protocol.md, read by an independent program.
fn recordings_verify(recordings: &[PathBuf]) {
    let verifier = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/verify_protocol.py");
    for recording in recordings {
        let output = Command::new("python3").arg(&verifier).arg(recording).output().expect("python3 runs");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn a_planned_failover_loses_no_step_and_keeps_to_the_protocol() {
    let mut recordings = Vec::new();
    let mut stage = protected_stage(|stage| {
        recordings = ["primary", "backup"].map(|side| stage.dir().join(format!("{side}.recording"))).to_vec();
        let record = |at: usize| vec!["--record".to_owned(), recordings[at].to_string_lossy().into_owned()];
        stage.protect_options = record(0);
        stage.backup_options = record(1);
    });
    let control = stage.protect.as_ref().expect("protect runs").control.clone();
    let asked = Command::new(support::program()).arg("failover").arg("--control").arg(&control).output();
    assert!(asked.expect("romulus failover runs").status.success());
    backup_becomes(&mut stage, "active");
    let first = goes_on_at_the_backup(&mut stage);
    assert_eq!(exit_code_of_protect(&mut stage), Some(5));
    // The old guest is destroyed, and the new one went on exactly where it stopped.
    let mut guest = stage.guest.take().expect("the guest was started");
    guest.wait().expect("the old guest ends");
    let mut before = romulus::demo::qemu::Console::new(&stage.dir().join("primary.console"));
    before.poll();
    let last = before.last.expect("the guest has reported");
    assert!(
        first.counter == last.counter || first.counter == last.counter + 1,
        "the guest went on at step {} after step {}",
        first.counter,
        last.counter
    );
    let mut backup = stage.backup.take().expect("the backup runs");
    let standby = backup.status().and_then(|status| pid(&status, "/standby_pid")).expect("the guest");
    rustix::process::kill_process(standby, rustix::process::Signal::KILL).expect("the guest runs");
    kill(&mut backup.child);
    recordings_verify(&recordings);
}

#[test]
fn a_guest_that_powers_off_is_never_resumed() {
    let mut stage = protected_stage(|stage| {
        stage.machine.halt_after_s = Some(12);
        stage.standby = stage.machine.clone();
    });
    assert_eq!(exit_code_of_protect(&mut stage), Some(6));
    backup_becomes(&mut stage, "ended");
    kill(stage.guest.as_mut().expect("QEMU waits with -no-shutdown"));
    let mut console = stage.backup_console();
    console.poll();
    assert_eq!(console.last, None, "the guest was resumed after its end");
}

#[test]
fn the_death_of_the_guests_process_is_taken_over_at_once() {
    let mut stage = protected_stage(|_| ());
    kill(stage.guest.as_mut().expect("the guest runs"));
    backup_becomes(&mut stage, "active");
    goes_on_at_the_backup(&mut stage);
    assert_eq!(exit_code_of_protect(&mut stage), Some(5));
}

#[test]
fn a_guest_whose_process_dies_unprotected_runs_nowhere() {
    let mut stage = protected_stage(|_| ());
    kill(&mut stage.backup.as_mut().expect("the backup runs").child);
    let protect = stage.protect.as_mut().expect("protect runs");
    protect
        .wait_for("solo", LONG, |status| (state(status) == "solo").then_some(()))
        .unwrap_or_else(|e| panic!("{e}"));
    kill(stage.guest.as_mut().expect("the guest runs"));
    let log = protect.log.clone();
    assert_eq!(exit_code_of_protect(&mut stage), Some(7));
    let said = std::fs::read_to_string(log).expect("protect's log");
    assert!(said.contains("no backup goes on with it"), "{said}");
}

#[test]
fn a_standby_that_was_replaced_takes_over() {
    let mut stage = protected_stage(|_| ());
    let backup = stage.backup.as_mut().expect("the backup runs");
    let first = backup.status().and_then(|status| pid(&status, "/standby_pid")).expect("a standby");
    rustix::process::kill_process(first, rustix::process::Signal::KILL).expect("the standby lives");
    backup
        .wait_for("new standby", LONG, |status| pid(status, "/standby_pid").filter(|new| *new != first))
        .unwrap_or_else(|e| panic!("{e}"));
    let guard = stage.protect.as_ref().and_then(|protect| pid(&protect.status()?, "/guard_pid"));
    stage.kill_primary_host(guard);
    backup_becomes(&mut stage, "active");
    goes_on_at_the_backup(&mut stage);
}

#[test]
fn a_standby_that_dies_with_its_primary_is_replaced_during_the_takeover() {
    let mut stage = protected_stage(|_| ());
    let backup = stage.backup.as_ref().expect("the backup runs");
    let standby = backup.status().and_then(|status| pid(&status, "/standby_pid")).expect("a standby");
    let guard = stage.protect.as_ref().and_then(|protect| pid(&protect.status()?, "/guard_pid"));
    stage.kill_primary_host(guard);
    rustix::process::kill_process(standby, rustix::process::Signal::KILL).expect("the standby lives");
    backup_becomes(&mut stage, "active");
    goes_on_at_the_backup(&mut stage);
}

#[test]
fn without_an_arbiter_an_operator_takes_over() {
    let mut stage = protected_stage(|stage| stage.arbitrated = false);
    let guard = stage.protect.as_ref().and_then(|protect| pid(&protect.status()?, "/guard_pid"));
    stage.kill_primary_host(guard);
    let control = stage.backup.as_ref().expect("the backup runs").control.clone();
    let asked =
        Command::new(support::program()).args(["failover", "--force", "--control"]).arg(&control).output();
    assert!(asked.expect("romulus failover runs").status.success());
    backup_becomes(&mut stage, "active");
    goes_on_at_the_backup(&mut stage);
}
