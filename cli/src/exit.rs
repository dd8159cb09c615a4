//! How the command ends: its exit codes and what goes with them.

use std::process::ExitCode;

/// Exit codes, as documented in docs/operations.md and `romulus --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Something failed at run time.
    Failed = 1,
    /// The command line or the settings file is wrong.
    Usage = 2,
    /// The guest, the peer or the arbiter's record does not allow it.
    Refused = 3,
    /// This machine lacks a privilege, a program or a kernel feature (see `romulus doctor`).
    Machine = 4,
    /// The guest now runs on the other host, or is that host's to run.
    Moved = 5,
    /// The guest has ended.
    GuestEnded = 6,
    /// The guest's process died and no backup goes on with it.
    GuestLost = 7,
}

/// The table of exit codes for `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0  done as asked
  1  something failed at run time
  2  wrong command line or settings file
  3  refused: the guest, the peer or the arbiter's record does not allow it
  4  this machine lacks a privilege, a program or a kernel feature (see romulus doctor)
  5  the guest now runs on the other host
  6  the guest has ended (powered off)
  7  the guest's process died while it was unprotected: it runs nowhere";

/// An end with an exit code and a message for people.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// What, where, which value, and what to do.
    pub message: String,
}

impl Failure {
    /// Of this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Wrong command line or settings.
    pub fn usage(message: String) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Failed at run time.
    pub fn failed(message: String) -> Self {
        Self::new(Code::Failed, message)
    }

    /// A system call failed at run time: where a privilege was missing, that is what the code says.
    pub fn system(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Self::new(
                Code::Machine,
                format!("{what}: {error}; run romulus as root, or as a user who may"),
            ),
            _ => Self::failed(format!("{what}: {error}")),
        }
    }

    /// Says it on standard error and gives the code.
    pub fn report(&self) -> ExitCode {
        eprintln!("romulus: {}", self.message);
        ExitCode::from(self.code as u8)
    }
}
