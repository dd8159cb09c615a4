//! A process that is looked at from outside: named by a pidfd, so that a reused id is no danger.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::TrackingError;

/// The tracked process.
#[derive(Debug)]
pub struct Target {
    pid: u32,
    pidfd: OwnedFd,
}

impl Target {
    /// Takes hold of a live process.
    pub fn open(pid: u32) -> Result<Self, TrackingError> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(TrackingError::Gone { pid })?;
        let pidfd = rustix::process::pidfd_open(id, PidfdFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::SRCH => TrackingError::Gone { pid },
            error => TrackingError::system(format!("pidfd_open of process {pid}"), error.into()),
        })?;
        Ok(Self { pid, pidfd })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its descriptor.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match rustix::event::poll(&mut polled, Some(&now)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return true,
                Ok(ready) => return ready == 0,
            }
        }
    }

    /// [`TrackingError::Gone`] of this process.
    pub fn gone(&self) -> TrackingError {
        TrackingError::Gone { pid: self.pid }
    }

    /// Opens a file of its `/proc` directory.
    pub fn open_proc(&self, name: &str, write: bool) -> Result<File, TrackingError> {
        let path = format!("/proc/{}/{name}", self.pid);
        let file = File::options().read(!write).write(write).open(&path);
        // Checked after opening: the id cannot have been reused while the process is alive.
        if !self.is_alive() {
            return Err(self.gone());
        }
        file.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => TrackingError::Privilege(format!(
                "not allowed to open {path}: run as root, or as the owner of process {} with CAP_SYS_PTRACE",
                self.pid
            )),
            _ => TrackingError::system(format!("open {path}"), error),
        })
    }

    /// The text of a file of its `/proc` directory.
    pub fn read_proc(&self, name: &str) -> Result<String, TrackingError> {
        let mut text = String::new();
        let mut file = self.open_proc(name, false)?;
        io::Read::read_to_string(&mut file, &mut text)
            .map_err(|error| TrackingError::system(format!("read /proc/{}/{name}", self.pid), error))?;
        Ok(text)
    }
}
