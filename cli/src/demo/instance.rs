//! A `romulus protect` or `romulus backup` of the demonstration: its process, and what it says on
//! its control socket.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::netns::NetNs;
use crate::control::{self, Request};
use crate::exit::Failure;

/// A running instance.
#[derive(Debug)]
pub struct Instance {
    /// Its process.
    pub child: Child,
    /// Its control socket.
    pub control: PathBuf,
    /// What it says on standard output and standard error.
    pub log: PathBuf,
}

impl Instance {
    /// Starts `program` (`romulus`) as `role` with these arguments, its control socket and log in
    /// `dir`, inside a host's network if there is one.
    pub fn start(
        program: &Path,
        role: &str,
        dir: &Path,
        arguments: &[String],
        host: Option<&NetNs>,
    ) -> Result<Self, Failure> {
        let control = dir.join(format!("{role}.sock"));
        let log = dir.join(format!("{role}.log"));
        let failed = |e: std::io::Error| Failure::failed(format!("starting romulus {role}: {e}"));
        let log_file = std::fs::File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg(role)
            .args(arguments)
            .arg("--control")
            .arg(&control)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().map_err(failed)?)
            .stderr(log_file);
        let child = spawn(&mut command, host).map_err(failed)?;
        Ok(Self { child, control, log })
    }

    /// Its status now, if it answers.
    pub fn status(&self) -> Option<Value> {
        control::ask(&self.control, &Request::Status).ok()
    }

    /// Polls its status until `accept` takes one; an end of the process or of the time is an
    /// error that shows its log.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut accept: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status();
            if let Some(found) = status.as_ref().and_then(&mut accept) {
                return Ok(found);
            }
            if let Ok(Some(exit)) = self.child.try_wait() {
                return Err(self.failure(&format!("ended ({exit}) before there was a {what}")));
            }
            if Instant::now() > deadline {
                let now = status.map(|status| status.to_string()).unwrap_or_default();
                return Err(self.failure(&format!("no {what} within {limit:?}: {now}")));
            }
            super::check_interrupted()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn failure(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(12)..].join("\n");
        let name = self.log.file_stem().unwrap_or_default().to_string_lossy();
        Failure::failed(format!("romulus {name}: {what}\n{tail}"))
    }
}

/// Starts a process, inside a host's network if there is one. The kernel kills it when the calling
/// thread ends, as it does by kill -9 of the demonstration. What it starts in turn sees to itself: a
/// standby ends with its backup, but a guest that was taken over runs on.
pub fn spawn(command: &mut Command, host: Option<&NetNs>) -> std::io::Result<Child> {
    let host = host.map(NetNs::try_clone).transpose()?;
    let starter = i32::try_from(std::process::id()).ok().and_then(Pid::from_raw);
    // SAFETY: between fork and exec there are system calls alone: no memory is asked for, no lock taken.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != starter {
                // It died before the kernel was told.
                return Err(Errno::SRCH.into());
            }
            host.as_ref().map_or(Ok(()), NetNs::join)
        });
    }
    command.spawn()
}

/// Ends a child at once and waits for it.
pub fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The state in a status.
pub fn state(status: &Value) -> &str {
    status.pointer("/state").and_then(Value::as_str).unwrap_or("")
}

/// A process id in a status.
pub fn pid(status: &Value, path: &str) -> Option<Pid> {
    Pid::from_raw(status.pointer(path)?.as_i64()?.try_into().ok()?)
}
