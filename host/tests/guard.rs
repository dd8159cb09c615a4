//! The guard as a process: kills the protector at its worst moments and looks at the guest.
//!
//! Protector and guard are this program again; hence a `main` of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use romulus_checkpoint::Generation;
use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::arbiter::{Arbiter, Ownership, Record, SoloGrant, SwapOutcome};
use romulus_host::guard::{self, GateHandle, GuardParts, GuardSpec, GuestHandle, GuestProcess};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--guard") => {
            guard::run(&Parts).unwrap();
        }
        Some("--protector") => protector(&arguments[2]),
        _ => return libtest_mimic::run(&libtest_mimic::Arguments::from_args(), tests()).exit_code(),
    }
    ExitCode::SUCCESS
}

macro_rules! trials {
    ($($name:ident,)*) => {
        vec![$(libtest_mimic::Trial::test(stringify!($name), || {
            $name();
            Ok(())
        })),*]
    };
}

fn tests() -> Vec<libtest_mimic::Trial> {
    trials![
        i8_a_guest_that_was_paused_runs_again,
        i8_a_guard_that_died_is_replaced_by_one_that_knows_as_much,
        i9_a_guest_that_the_backup_owns_is_destroyed,
        i9_the_gate_stays_until_a_killed_guest_has_ended,
        a_guest_that_ends_before_it_is_reached_counts_as_destroyed,
        a_guest_that_died_too_is_left_to_the_backup,
        a_clean_detach_ends_the_guard,
        a_protector_that_had_not_begun_leaves_nothing_to_do,
        an_interrupt_from_the_terminal_does_not_reach_the_guard,
        a_guard_is_small,
        a_program_that_is_no_guard_is_refused,
    ]
}

/// A guest is a sleeping process; paused means stopped.
struct Parts;

struct Sleeper(GuestProcess);

/// A guest that is told to end and takes its time.
const SLOW: &str = "slow";
/// A guest that cannot be reached.
const UNREACHABLE: &str = "unreachable";

impl GuardParts for Parts {
    fn guest(&self, spec: &GuardSpec, process: Option<GuestProcess>) -> Result<Box<dyn GuestHandle>, String> {
        let sleeper = Sleeper(process.ok_or("no process")?);
        match spec.access.as_str() {
            SLOW => Ok(Box::new(Slow(sleeper, beside_report(spec, "told")))),
            UNREACHABLE => {
                std::fs::write(beside_report(spec, "tried"), "").unwrap();
                Err("it does not answer".into())
            }
            _ => Ok(Box::new(sleeper)),
        }
    }

    fn gate(&self, spec: &GuardSpec) -> Result<Box<dyn GateHandle>, String> {
        Ok(Box::new(Gate(beside_report(spec, "cleared"))))
    }
}

fn beside_report(spec: &GuardSpec, name: &str) -> PathBuf {
    spec.report.as_ref().unwrap().with_file_name(name)
}

/// A gate that leaves a file when it is taken away.
struct Gate(PathBuf);

impl GateHandle for Gate {
    fn open(&mut self, _: &SoloGrant) -> Result<(), String> {
        Ok(())
    }
    fn clear(&mut self) -> Result<(), String> {
        std::fs::write(&self.0, "").map_err(|error| error.to_string())
    }
}

struct Slow(Sleeper, PathBuf);

impl GuestHandle for Slow {
    fn alive(&mut self) -> bool {
        self.0.alive()
    }
    fn resume_if_paused(&mut self) -> Result<(), String> {
        self.0.resume_if_paused()
    }
    fn destroy(&mut self) -> Result<(), String> {
        std::fs::write(&self.1, "").map_err(|error| error.to_string())
    }
}

impl GuestHandle for Sleeper {
    fn alive(&mut self) -> bool {
        self.0.is_alive()
    }
    fn resume_if_paused(&mut self) -> Result<(), String> {
        signal(self.0.pid() as i32, libc::SIGCONT);
        Ok(())
    }
    fn destroy(&mut self) -> Result<(), String> {
        self.0.kill().map_err(|error| error.to_string())
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: signals a process (or group) that this test started.
    unsafe { libc::kill(pid, signal) };
}

/// Protects a guest in steps, one for each line on standard input.
fn protector(spec: &str) {
    let spec: GuardSpec = serde_json::from_str(spec).unwrap();
    let command = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--guard");
        command
    };
    let guard = guard::spawn(command(), &spec).unwrap();
    let flag = guard.pause_flag();
    println!("{}", guard.pid());
    let mut guard = Some(guard);
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "arm" => guard.as_ref().unwrap().arm(),
            "pause" => {
                flag.raise();
                signal(spec.guest_pid.unwrap() as i32, libc::SIGSTOP);
            }
            "replace" => {
                let guard = guard.as_mut().unwrap();
                assert!(!guard.is_alive());
                guard.restart(command(), &spec).unwrap();
                println!("{}", guard.pid());
            }
            "detach" => guard.take().unwrap().detach(),
            other => panic!("{other}"),
        }
        println!("done");
    }
}

