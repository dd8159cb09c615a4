//! A `romulus protect` or `romulus backup` of the demonstration: its process, and what it says on
//! its control socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::{self, Request};
use crate::exit::Failure;

/// A running instance.
#[derive(Debug)]
pub struct Instance {
    /// Its process.
    pub child: Child,
    control: PathBuf,
    log: PathBuf,
}

impl Instance {
    /// Starts this same program with these arguments, its control socket and log in `dir`.
    pub fn start(role: &str, dir: &Path, arguments: &[String]) -> Result<Self, Failure> {
        let control = dir.join(format!("{role}.sock"));
        let log = dir.join(format!("{role}.log"));
        let failed = |e: std::io::Error| Failure::failed(format!("starting romulus {role}: {e}"));
        let program = std::env::current_exe().map_err(failed)?;
        let log_file = std::fs::File::create(&log).map_err(failed)?;
        let child = Command::new(program)
            .arg(role)
            .args(arguments)
            .arg("--control")
            .arg(&control)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().map_err(failed)?)
            .stderr(log_file)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, control, log })
    }

    /// Its status now, if it answers.
    pub fn status(&self) -> Option<serde_json::Value> {
        control::ask(&self.control, &Request::Status).ok()
    }

    /// Polls its status until `accept` takes one; an end of the process or of the time is an
    /// error that shows its log.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut accept: impl FnMut(&serde_json::Value) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = self.status().as_ref().and_then(&mut accept) {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failure(&format!("ended ({status}) before {what}")));
            }
            if Instant::now() > deadline {
                return Err(self.failure(&format!("no {what} within {limit:?}")));
            }
            super::check_interrupted()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn failure(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let name = self.log.file_stem().unwrap_or_default().to_string_lossy();
        Failure::failed(format!("romulus {name}: {what}\n{}", tail.join("\n")))
    }
}

/// Ends a child at once and waits for it.
pub fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
