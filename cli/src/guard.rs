//! `romulus guard`: the process that acts for a `romulus protect` that was killed.

use std::process::{Command, ExitCode};

use romulus_host::guard::{GuardHandle, GuardParts, GuardSpec, GuestHandle, GuestProcess};

use crate::exit::Failure;

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
        Ok(Box::new(romulus_qemu::GuardedQemu::new(&spec.access, process)))
    }
}
