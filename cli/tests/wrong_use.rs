//! Wrong use, as a new user would make it: each ends with a clear message and the documented exit
//! code, and the guest runs on.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Duration;

use romulus::demo::qemu::Console;
use romulus::demo::stage::Stage;
use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::arbiter::{Arbiter, Record, SwapOutcome};

fn romulus(arguments: &[&str]) -> Output {
    Command::new(support::program()).args(arguments).output().expect("running romulus")
}

/// Runs romulus and asserts its exit code and words of its message.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = romulus(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{arguments:?} does not say {word:?}: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn wrong_options_and_settings() {
    refused(&["protect", "--intervall-ms", "3"], 2, &["--intervall-ms", "--interval-ms"]);
    refused(&["protect"], 2, &["--guest"]);
    let target = ["protect", "--guest", "qemu:/x", "--backup", "127.0.0.1:1"];
    refused(&[&target[..], &["--gate", "net0"]].concat(), 2, &["--gate net0", "NIC=commit", "NIC=none"]);
    refused(&[&target[..], &["--gate-mib", "0"]].concat(), 2, &["--gate-mib"]);
    refused(&["protect", "--guest", "vmware:x", "--backup", "127.0.0.1:1"], 2, &["vmware", "qemu:"]);
    refused(&["protect", "--guest", "qemu:/x", "--backup", "nonsense"], 2, &["nonsense"]);
    refused(
        &["protect", "--guest", "qemu:/x", "--backup", "127.0.0.1:1", "--interval-ms", "0"],
        2,
        &["--interval-ms"],
    );
    refused(
        &["protect", "--guest", "qemu:/x", "--backup", "127.0.0.1:1", "--suspect-after-ms", "10"],
        2,
        &["heartbeat"],
    );
    refused(&[&target[..], &["--traffic-class", "256"]].concat(), 2, &["--traffic-class", "256"]);
    refused(&["--config", "/nonexistent.toml", "protect"], 2, &["/nonexistent.toml"]);
    refused(&["backup", "--listen", "127.0.0.1:0"], 2, &["--standby"]);
    refused(
        &["backup", "--listen", "127.0.0.1:0", "--standby", "/nonexistent.args"],
        2,
        &["/nonexistent.args"],
    );
    let backup = ["backup", "--listen", "127.0.0.1:0", "--standby", "/nonexistent.args"];
    refused(
        &[&backup[..], &["--takeover", "automatic"]].concat(),
        2,
        &["two copies", "--solo manual", "--arbiter", "--accept-split-brain"],
    );
    refused(&[&backup[..], &["--arbiter", "paper"]].concat(), 2, &["arbiter: `paper`", "file:", "none"]);
    let dir = tempfile::tempdir().unwrap();
    let no_qemu = dir.path().join("no-qemu.args");
    std::fs::write(&no_qemu, "sh\n-c\nexit\n").unwrap();
    let standby = no_qemu.to_str().unwrap();
    refused(&["backup", "--listen", "127.0.0.1:0", "--standby", standby], 2, &[standby, "{image}"]);
    refused(&["release", "--guest", "xen:web"], 3, &["xen:web", "--force"]);
    refused(&["release", "--guest", "qemu:/x", "--force"], 2, &["cont"]);
    refused(&["status", "--control", "/nonexistent.sock"], 1, &["/nonexistent.sock", "running"]);
}

#[test]
fn a_socket_that_is_not_there_and_one_that_is_not_qmp() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("protect.sock");
    let control = control.to_str().unwrap();
    let missing = format!("qemu:{}", dir.path().join("qmp.sock").display());
    let target = ["protect", "--control", control, "--guest", &missing, "--backup", "127.0.0.1:1"];
    for option in ["--traffic-class", "--service-level"] {
        refused(&[&target[..], &[option, "4"]].concat(), 2, &[option, "--fabric rdma"]);
    }
    refused(
        &["protect", "--control", control, "--guest", &missing, "--backup", "127.0.0.1:1"],
        1,
        &["qmp.sock"],
    );
}

#[test]
fn a_xen_domain_where_there_is_no_xen() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("protect.sock");
    let arguments =
        ["protect", "--control", control.to_str().unwrap(), "--guest", "xen:web", "--backup", "127.0.0.1:1"];
    // On a host that has one there is no such domain.
    let is_dom0 =
        std::fs::read_to_string("/proc/xen/capabilities").is_ok_and(|text| text.contains("control_d"));
    if is_dom0 {
        refused(&arguments, 3, &["xen:web", "no domain web"]);
    } else {
        refused(&arguments, 4, &["xen:web", "Xen"]);
    }
}

#[test]
fn a_port_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let standby = dir.path().join("standby.args");
    std::fs::write(&standby, "qemu-system-x86_64\n-object\nmemory-backend-file,mem-path={image}\n").unwrap();
    let control = dir.path().join("backup.sock");
    refused(
        &[
            "backup",
            "--listen",
            &address,
            "--standby",
            standby.to_str().unwrap(),
            "--control",
            control.to_str().unwrap(),
        ],
        1,
        &[&address],
    );
}

