//! How the program ends: its exit codes and what goes with them.

use std::process::ExitCode;

/// Exit codes, as `romulus-perf --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Something failed at run time.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The image was not the guest at the committed pause, changed afterwards, or the guest's
    /// output had run ahead of it.
    NotExact = 3,
    /// The guest went to the backup without being asked to.
    Moved = 5,
    /// The measured run did not do what its options demand (see `--require-...`).
    Short = 6,
    /// Figures are worse than before, beyond the noise, or missing.
    Worse = 7,
}

/// The table of exit codes for `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0  done as asked; what was verified is exact
  1  something failed at run time
  2  wrong command line
  3  not exact: the image differs from the guest at the committed pause, or output ran ahead of it
  5  the guest went to the backup without being asked to
  6  a run fell short of what --require-... demands
  7  compare: figures are worse than before, beyond the noise, or missing";

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

    /// Wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Failed at run time.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    /// Says it on standard error and gives the code.
    pub fn report(&self) -> ExitCode {
        eprintln!("romulus-perf: {}", self.message);
        ExitCode::from(self.code as u8)
    }
}

/// Turns an error into a [`Failure`] that says what was being done.
pub trait OrFail<T> {
    /// `what` names what was tried.
    fn or_fail(self, what: impl std::fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl std::fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(format!("{what}: {error}")))
    }
}
