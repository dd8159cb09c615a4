//! A guest as its guard sees it, when the process that protected it has died.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use romulus_host::guard::GuestProcess;
use serde_json::json;

use crate::error::QemuError;
use crate::gates::{objects_of, remove_buffers};
use crate::process::Process;
use crate::qmp::{Client, QmpError};

/// How long the guest may take to be reachable and to run. QEMU has to notice first that its
/// monitor's last client is gone, and to finish what that had asked for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Reaches a guest through a fresh QMP connection each time, and holds nothing of it.
#[derive(Debug)]
pub struct QemuHandle {
    qmp: PathBuf,
    process: Process,
}

impl QemuHandle {
    /// A handle of the QEMU with this process id and QMP socket. `pid` names the process for
    /// certain if it is opened while the guest is known to live.
    pub fn new(qmp: impl Into<PathBuf>, pid: i32) -> Result<Self, QemuError> {
        Ok(Self { qmp: qmp.into(), process: Process::open(pid)? })
    }

    /// As [`new`](Self::new), of a process that was opened while it lived.
    pub fn of(qmp: impl Into<PathBuf>, process: GuestProcess) -> Self {
        Self { qmp: qmp.into(), process: Process::from(process) }
    }

    /// Whether its process lives and is not about to die.
    pub fn alive(&mut self) -> bool {
        self.process.is_alive()
    }

    /// Lets it run on if it is paused; ok if it runs already.
    pub fn resume_if_paused(&mut self) -> Result<(), QemuError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !self.process.is_alive() {
                return Err(QemuError::Gone { pid: self.process.pid() });
            }
            let error = match self.try_resume() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            self.process.wait_end(PAUSE);
        }
    }

    fn try_resume(&self) -> Result<(), QemuError> {
        let mut client = Client::connect(&self.qmp, ATTEMPT)?;
        let status = client.execute("query-status", json!({}))?;
        let name = status["status"].as_str().unwrap_or_default();
        match name {
            "running" => {}
            // A save that was under way when its client died.
            "finish-migrate" | "save-vm" => {
                return Err(QemuError::failed("resuming", format!("QEMU is still busy ({name})")));
            }
            // Only a reset or the end leads out of these; nobody holds the guest back.
            "shutdown" | "guest-panicked" | "internal-error" | "inmigrate" => {
                tracing::warn!(status = name, "the guest does not run, and not because it is paused");
            }
            _ => {
                client.execute("cont", json!({}))?;
            }
        }
        Ok(())
    }

    /// Switches off the migration capabilities that a protector which died has left on: an ordinary
    /// migration would leave the guest's memory behind with them.
    pub fn tidy(&mut self) -> Result<(), QemuError> {
        let mut client = Client::connect(&self.qmp, ATTEMPT)?;
        let off = |name: &str| json!({"capability": name, "state": false});
        let capabilities = json!({"capabilities": [off("x-ignore-shared"), off("events")]});
        match client.execute("migrate-set-capabilities", capabilities) {
            Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets go of all output that QEMU holds for a protector that died, for these back ends; ok where
    /// there is none.
    pub fn open_buffers(&mut self, netdevs: &[String]) -> Result<(), QemuError> {
        let mut client = Client::connect(&self.qmp, ATTEMPT)?;
        remove_buffers(&mut client, netdevs.iter().flat_map(|netdev| objects_of(netdev)))
    }

    /// Kills it and waits for its end; ok if it is dead already.
    pub fn destroy(&mut self) -> Result<(), QemuError> {
        self.process.kill()
    }
}
