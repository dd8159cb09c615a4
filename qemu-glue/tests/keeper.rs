//! What becomes of a standby when things around it fail.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::standby::Standby;
use romulus_checkpoint::{GuestLayout, Region};
use romulus_qemu::stream::ROM_REGION;
use romulus_qemu::{GuestOptions, Process, QemuGuest, QemuStandby, StandbyOptions};
use romulus_transport::Memory;
use support::{GUEST_MIB, LONG, Shadow, Vm, eventually, machine};

/// Set for the process that the test kills; holds the guest's QMP socket.
const ROLE: &str = "ROMULUS_TEST_KEEPER_OF";

fn command() -> Vec<String> {
    machine(GUEST_MIB, "{image}", "file:{run}/serial", false)
}

fn standby(shadow: &Shadow, command: Vec<String>) -> QemuStandby {
    QemuStandby::new(StandbyOptions::new(command, shadow.place.path("run")))
}

/// Process id of the QEMU whose command line names `path`.
fn qemu_over(path: &Path) -> Option<i32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        (command.starts_with("qemu-system") && command.contains(path.to_str()?)).then_some(pid)
    })
}

/// Not a test of its own: prepares a standby and waits to be killed.
#[test]
fn keeper() {
    let Some(qmp) = std::env::var_os(ROLE) else { return };
    let guest = QemuGuest::attach(GuestOptions::new(qmp)).expect("attach");
    let shadow = Shadow::of(guest.layout());
    let mut standby = standby(&shadow, command());
    standby.prepare(guest.layout(), &shadow.regions).expect("prepare");
    println!("prepared {}", shadow.place.dir.path().display());
    std::thread::park_timeout(LONG);
}

#[test]
fn a_standby_ends_with_its_keeper() {
    let vm = Vm::start(false, &[]);
    let mut keeper = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "keeper", "--nocapture"])
        .env(ROLE, &vm.qmp)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a keeper");
    let mut output = keeper.stdout.take().expect("its output");
    let mut text = String::new();
    let place = eventually("the keeper prepares", || {
        let mut chunk = [0; 256];
        let count = output.read(&mut chunk).expect("output");
        assert!(count > 0, "the keeper ended: {text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..count]));
        let line =
            text.lines().find_map(|line| line.split_once("prepared ").map(|(_, path)| path.to_owned()));
        line.filter(|_| text.ends_with('\n'))
    });
    let pid = qemu_over(Path::new(&place)).expect("a standby");
    let process = Process::open(pid).expect("the standby");
    assert!(process.is_alive());
    keeper.kill().expect("kill");
    keeper.wait().expect("wait");
    assert!(process.wait_end(LONG), "the standby outlives its keeper");
    std::fs::remove_dir_all(place).expect("the keeper's directory");
}

/// Set for the process that plays QEMU: the path of its monitor, and where it writes what it is asked.
const MONITOR: &str = "ROMULUS_TEST_MONITOR";
const ASKED: &str = "ROMULUS_TEST_ASKED";

