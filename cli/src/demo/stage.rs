//! The stage of the demonstration: a guest, a backup host and a primary host on this machine.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::check_interrupted;
use super::instance::{Instance, kill, pid, state};
use super::netns::NetNs;
use super::network::{Network, Side};
use super::qemu::{Console, Machine};
use crate::control::{self, Request};
use crate::exit::Failure;

/// Everything that was started and made; ended and removed when dropped.
pub struct Stage {
    /// The guest's machine.
    pub machine: Machine,
    /// The standby's machine, which should be the same.
    pub standby: Machine,
    /// Whether a file decides who may run the guest, or nobody.
    pub arbitrated: bool,
    /// More options of `romulus backup`.
    pub backup_options: Vec<String>,
    /// More options of `romulus protect`.
    pub protect_options: Vec<String>,
    /// The guest's QEMU on the primary host.
    pub guest: Option<Child>,
    /// `romulus backup`.
    pub backup: Option<Instance>,
    /// `romulus protect`.
    pub protect: Option<Instance>,
    /// The hosts' network and the world, if the guest has a card.
    pub network: Option<Network>,
    /// What the guest sends leaves at once, whatever happens to its epoch.
    pub ungated: bool,
    /// The host that the guest runs on.
    side: Side,
    /// A guest that a backup had taken over: QEMU and its QMP socket.
    adopted: Option<(Pid, PathBuf)>,
    /// How often the hosts have changed roles.
    round: u64,
    program: PathBuf,
    dir: Option<tempfile::TempDir>,
    ram: PathBuf,
}

