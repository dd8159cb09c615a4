//! QEMU's own live migration: to a second QEMU over loopback TCP, and back to where it was.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use romulus::demo::check_interrupted;
use romulus::demo::instance::kill;
use romulus::demo::qemu::Machine;
use romulus::demo::stage::Stage;
use romulus_qemu::qmp::Client;
use serde::Serialize;
use serde_json::{Value, json};

use crate::exit::{Failure, OrFail};

/// For one command.
const COMMAND: Duration = Duration::from_secs(10);
/// For a whole migration.
const PATIENCE: Duration = Duration::from_secs(300);
/// Loopback is not to be slowed down.
const BYTES_PER_SECOND: u64 = 1 << 40;

/// How QEMU migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over one connection.
    Plain,
    /// Over so many connections beside the first.
    Multifd(u64),
}

impl Way {
    /// Its name among the peers.
    pub fn peer(self) -> &'static str {
        match self {
            Way::Plain => "qemu",
            Way::Multifd(_) => "multifd",
        }
    }

    /// For people.
    pub fn describe(self) -> String {
        match self {
            Way::Plain => "migration".into(),
            Way::Multifd(channels) => format!("migration, multifd {channels}"),
        }
    }
}

/// A migration that went well.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Migration {
    /// From the command to the word `completed`.
    pub seconds: f64,
    /// Sent for memory.
    pub bytes: f64,
    /// QEMU's own figure for how long the guest stood at the end.
    pub downtime_ms: f64,
}

/// A QEMU process; ended when dropped, and its memory's file removed.
struct Process {
    child: Child,
    ram: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        kill(&mut self.child);
        let _ = std::fs::remove_file(&self.ram);
    }
}

/// A QEMU that waits for a guest to come in.
pub struct Receiver {
    process: Process,
    /// Its monitor.
    pub monitor: Client,
    log: PathBuf,
}

impl Receiver {
    /// Of the same machine, with memory of its own.
    pub fn start(machine: &Machine, folder: &Path) -> Result<Self, Failure> {
        let (qmp, log) = (folder.join("receiver.qmp"), folder.join("receiver.log"));
        // One left by a receiver before this one would be taken for this one's.
        let _ = std::fs::remove_file(&qmp);
        let unique = folder.file_name().unwrap_or_default().to_string_lossy();
        let ram = Path::new("/dev/shm").join(format!("{unique}-receiver"));
        let arguments = machine.arguments(&ram.to_string_lossy(), &folder.join("receiver.console"));
        let errors = std::fs::File::create(&log).or_fail(log.display())?;
        let child = Command::new("qemu-system-x86_64")
            .args(arguments)
            .args(["-S", "-incoming", "defer", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .or_fail("starting qemu-system-x86_64")?;
        let process = Process { child, ram };
        let began = Instant::now();
        loop {
            check_interrupted().or_fail("the receiver")?;
            match Client::connect(&qmp, COMMAND) {
                Ok(monitor) => return Ok(Self { process, monitor, log }),
                Err(why) if began.elapsed() > COMMAND => {
                    return Err(Failure::failed(format!("the receiver's QMP: {why}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Listens on a port of its own; the address.
    pub fn listen(&mut self) -> Result<String, Failure> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let uri = format!("tcp:{}", free.or_fail("a free port")?);
        self.monitor.execute("migrate-incoming", json!({"uri": uri})).or_fail("migrate-incoming")?;
        Ok(uri)
    }

    /// If it has ended: how, and its last words.
    pub fn end(&mut self) -> Option<String> {
        let status = self.process.child.try_wait().ok().flatten()?;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| line.contains("qemu-system")).unwrap_or_default();
        Some(format!("the receiving QEMU ended ({status}): {last}"))
    }
}

/// Switches capabilities.
pub fn set_capabilities(monitor: &mut Client, capabilities: &[(&str, bool)]) -> Result<(), Failure> {
    let list: Vec<_> =
        capabilities.iter().map(|(name, on)| json!({"capability": name, "state": on})).collect();
    let done = monitor.execute("migrate-set-capabilities", json!({"capabilities": list}));
    done.map(drop).or_fail("migrate-set-capabilities")
}

fn set_up(monitor: &mut Client, way: Way) -> Result<(), Failure> {
    // Romulus may have left on what it sets for itself: then no memory would be sent.
    let multifd = matches!(way, Way::Multifd(_));
    set_capabilities(monitor, &[("x-ignore-shared", false), ("multifd", multifd)])?;
    let mut parameters = json!({"max-bandwidth": BYTES_PER_SECOND});
    if let Way::Multifd(channels) = way {
        parameters["multifd-channels"] = channels.into();
    }
    monitor.execute("migrate-set-parameters", parameters).map(drop).or_fail("migrate-set-parameters")
}

/// Migrates the stage's guest to a second QEMU, which is ended then; the guest goes on where it
/// was. After a failure it may stand still: see [`recover`].
pub fn migrate(stage: &Stage, way: Way) -> Result<Migration, Failure> {
    let mut receiver = Receiver::start(&stage.machine, stage.dir())?;
    set_up(&mut receiver.monitor, way)?;
    let uri = receiver.listen()?;
    let mut monitor = Client::connect(&stage.qmp(), COMMAND).or_fail("the guest's QMP")?;
    set_up(&mut monitor, way)?;
    let began = Instant::now();
    monitor.execute("migrate", json!({"uri": uri})).or_fail("migrate")?;
    let report = loop {
        check_interrupted().or_fail("migration")?;
        let report = monitor.execute("query-migrate", json!({})).or_fail("query-migrate")?;
        match report["status"].as_str().unwrap_or("") {
            "completed" => break report,
            "failed" | "cancelled" => {
                let why = receiver.end().unwrap_or_else(|| report["error-desc"].to_string());
                return Err(Failure::failed(format!("migration failed: {why}")));
            }
            _ if began.elapsed() > PATIENCE => {
                return Err(Failure::failed(format!("no end of migration within {PATIENCE:?}")));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    drop(receiver);
    set_capabilities(&mut monitor, &[("multifd", false)])?;
    monitor.execute("cont", json!({})).or_fail("cont after migration")?;
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    Ok(Migration { seconds, bytes: number("/ram/transferred"), downtime_ms: number("/downtime") })
}

/// Lets the guest of a migration that failed go on.
pub fn recover(stage: &Stage) -> Result<(), Failure> {
    let mut monitor = Client::connect(&stage.qmp(), COMMAND).or_fail("the guest's QMP")?;
    // There may be nothing to cancel, or nothing to continue.
    let _ = monitor.execute("migrate_cancel", json!({}));
    let _ = set_capabilities(&mut monitor, &[("multifd", false), ("x-ignore-shared", false)]);
    let _ = monitor.execute("cont", json!({}));
    let status = monitor.execute("query-status", json!({})).or_fail("query-status")?;
    match status["running"] == true {
        true => Ok(()),
        false => Err(Failure::failed(format!("the guest does not go on after a failed migration: {status}"))),
    }
}
