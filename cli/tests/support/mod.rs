//! What the tests with real guests share.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use romulus::demo::client::Client;
use romulus::demo::instance::{pid, state};
use romulus::demo::network;
use romulus::demo::qemu::{Machine, accelerator};
use romulus::demo::stage::Stage;

const LONG: Duration = Duration::from_secs(30);

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_romulus"))
}

/// The folder with the guest's kernel and initramfs, built if need be.
pub fn image_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("ROMULUS_GUEST_IMAGE") {
        return PathBuf::from(dir);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-image");
    let output = Command::new(script).output().expect("running scripts/guest-image");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// A small guest on an empty stage.
pub fn stage() -> Stage {
    Stage::new(machine(false), program()).expect("a stage")
}

/// A small guest with a network card, between two hosts and the world.
pub fn networked_stage() -> Stage {
    Stage::new(machine(true), program()).expect("a stage with a network (root is needed)")
}

fn machine(networked: bool) -> Machine {
    Machine {
        kind: "q35".into(),
        accelerator: accelerator(),
        memory_mib: 256,
        check_mib: 32,
        dirty_mib_per_second: 10.0,
        halt_after_s: None,
        networked,
        servers: false,
        work: None,
        image_dir: image_dir(),
    }
}

/// Protects the guest with a new backup, and waits until it is.
pub fn protect(stage: &mut Stage, interval_ms: f64) {
    let address = stage.start_backup(stage.listen_address()).expect("a backup");
    stage.start_protect(&address, interval_ms).expect("protection");
    stage.wait_protected().unwrap_or_else(|e| panic!("{e}"));
}

/// The guest's host dies: QEMU, `romulus protect` and its guard.
pub fn kill_host(stage: &mut Stage) {
    let guard = stage.protect.as_ref().and_then(|protect| pid(&protect.status()?, "/guard_pid"));
    stage.kill_primary_host(guard);
}

/// The backup takes over.
pub fn takes_over(stage: &mut Stage) {
    let backup = stage.backup.as_mut().expect("the backup runs");
    let active = backup.wait_for("takeover", LONG, |status| (state(status) == "active").then_some(()));
    active.unwrap_or_else(|e| panic!("{e}"));
}

/// A number below this.
pub fn random(below: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("randomness");
    u64::from_le_bytes(bytes) % below
}

/// A client in the world that asks once each `pace`.
pub fn client(stage: &Stage, pace: Duration) -> Client {
    let network = stage.network.as_ref().expect("a network");
    Client::start(network.world(), network::guest_server(), pace, LONG).expect("a client")
}

/// Asks the guest whether it knows all that the client was told.
pub fn audit(stage: &Stage, client: &Client) {
    let network = stage.network.as_ref().expect("a network");
    client.audit(network.world(), LONG).unwrap_or_else(|e| panic!("{e}"));
}