impl Stage {
    /// A stage with nothing on it but the network. `program` is the `romulus` to run.
    pub fn new(machine: Machine, program: &Path) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("making a folder for the run: {e}"));
        let dir = tempfile::Builder::new().prefix("romulus-demo-").tempdir().map_err(failed)?;
        let ram = Path::new("/dev/shm").join(dir.path().file_name().unwrap_or_default());
        let network = machine.networked.then(Network::create).transpose()?;
        Ok(Self {
            network,
            ungated: false,
            side: Side::A,
            adopted: None,
            round: 0,
            standby: machine.clone(),
            arbitrated: true,
            backup_options: Vec::new(),
            protect_options: Vec::new(),
            machine,
            guest: None,
            backup: None,
            protect: None,
            program: program.to_owned(),
            dir: Some(dir),
            ram,
        })
    }

    /// The folder of sockets, logs and consoles.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), |dir| dir.path())
    }

    /// Lets the folder outlive the stage, and says where it is.
    pub fn keep_folder(&mut self) {
        if let Some(dir) = self.dir.as_mut() {
            dir.disable_cleanup(true);
            println!("  logs and consoles are kept in {}", dir.path().display());
        }
    }

    /// The console of the guest after it was taken over.
    pub fn backup_console(&self) -> Console {
        Console::new(&self.backup_console_path())
    }

    fn backup_console_path(&self) -> PathBuf {
        match self.round {
            0 => self.dir().join("backup.console"),
            round => self.dir().join(format!("backup-{round}.console")),
        }
    }

    /// The host that the guest runs on.
    pub fn side(&self) -> Side {
        self.side
    }

    /// A host's network, if there is one.
    fn host(&self, side: Side) -> Option<&NetNs> {
        self.network.as_ref().map(|network| network.host(side))
    }

    /// Where a backup can listen.
    pub fn listen_address(&self) -> &'static str {
        if self.network.is_some() { self.side.other().replication() } else { "127.0.0.1:0" }
    }

    /// The guest's QMP socket on the primary host.
    pub fn qmp(&self) -> PathBuf {
        self.adopted.as_ref().map_or_else(|| self.dir().join("primary.qmp"), |(_, qmp)| qmp.clone())
    }

    /// Starts the guest and waits until its workload reports.
    pub fn start_guest(&mut self) -> Result<Console, Failure> {
        let console_path = self.dir().join("primary.console");
        let log = self.dir().join("primary-qemu.log");
        let host = self.host(self.side);
        let child = self.machine.start(&self.ram, &console_path, &self.qmp(), &log, host)?;
        let child = self.guest.insert(child);
        let mut console = Console::new(&console_path);
        let limit = Duration::from_secs(60 + self.machine.memory_mib / 16);
        let started = Instant::now();
        while console.last.is_none() {
            console.poll();
            check_interrupted()?;
            if let Ok(Some(exit)) = child.try_wait() {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(Failure::failed(format!("QEMU ended ({exit}): {log}")));
            }
            if let Some(complaint) = console.complaints.first() {
                return Err(Failure::failed(format!("the guest says: {complaint}")));
            }
            if started.elapsed() > limit {
                return Err(Failure::failed(format!("the guest did not boot within {limit:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(console)
    }

    /// Starts `romulus backup` (at `listen`) and waits until it listens; gives its address.
    pub fn start_backup(&mut self, listen: &str) -> Result<String, Failure> {
        let standby = self.dir().join("standby.args");
        let arguments = self.standby.arguments("{image}", &self.backup_console_path());
        let text = format!("qemu-system-x86_64\n{}\n", arguments.join("\n"));
        std::fs::write(&standby, text)
            .map_err(|e| Failure::failed(format!("writing {}: {e}", standby.display())))?;
        let mut arguments = vec![
            "--listen".to_owned(),
            listen.to_owned(),
            "--standby".to_owned(),
            standby.to_string_lossy().into_owned(),
            "--run-dir".to_owned(),
            self.dir().to_string_lossy().into_owned(),
            "--host".to_owned(),
            self.side.other().name().to_owned(),
            "--arbiter".to_owned(),
            self.arbiter(),
        ];
        arguments.extend(self.backup_options.iter().cloned());
        let dir = self.dir().to_owned();
        let host = self.host(self.side.other());
        let backup = Instance::start(&self.program, "backup", &dir, &arguments, host)?;
        let backup = self.backup.insert(backup);
        backup.wait_for("listening backup", Duration::from_secs(10), |status| {
            Some(status.pointer("/listen")?.as_str()?.to_owned())
        })
    }

    /// Starts `romulus protect`.
    pub fn start_protect(&mut self, backup: &str, interval_ms: f64) -> Result<(), Failure> {
        let mut arguments = vec![
            "--guest".to_owned(),
            format!("qemu:{}", self.qmp().display()),
            "--backup".to_owned(),
            backup.to_owned(),
            "--name".to_owned(),
            "demo".to_owned(),
            "--host".to_owned(),
            self.side.name().to_owned(),
            "--interval-ms".to_owned(),
            interval_ms.to_string(),
            "--arbiter".to_owned(),
            self.arbiter(),
        ];
        if self.network.is_some() && self.ungated {
            arguments.extend(["--gate".to_owned(), "all=none".to_owned()]);
        }
        arguments.extend(self.protect_options.iter().cloned());
        let dir = self.dir().to_owned();
        let protect = Instance::start(&self.program, "protect", &dir, &arguments, self.host(self.side))?;
        self.protect = Some(protect);
        Ok(())
    }

    /// Waits until the guest is protected.
    pub fn wait_protected(&mut self) -> Result<(), Failure> {
        let limit = Duration::from_secs(60 + self.machine.memory_mib / 16);
        let protect = self.protect.as_mut().expect("protect was started");
        protect.wait_for("protected guest", limit, |status| (state(status) == "protected").then_some(()))
    }

    /// Ends protection as `romulus stop` does; the guest runs on. Then ends the backup.
    pub fn stop_protection(&mut self) -> Result<(), Failure> {
        let Some(mut protect) = self.protect.take() else { return Ok(()) };
        let asked = control::ask(&protect.control, &Request::Stop);
        let began = Instant::now();
        while let (Ok(_), Ok(None)) = (&asked, protect.child.try_wait()) {
            if began.elapsed() > Duration::from_secs(30) || check_interrupted().is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = matches!(protect.child.try_wait(), Ok(Some(_)));
        if !ended {
            self.protect = Some(protect);
            return Err(Failure::failed("romulus protect does not end when it is told to".into()));
        }
        if let Some(mut backup) = self.backup.take() {
            kill(&mut backup.child);
        }
        asked.map(drop)
    }

    fn arbiter(&self) -> String {
        match self.arbitrated {
            true => format!("file:{}", self.dir().join("arbiter").display()),
            false => "none".to_owned(),
        }
    }

    /// Kills at once what a dying host takes with it: the guard, Romulus and QEMU. Gives the time
    /// of the kill.
    pub fn kill_primary_host(&mut self, guard: Option<Pid>) -> Instant {
        let killed = Instant::now();
        if let Some(guard) = guard {
            let _ = rustix::process::kill_process(guard, Signal::KILL);
        }
        let mut children: Vec<Child> = Vec::new();
        children.extend(self.protect.take().map(|instance| instance.child));
        children.extend(self.guest.take());
        for child in &mut children {
            let _ = child.kill();
        }
        for child in &mut children {
            let _ = child.wait();
        }
        if let Some((guest, _)) = self.adopted.take() {
            end(guest);
        }
        killed
    }

    /// Whether the guest's process on its host lives.
    pub fn guest_lives(&mut self) -> bool {
        match (&mut self.guest, &self.adopted) {
            (Some(guest), _) => matches!(guest.try_wait(), Ok(None)),
            (None, Some((guest, _))) => rustix::process::test_kill_process(*guest).is_ok(),
            (None, None) => false,
        }
    }

    /// The host that has died is alive again, empty, and becomes the backup of the one that took
    /// over; the guest's process there is the one to protect.
    pub fn change_roles(&mut self) -> Result<(), Failure> {
        let mut backup = self.backup.take().ok_or_else(|| Failure::failed("there is no backup".into()))?;
        let status = backup.status().unwrap_or_default();
        let qmp = status.pointer("/standby_qmp").and_then(|qmp| qmp.as_str()).map(PathBuf::from);
        let (Some(guest), Some(qmp)) = (pid(&status, "/standby_pid"), qmp) else {
            self.backup = Some(backup);
            return Err(Failure::failed(format!("the backup has no guest: {status}")));
        };
        kill(&mut backup.child);
        if let Some(mut former) = self.guest.take() {
            kill(&mut former);
        }
        self.adopted = Some((guest, qmp));
        if let Some(network) = &self.network {
            network.boot(self.side)?;
        }
        self.side = self.side.other();
        self.round += 1;
        Ok(())
    }
}

/// Kills a process that is no child of ours, and waits until the kernel has taken it apart.
fn end(process: Pid) {
    let Ok(descriptor) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else { return };
    let _ = rustix::process::pidfd_send_signal(&descriptor, Signal::KILL);
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    let _ = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 10, tv_nsec: 0 }));
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_folder();
        }
        // An activated standby outlives its backup, so it is ended by its own process id.
        let standby = self.backup.as_ref().and_then(|backup| pid(&backup.status()?, "/standby_pid"));
        if let Some(mut protect) = self.protect.take() {
            if let Some(guard) = protect.status().and_then(|status| pid(&status, "/guard_pid")) {
                let _ = rustix::process::kill_process(guard, Signal::KILL);
            }
            kill(&mut protect.child);
        }
        if let Some(mut backup) = self.backup.take() {
            kill(&mut backup.child);
        }
        if let Some(standby) = standby {
            let _ = rustix::process::kill_process(standby, Signal::KILL);
        }
        if let Some(mut guest) = self.guest.take() {
            kill(&mut guest);
        }
        if let Some((guest, _)) = self.adopted.take() {
            end(guest);
        }
        let _ = std::fs::remove_file(&self.ram);
    }
}
