//! A QEMU process of our own: started, watched, its words kept for when it fails.

use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::QemuError;
use crate::process::Process;
use crate::qmp::{Client, QmpError};

/// How much of the log an error quotes, in bytes.
const LOG_TAIL_BYTES: u64 = 2048;
/// How often a starting QEMU is asked whether its socket is there.
const START_POLL: Duration = Duration::from_millis(2);

/// A child that is QEMU, in a directory of its own.
#[derive(Debug)]
pub(super) struct QemuChild {
    child: Child,
    process: Process,
    directory: PathBuf,
    keep: bool,
}

impl QemuChild {
    /// Makes the private directory that [`start`](Self::start) needs.
    pub(super) fn make_directory(directory: &Path) -> Result<(), QemuError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| QemuError::failed(format!("making {}", directory.display()), error))
    }

    /// The socket of a QEMU with this directory.
    pub(super) fn qmp_in(directory: &Path) -> PathBuf {
        directory.join("qmp")
    }

    /// Starts QEMU and connects to its monitor.
    pub(super) fn start(
        command: &[String],
        directory: &Path,
        timeout: Duration,
    ) -> Result<(Self, Client), QemuError> {
        let fail = |why: std::io::Error| QemuError::failed(format!("starting {}", command[0]), why);
        let log = File::create(directory.join("log")).map_err(fail)?;
        tracing::debug!(command = %command.join(" "), "starting QEMU");
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log)
            .process_group(0)
            .spawn();
        let mut child = child.map_err(|why| {
            // Nobody owns the folder yet; an error in removing it is not what matters here.
            let _ = std::fs::remove_dir_all(directory);
            fail(why)
        })?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let process = Process::open(pid).inspect_err(|_| {
            // Nobody would end it any more; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let mut started = Self { child, process, directory: directory.to_owned(), keep: false };
        let client = started.connect(timeout)?;
        Ok((started, client))
    }

    fn connect(&mut self, timeout: Duration) -> Result<Client, QemuError> {
        let deadline = Instant::now() + timeout;
        let path = Self::qmp_in(&self.directory);
        loop {
            if let Some(end) = self.end() {
                return Err(self.failed("starting QEMU", end));
            }
            match Client::connect(&path, timeout) {
                Ok(client) => return Ok(client),
                Err(QmpError::Io(_) | QmpError::Closed) if Instant::now() < deadline => {}
                Err(error) => return Err(self.failed("connecting to QEMU's monitor", error)),
            }
            // Also wakes when QEMU ends.
            self.process.wait_end(START_POLL);
        }
    }

    /// How it ended, if it has.
    pub(super) fn end(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("it ended ({status})")),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Waits a moment for an end that is under way.
    pub(super) fn wait_end(&self, timeout: Duration) -> bool {
        self.process.wait_end(timeout)
    }

    /// The process.
    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    /// The socket of its monitor.
    pub(super) fn qmp(&self) -> PathBuf {
        Self::qmp_in(&self.directory)
    }

    /// An error with QEMU's last words.
    pub(super) fn failed(&self, what: &str, why: impl ToString) -> QemuError {
        let why = why.to_string();
        let words = self.last_words();
        if words.is_empty() {
            return QemuError::failed(what, why);
        }
        QemuError::failed(what, format!("{why}; QEMU says: {words}"))
    }

    fn last_words(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(self.directory.join("log"))?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut tail = Vec::new();
            log.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
            Ok(tail)
        };
        let tail = read().unwrap_or_default();
        String::from_utf8_lossy(&tail).trim().replace('\n', " | ")
    }

    /// From now on it outlives this value.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// Kills it and removes its directory. Idempotent.
    pub(super) fn kill(&mut self) {
        if let Err(error) = self.child.kill() {
            tracing::debug!(%error, "killing a standby");
        }
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "waiting for the end of a standby");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::debug!(%error, directory = %self.directory.display(), "not removed");
        }
    }
}

impl Drop for QemuChild {
    fn drop(&mut self) {
        if !self.keep {
            self.kill();
        }
    }
}
