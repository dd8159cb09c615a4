//! What becomes of results when a part of a run with real guests fails: here the `romulus` that
//! protects them does at once.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use romulus_perf::results::{Results, Run};

/// The folder with the guest's kernel and initramfs, built if need be.
fn image_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("ROMULUS_GUEST_IMAGE") {
        return dir.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-image");
    let output = Command::new(script).output().expect("scripts/guest-image runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a path").trim().into()
}

/// Runs a subcommand on a small guest; its exit code and the run that it has written.
fn run(arguments: &[&str]) -> (Option<i32>, Run) {
    let folder = tempfile::tempdir().expect("a folder");
    let [program, json] = ["romulus", "results.json"].map(|name| folder.path().join(name));
    std::fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_romulus-perf"))
        .args(arguments)
        .args(["--guest-mib", "256", "--image-dir"])
        .arg(image_dir())
        .arg("--romulus")
        .arg(&program)
        .arg("--json")
        .arg(&json)
        .env("TMPDIR", folder.path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut results = Results::read(&json).unwrap_or_else(|failure| panic!("{failure}; it said: {said}"));
    assert_eq!(results.runs.len(), 1);
    (output.status.code(), results.runs.remove(0))
}

#[test]
fn what_was_measured_before_a_failure_is_written_and_the_failure_with_it() {
    for arguments in [
        &["guest", "--work", "writer", "--rates", "40", "--seconds", "0.5"][..],
        &["peers", "--peers", "qemu", "--rounds", "1"],
    ] {
        let (code, run) = run(arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(run.notes.iter().any(|note| note.starts_with("not all was measured: ")), "{:?}", run.notes);
        assert!(run.result["accelerator"].is_string(), "{arguments:?}: {}", run.result);
    }
}

#[test]
fn a_failure_beside_colo_is_a_note() {
    let (code, run) = run(&["peers", "--peers", "colo"]);
    assert_eq!(code, Some(0), "{:?}", run.notes);
    assert!(run.notes.iter().any(|note| note.starts_with("colo: not measured: ")), "{:?}", run.notes);
}
