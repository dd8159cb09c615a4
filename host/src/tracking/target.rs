//! A process that is looked at from outside: named by a pidfd, so that a reused id is no danger.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::TrackingError;
use crate::guard::GuestProcess;

/// The tracked process.
#[derive(Debug)]
pub struct Target {
    process: GuestProcess,
}

impl Target {
    /// Takes hold of a live process.
    pub fn open(pid: u32) -> Result<Self, TrackingError> {
        let process = GuestProcess::open(pid).map_err(|error| match error.raw_os_error() {
            // `None`: no process can have this id.
            None | Some(libc::ESRCH) => TrackingError::Gone { pid },
            Some(_) => TrackingError::system(format!("pidfd_open of process {pid}"), error),
        })?;
        Ok(Self { process })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its descriptor.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        !self.process.wait_end(Some(Duration::ZERO))
    }

    /// [`TrackingError::Gone`] of this process.
    pub fn gone(&self) -> TrackingError {
        TrackingError::Gone { pid: self.pid() }
    }

    /// Opens a file of its `/proc` directory.
    pub fn open_proc(&self, name: &str, write: bool) -> Result<File, TrackingError> {
        let path = format!("/proc/{}/{name}", self.pid());
        let file = File::options().read(!write).write(write).open(&path);
        // Checked after opening: the id cannot have been reused while the process is alive.
        if !self.is_alive() {
            return Err(self.gone());
        }
        file.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => TrackingError::Privilege(format!(
                "not allowed to open {path}: run as root, or as the owner of process {} with CAP_SYS_PTRACE",
                self.pid()
            )),
            _ => TrackingError::system(format!("open {path}"), error),
        })
    }

    /// The text of a file of its `/proc` directory.
    pub fn read_proc(&self, name: &str) -> Result<String, TrackingError> {
        let mut text = String::new();
        let mut file = self.open_proc(name, false)?;
        io::Read::read_to_string(&mut file, &mut text)
            .map_err(|error| TrackingError::system(format!("read /proc/{}/{name}", self.pid()), error))?;
        Ok(text)
    }
}