/// Not a test of its own: a QEMU that has nothing.
#[test]
fn empty_qemu() {
    let (Some(monitor), Some(asked)) = (std::env::var_os(MONITOR), std::env::var_os(ASKED)) else { return };
    let mut asked = std::fs::File::create(asked).expect("a file");
    let (link, _) = UnixListener::bind(monitor).expect("a monitor").accept().expect("a client");
    let mut answers = link.try_clone().expect("the same socket");
    writeln!(answers, r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#).expect("a greeting");
    for line in BufReader::new(link).lines().map_while(Result::ok) {
        let command: serde_json::Value = serde_json::from_str(&line).expect("a command");
        writeln!(asked, "{}", command["execute"].as_str().expect("a name")).expect("a line");
        let value = match command["execute"].as_str() {
            Some("query-migrate-capabilities") => r#"[{"capability": "x-ignore-shared", "state": false}]"#,
            _ => "{}",
        };
        writeln!(answers, r#"{{"return": {value}, "id": {}}}"#, command["id"]).expect("an answer");
    }
}

#[test]
fn a_standby_is_tied_to_its_keeper_before_it_is_asked_what_it_is() {
    let region = |name: &str| Region { name: name.into(), pages: 1 };
    let layout = GuestLayout { regions: vec![region("ram0"), region(ROM_REGION)] };
    let shadow = Shadow::of(&layout);
    let asked = shadow.place.path("asked");
    let program = std::env::current_exe().expect("this test");
    let script = format!(
        "{MONITOR}={{qmp}} {ASKED}={} exec {} --exact empty_qemu --nocapture",
        asked.display(),
        program.display()
    );
    let command = ["sh", "-c", &script, "{image}"].map(str::to_owned).to_vec();
    let error = standby(&shadow, command).prepare(&layout, &shadow.regions).expect_err("it has no memory");
    assert!(error.to_string().contains("no RAM block ram0"), "{error}");
    let asked = std::fs::read_to_string(asked).expect("what it was asked");
    let at = |name: &str| asked.lines().position(|line| line == name);
    assert!(at("migrate-incoming").expect("armed") < at("query-version").expect("asked"), "{asked}");
}

#[test]
fn failures_are_told_with_qemus_words() {
    let vm = Vm::start(false, &[]);
    let mut guest = QemuGuest::attach(GuestOptions::new(&vm.qmp)).expect("attach");
    let shadow = Shadow::of(guest.layout());

    let mut wrong = command();
    wrong.extend(["-device".into(), "no-such-device".into()]);
    let error = standby(&shadow, wrong).prepare(guest.layout(), &shadow.regions).expect_err("a bad device");
    assert!(error.to_string().contains("no-such-device"), "{error}");

    let small = machine(GUEST_MIB / 2, "{image}", "null", false);
    let error = standby(&shadow, small).prepare(guest.layout(), &shadow.regions).expect_err("too small");
    assert!(error.to_string().contains("RAM block ram0"), "{error}");

    let private = command().iter().map(|word| word.replace("share=on", "share=off")).collect();
    let error = standby(&shadow, private).prepare(guest.layout(), &shadow.regions).expect_err("private");
    assert!(error.to_string().contains("share=off"), "{error}");

    guest.start_tracking().expect("tracking");
    shadow.copy_all(&guest);
    guest.pause().expect("pause");
    let state = Memory::anonymous(4 << 20);
    let length = usize::try_from(guest.save_state(&state).expect("state")).expect("a length");
    guest.resume().expect("resume");
    let mut bytes = vec![0; length];
    state.read(0, &mut bytes);

    // Another machine's standby: one device more.
    let mut other = command();
    other.extend(["-device".into(), "virtio-rng-pci".into()]);
    let mut standby = standby(&shadow, other);
    let machine = standby.prepare(guest.layout(), &shadow.regions).expect("prepare");
    assert_ne!(machine.configuration, guest.machine().configuration);
    standby.trial(b"garbage").expect_err("no state");
    // The name of the first device: behind the state's header, the section's type, number and
    // the name's length.
    bytes[8 + 1 + 4 + 1] ^= 0x20;
    let error = standby.trial(&bytes).expect_err("a damaged state");
    assert!(error.to_string().contains("QEMU says"), "{error}");
    standby.check().expect("trials leave the prepared machine alone");

    let pid = qemu_over(&shadow.place.path("run")).expect("the prepared QEMU");
    Process::open(pid).expect("process").kill().expect("kill");
    let error = standby.check().expect_err("it is dead");
    assert!(error.to_string().contains("ended"), "{error}");
    standby.prepare(guest.layout(), &shadow.regions).expect("prepare again");
    standby.abandon();
    eventually("abandoned", || qemu_over(&shadow.place.path("run")).is_none().then_some(()));
    assert!(std::fs::read_dir(shadow.place.path("run")).expect("directory").next().is_none());
}

#[test]
fn preparing_leaves_the_image_alone() {
    let vm = Vm::start(false, &[]);
    let guest = QemuGuest::attach(GuestOptions::new(&vm.qmp)).expect("attach");
    let shadow = Shadow::of(guest.layout());
    let blocks = |shadow: &Shadow| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&shadow.regions[0].path).expect("the image").blocks()
    };
    let before = blocks(&shadow);
    let mut standby = standby(&shadow, command());
    standby.prepare(guest.layout(), &shadow.regions).expect("prepare");
    assert_eq!(blocks(&shadow), before, "the standby wrote into the image");
}