/// Everything that needs a guest, on one guest: after each the guest still runs.
#[test]
fn around_a_running_guest() {
    let mut stage = support::stage();
    let mut console = stage.start_guest().expect("a guest");
    let address = stage.start_backup("127.0.0.1:0").expect("a backup");

    // Garbage at the backup's port, before and during protection.
    let garbage = |_: &str| {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[]] {
            let mut stranger = TcpStream::connect(&address).expect("the backup listens");
            let _ = stranger.write_all(bytes);
        }
        // One that says nothing at all stays open over the next steps.
        TcpStream::connect(&address).expect("the backup listens")
    };
    let _silent = garbage("before");
    stage.start_protect(&address, 25.0).expect("protection");
    stage.wait_protected().expect("protected");
    let _silent_too = garbage("during");

    // A second protector of the same guest, and a second backup on the same control socket.
    let qmp = format!("qemu:{}", stage.qmp().display());
    let other = stage.dir().join("other.sock");
    refused(
        &["protect", "--guest", &qmp, "--backup", &address, "--control", other.to_str().unwrap()],
        3,
        &["qmp"],
    );

    let backup = stage.backup.as_mut().expect("the backup runs");
    backup
        .wait_for("protection in spite of all", Duration::from_secs(5), |status| {
            (status["state"] == "protected").then_some(())
        })
        .unwrap();
    let before = console.last.unwrap().counter;
    let protect = stage.protect.as_mut().expect("protect runs");
    protect
        .wait_for("running guest", Duration::from_secs(10), |_| {
            console.poll();
            (console.last?.counter > before + 20).then_some(())
        })
        .unwrap();

    // What is meant for a backup moves no guest.
    let control = protect.control.clone();
    refused(
        &["failover", "--force", "--control", control.to_str().unwrap()],
        3,
        &["--force", "backup", "--control"],
    );
    assert_eq!(protect.status().expect("protect answers")["state"], "protected");

    // A clean end leaves the guest running and nothing behind.
    let output = romulus(&["stop", "--control", control.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let exit = protect.child.wait().expect("protect ends");
    assert_eq!(exit.code(), Some(0), "{}", std::fs::read_to_string(&protect.log).unwrap_or_default());
    assert!(!control.exists());
    runs_on(&mut console);
}

/// A backup that cannot serve the guest says why, and `romulus protect` ends with its words; the
/// guest runs on.
fn backup_refuses(prepare: impl FnOnce(&mut Stage), words: &[&str]) {
    let mut stage = support::stage();
    prepare(&mut stage);
    let mut console = stage.start_guest().expect("a guest");
    let address = stage.start_backup("127.0.0.1:0").expect("a backup");
    stage.start_protect(&address, 25.0).expect("protect starts");
    let protect = stage.protect.as_mut().expect("protect runs");
    let exit = protect.child.wait().expect("protect ends");
    let said = std::fs::read_to_string(&protect.log).unwrap_or_default();
    assert_eq!(exit.code(), Some(3), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not said: {said}");
    }
    runs_on(&mut console);
}

fn runs_on(console: &mut Console) {
    console.poll();
    let before = console.last.expect("the workload has reported").counter;
    let mut tries = 0;
    while console.last.is_none_or(|report| report.counter < before + 20) {
        console.poll();
        tries += 1;
        assert!(tries < 2_000, "the guest stands still");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_backup_with_too_little_memory() {
    let limit = |stage: &mut Stage| stage.backup_options = vec!["--memory-limit-mib".into(), "64".into()];
    backup_refuses(limit, &["memory", "64 MiB", "--memory-limit-mib", "--spare-mib"]);
}

#[test]
fn a_standby_that_is_another_machine() {
    backup_refuses(|stage| stage.standby.kind = "pc".into(), &["machine", "q35", "pc"]);
}

#[test]
fn a_guest_with_private_memory_and_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let qmp = dir.path().join("qmp.sock");
    let disk = dir.path().join("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "q35,accel=tcg", "-nodefaults", "-vga", "none", "-display", "none", "-m", "64M"])
        .args(["-device", "virtio-balloon-pci", "-device", "virtio-blk-pci,drive=d"])
        .args(["-drive", &format!("file={},format=raw,if=none,id=d", disk.display())])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
        .spawn()
        .expect("QEMU starts");
    while UnixStream::connect(&qmp).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let control = dir.path().join("protect.sock");
    let guest = format!("qemu:{}", qmp.display());
    refused(
        &["protect", "--guest", &guest, "--backup", "127.0.0.1:1", "--control", control.to_str().unwrap()],
        3,
        &["private", "share=on", "balloon", "--allow-unreplicated-disk"],
    );
    assert!(qemu.try_wait().unwrap().is_none(), "the guest is gone");
    qemu.kill().unwrap();
    qemu.wait().unwrap();
}

#[test]
fn without_privilege() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("romulus");
    std::fs::copy(support::program(), &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let output = std::os::unix::process::CommandExt::uid(&mut Command::new(&program), 65_534)
            .args(arguments)
            .env("XDG_RUNTIME_DIR", "/nonexistent")
            .output()
            .expect("romulus starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let image = dir.path().to_str().unwrap();
    let (code, said) = as_nobody(&["demo", "--image-dir", image]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("root"), "{said}");
    let (code, said) = as_nobody(&["protect", "--guest", "qemu:/x", "--backup", "127.0.0.1:1"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("--control") && said.contains("root"), "{said}");
}

/// The record says that the guest is another host's: no protection, and the guest is left alone.
#[test]
fn a_guest_that_another_host_owns() {
    let mut stage = support::stage();
    let mut console = stage.start_guest().expect("a guest");
    let address = stage.start_backup("127.0.0.1:0").expect("a backup");
    let arbiter = FileArbiter::open(&stage.dir().join("arbiter")).expect("the arbiter's folder");
    let record = Record::first_solo("somebody-else").expect("a record");
    assert_eq!(arbiter.swap("demo", None, &record), SwapOutcome::Won);
    stage.start_protect(&address, 25.0).expect("protect starts");
    let protect = stage.protect.as_mut().expect("protect runs");
    let exit = protect.child.wait().expect("protect ends");
    let said = std::fs::read_to_string(&protect.log).unwrap_or_default();
    assert_eq!(exit.code(), Some(3), "{said}");
    assert!(said.contains("somebody-else"), "{said}");
    runs_on(&mut console);
}