const LONG: Duration = Duration::from_secs(60);

/// The guard whose process id the protector says next.
fn guard_in(answers: &mut impl BufRead) -> GuestProcess {
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    GuestProcess::open(line.trim().parse().unwrap()).unwrap()
}

struct Stage {
    directory: tempfile::TempDir,
    guest: Child,
    protector: Child,
    answers: BufReader<std::process::ChildStdout>,
    guard: GuestProcess,
}

impl Stage {
    fn set() -> Self {
        Self::with_access("")
    }

    fn with_access(access: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let guest = Command::new("sleep").arg("100000").spawn().unwrap();
        let spec = GuardSpec {
            guest: "vm".into(),
            host: "a".into(),
            arbiter: format!("file:{}", directory.path().display()),
            solo_automatic: true,
            guest_pid: Some(guest.id()),
            access: access.into(),
            gate: None,
            report: Some(directory.path().join("report")),
        };
        let arbiter = FileArbiter::open(directory.path()).unwrap();
        let first = Record { ownership: protected(), generation: Generation(1), nonce: 5 };
        assert_eq!(arbiter.swap("vm", None, &first), SwapOutcome::Won);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--protector", &serde_json::to_string(&spec).unwrap()]);
        // A group of its own, as a shell gives to what runs at its terminal.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut protector = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut answers = BufReader::new(protector.stdout.take().unwrap());
        let guard = guard_in(&mut answers);
        Stage { directory, guest, protector, answers, guard }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.protector.stdin.as_mut().unwrap(), "{word}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }

    fn kill_protector(&mut self) {
        self.protector.kill().unwrap();
        self.protector.wait().unwrap();
        self.expect_end_of_guard();
    }

    fn expect_end_of_guard(&self) {
        assert!(self.guard.wait_end(Some(LONG)), "the guard ends");
    }

    /// The backup has won the record.
    fn lose_record(&self) -> Record {
        let record = self.record();
        let owned = record.successor(Ownership::Owned { backup: "b".into() }, 6);
        assert_eq!(self.arbiter().swap("vm", Some(&record), &owned), SwapOutcome::Won);
        owned
    }

    /// Whether the guard's parts have left this file.
    fn has(&self, name: &str) -> bool {
        self.directory.path().join(name).exists()
    }

    fn wait_for(&self, name: &str) {
        let deadline = Instant::now() + LONG;
        while !self.has(name) {
            assert!(Instant::now() < deadline, "{name}");
            std::thread::yield_now();
        }
    }

    fn end_guest(&mut self) {
        self.guest.kill().unwrap();
        self.guest.wait().unwrap();
    }

    fn arbiter(&self) -> FileArbiter {
        FileArbiter::open(self.directory.path()).unwrap()
    }

    fn record(&self) -> Record {
        self.arbiter().read("vm").unwrap().unwrap()
    }

    fn outcome(&self) -> String {
        let text = std::fs::read_to_string(self.directory.path().join("report")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        report["outcome"].as_str().unwrap().to_owned()
    }

    fn guest_state(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.guest.id())).unwrap();
        stat.rsplit(") ").next().unwrap()[..1].to_owned()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in [&mut self.guest, &mut self.protector] {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.guard.wait_end(Some(Duration::from_secs(10)));
    }
}

fn protected() -> Ownership {
    Ownership::Protected { primary: "a".into(), backup: "b".into() }
}

fn i8_a_guest_that_was_paused_runs_again() {
    let mut stage = Stage::set();
    stage.tell("arm");
    stage.tell("pause");
    while stage.guest_state() != "T" {
        std::thread::yield_now();
    }
    stage.kill_protector();
    assert_eq!(stage.outcome(), "solo");
    assert_ne!(stage.guest_state(), "T");
    let record = stage.record();
    assert_eq!(record.ownership, Ownership::Solo { primary: "a".into() });
    assert_eq!(record.generation, Generation(2));
}

fn i9_a_guest_that_the_backup_owns_is_destroyed() {
    let mut stage = Stage::set();
    stage.tell("arm");
    stage.tell("pause");
    let owned = stage.lose_record();
    stage.kill_protector();
    assert_eq!(stage.outcome(), "destroyed");
    assert!(!stage.guest.wait().unwrap().success());
    assert_eq!(stage.record(), owned);
}

fn i8_a_guard_that_died_is_replaced_by_one_that_knows_as_much() {
    let mut stage = Stage::set();
    stage.tell("arm");
    stage.tell("pause");
    while stage.guest_state() != "T" {
        std::thread::yield_now();
    }
    stage.guard.kill().unwrap();
    stage.expect_end_of_guard();
    writeln!(stage.protector.stdin.as_mut().unwrap(), "replace").unwrap();
    stage.guard = guard_in(&mut stage.answers);
    stage.kill_protector();
    assert_eq!(stage.outcome(), "solo");
    assert_ne!(stage.guest_state(), "T");
}

fn i9_the_gate_stays_until_a_killed_guest_has_ended() {
    let mut stage = Stage::with_access(SLOW);
    stage.tell("arm");
    stage.lose_record();
    stage.protector.kill().unwrap();
    stage.wait_for("told");
    assert!(!stage.guard.wait_end(Some(Duration::from_millis(100))) && !stage.has("cleared"));
    stage.end_guest();
    stage.expect_end_of_guard();
    assert!(stage.has("cleared"));
    assert_eq!(stage.outcome(), "destroyed");
}

fn a_guest_that_ends_before_it_is_reached_counts_as_destroyed() {
    let mut stage = Stage::with_access(UNREACHABLE);
    stage.tell("arm");
    stage.lose_record();
    stage.protector.kill().unwrap();
    stage.wait_for("tried");
    stage.end_guest();
    stage.expect_end_of_guard();
    assert_eq!(stage.outcome(), "destroyed");
}

fn a_guest_that_died_too_is_left_to_the_backup() {
    let mut stage = Stage::set();
    stage.tell("arm");
    stage.tell("pause");
    let before = stage.record();
    stage.guest.kill().unwrap();
    stage.kill_protector();
    assert_eq!(stage.outcome(), "guest_dead");
    assert_eq!(stage.record(), before);
}

fn a_clean_detach_ends_the_guard() {
    let mut stage = Stage::set();
    stage.tell("arm");
    let before = stage.record();
    stage.tell("detach");
    assert!(stage.guard.wait_end(Some(Duration::from_secs(60))));
    assert_eq!(stage.outcome(), "not_needed");
    assert!(stage.protector.try_wait().unwrap().is_none(), "the protector lives on");
    assert_eq!(stage.record(), before);
}

fn a_protector_that_had_not_begun_leaves_nothing_to_do() {
    let mut stage = Stage::set();
    let before = stage.record();
    stage.kill_protector();
    assert_eq!(stage.outcome(), "not_needed");
    assert_eq!(stage.record(), before);
}

fn an_interrupt_from_the_terminal_does_not_reach_the_guard() {
    let mut stage = Stage::set();
    stage.tell("arm");
    stage.tell("pause");
    signal(-(stage.protector.id() as i32), libc::SIGINT);
    stage.protector.wait().unwrap();
    assert!(stage.guard.wait_end(Some(Duration::from_secs(60))));
    assert_eq!(stage.outcome(), "solo");
}

fn a_guard_is_small() {
    let stage = Stage::set();
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.guard.pid())).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kibibytes: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kibibytes < 2048, "{kibibytes} KiB");
    assert!(status.contains("Name:\tromulus-guard"), "{status}");
}

fn a_program_that_is_no_guard_is_refused() {
    let spec = GuardSpec {
        guest: "vm".into(),
        host: "a".into(),
        arbiter: "none".into(),
        solo_automatic: true,
        guest_pid: None,
        access: String::new(),
        gate: None,
        report: None::<PathBuf>,
    };
    let error = guard::spawn(Command::new("true"), &spec).unwrap_err();
    assert!(error.to_string().contains("did not get ready"), "{error}");
    let error = guard::spawn(Command::new(Path::new("/nonexistent")), &spec).unwrap_err();
    assert!(error.to_string().contains("start its process"), "{error}");
}
