//! The guard: a small process that lets a guest go on when the process that protects it dies.
//!
//! [`spawn`] starts it (the same program again, with a hidden subcommand that calls [`run`]). It
//! holds no memory of the guest and sleeps until its protector's death. Then it acts as the
//! primary that lost its protection, by the rules of [`machine`]: the record is swapped to `Solo`
//! first, and only with that grant is a paused guest resumed and its output let go.
//!
//! It is a session of its own, so a Ctrl-C at the protector's terminal does not reach it, and
//! ignores the signals that ask a process to end: it ends by itself when there is nothing left to
//! guard. SIGKILL to a whole control group (systemd's default on `stop` after a timeout) ends it
//! too; nobody then resumes a guest that was paused at that moment.

mod link;
pub mod machine;
#[cfg(test)]
mod machine_tests;
mod page;
mod process;
mod run;
mod spawn;

use std::path::PathBuf;

use romulus_checkpoint::arbiter::SoloGrant;

pub use machine::Outcome;
pub use page::PauseFlag;
pub use process::GuestProcess;
pub use run::run;
pub use spawn::{GuardHandle, spawn};

/// What a guard must know.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuardSpec {
    /// The guest's name: the key of its record.
    pub guest: String,
    /// This host's name in the record.
    pub host: String,
    /// The arbiter, as on the command line (`file:PATH`, `none`).
    pub arbiter: String,
    /// Where nobody arbitrates: whether going on alone needs no operator.
    pub solo_automatic: bool,
    /// The guest's process, if it is one.
    pub guest_pid: Option<u32>,
    /// What the glue needs to reach the guest (QEMU: the path of its QMP socket).
    pub access: String,
    /// What the output gate needs to be opened, if there is one.
    pub gate: Option<String>,
    /// Where to write how it ended, as one line of JSON.
    pub report: Option<PathBuf>,
}

/// A guest, as a guard sees it. Implemented by the glues.
pub trait GuestHandle {
    /// Whether it lives and is not about to die; see [`GuestProcess::is_alive`].
    fn alive(&mut self) -> bool;
    /// Lets it run on if it is paused. `Ok` also if it runs already. May be repeated.
    fn resume_if_paused(&mut self) -> Result<(), String>;
    /// Puts back what the protector had set in the hypervisor. Called once, when the guest goes on
    /// here; what fails is left as it is.
    fn tidy(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// Destroys it: another host has it. `Ok` also if it is dead already. May be repeated.
    fn destroy(&mut self) -> Result<(), String>;
}

/// The output gate, as a guard sees it.
pub trait GateHandle {
    /// Lets all output of the guest go, what was held included. May be repeated.
    fn open(&mut self, grant: &SoloGrant) -> Result<(), String>;
    /// The guest is dead or destroyed and sends nothing any more: takes away what its gate had set up.
    /// May be repeated.
    fn clear(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// The gate of a guest whose output is not held.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoGate;

impl GateHandle for NoGate {
    fn open(&mut self, _grant: &SoloGrant) -> Result<(), String> {
        Ok(())
    }
}

/// Makes the handles of a guard from its spec, after its protector's death.
pub trait GuardParts {
    /// The guest; `process` is there where the spec names one.
    fn guest(&self, spec: &GuardSpec, process: Option<GuestProcess>) -> Result<Box<dyn GuestHandle>, String>;
    /// The gate.
    fn gate(&self, _spec: &GuardSpec) -> Result<Box<dyn GateHandle>, String> {
        Ok(Box::new(NoGate))
    }
}

/// A guard could not be started or could not begin.
#[derive(Debug, thiserror::Error)]
#[error("guard: {what}: {source}")]
pub struct GuardError {
    what: String,
    source: std::io::Error,
}

impl GuardError {
    pub(crate) fn new(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self { what: what.into(), source: source.into() }
    }
}
