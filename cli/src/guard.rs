//! `romulus guard`: the process that acts for a `romulus protect` that was killed.

use std::process::{Command, ExitCode};

use romulus_host::guard::{
    GateHandle, GuardHandle, GuardParts, GuardSpec, GuestHandle, GuestProcess, NoGate,
};
use romulus_qemu::QemuHandle;

use crate::exit::Failure;
use crate::gates;

/// The guard is told everything by the process that starts it.
#[derive(Debug, clap::Args)]
pub struct GuardOptions {}

/// Starts a guard of this process.
pub fn start(spec: &GuardSpec) -> Result<GuardHandle, Failure> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("guard");
    romulus_host::guard::spawn(command, spec).map_err(|e| Failure::failed(e.to_string()))
}

/// Guards until there is nothing left to guard.
pub fn run(_options: &GuardOptions) -> Result<ExitCode, Failure> {
    let outcome = romulus_host::guard::run(&QemuParts).map_err(|e| {
        Failure::failed(format!("{e} (`romulus guard` is started by `romulus protect`, not by hand)"))
    })?;
    tracing::info!("the guard has ended: {outcome:?}");
    Ok(ExitCode::SUCCESS)
}

struct QemuParts;

impl GuardParts for QemuParts {
    fn guest(&self, spec: &GuardSpec, process: Option<GuestProcess>) -> Result<Box<dyn GuestHandle>, String> {
        let process = process.ok_or("the guest's process is not known")?;
        let pid = i32::try_from(process.pid()).map_err(|e| e.to_string())?;
        let qemu = QemuHandle::new(&spec.access, pid).map_err(|e| e.to_string())?;
        Ok(Box::new(GuardedQemu { qemu, process }))
    }

    fn gate(&self, spec: &GuardSpec) -> Result<Box<dyn GateHandle>, String> {
        match &spec.gate {
            Some(text) => {
                let pid = spec.guest_pid.and_then(|pid| i32::try_from(pid).ok());
                gates::guarded(text, pid.and_then(|pid| QemuHandle::new(&spec.access, pid).ok()))
            }
            None => Ok(Box::new(NoGate)),
        }
    }
}

/// A QEMU guest; whether it lives is asked of the descriptor that was opened when it certainly did.
struct GuardedQemu {
    qemu: QemuHandle,
    process: GuestProcess,
}

impl GuestHandle for GuardedQemu {
    fn alive(&mut self) -> bool {
        self.process.is_alive()
    }

    fn resume_if_paused(&mut self) -> Result<(), String> {
        self.qemu.resume_if_paused().map_err(|e| e.to_string())
    }

    fn tidy(&mut self) -> Result<(), String> {
        self.qemu.tidy().map_err(|e| e.to_string())
    }

    fn destroy(&mut self) -> Result<(), String> {
        self.process.kill().map_err(|e| e.to_string())
    }
}
