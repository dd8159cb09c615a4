//! `romulus guard`: the process that acts for a `romulus protect` that was killed.

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use romulus_host::guard::{
    GateHandle, GuardHandle, GuardParts, GuardSpec, GuestHandle, GuestProcess, NoGate,
};
use romulus_qemu::QemuHandle;

use crate::exit::Failure;
use crate::gates;

/// The guard is told everything by the process that starts it.
#[derive(Debug, clap::Args)]
pub struct GuardOptions {}

/// How often another is tried where one could not be started.
const RESTART_EVERY: Duration = Duration::from_secs(10);

/// The guard of this process, looked after.
pub struct Guard {
    spec: GuardSpec,
    handle: GuardHandle,
    pid: GuardPid,
    /// When another could not be started in place of one that died.
    failed: Option<Instant>,
}

/// Tells the guard's process id, from any thread.
#[derive(Clone, Debug)]
pub struct GuardPid(Arc<AtomicU32>);

impl GuardPid {
    /// `None`: there is no guard.
    pub fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("guard");
    command
}

impl Guard {
    /// Starts a guard of this process.
    pub fn start(spec: GuardSpec) -> Result<Self, Failure> {
        let handle =
            romulus_host::guard::spawn(command(), &spec).map_err(|e| Failure::failed(e.to_string()))?;
        let pid = GuardPid(Arc::new(AtomicU32::new(handle.pid())));
        Ok(Self { spec, handle, pid, failed: None })
    }

    /// The guard that was started last.
    pub fn handle(&self) -> &GuardHandle {
        &self.handle
    }

    /// Its process id.
    pub fn pid(&self) -> GuardPid {
        self.pid.clone()
    }

    /// Starts another when it has died, and tries again where that fails, which is said once.
    pub fn look_after(&mut self) {
        let waits = self.failed.is_some_and(|at| at.elapsed() < RESTART_EVERY);
        if waits || self.handle.is_alive() {
            return;
        }
        let is_known = self.failed.is_some();
        if !is_known {
            tracing::error!("the guard, process {}, has died: starting another", self.handle.pid());
        }
        let restarted = self.handle.restart(command(), &self.spec);
        self.pid.0.store(if restarted.is_ok() { self.handle.pid() } else { 0 }, Ordering::Relaxed);
        match restarted {
            Ok(()) => self.failed = None,
            Err(error) => {
                self.failed = Some(Instant::now());
                if !is_known {
                    tracing::error!(
                        "{error}; there is no guard, and one is tried again every {RESTART_EVERY:?}: if this process \
                         is killed while the guest is paused, nobody resumes it"
                    );
                }
            }
        }
    }

    /// The guest runs, unwatched and its output free, or has ended.
    pub fn detach(self) {
        self.handle.detach();
    }
}

/// Guards until there is nothing left to guard.
pub fn run(_options: &GuardOptions) -> Result<ExitCode, Failure> {
    let outcome = romulus_host::guard::run(&Parts).map_err(|e| {
        Failure::failed(format!("{e} (`romulus guard` is started by `romulus protect`, not by hand)"))
    })?;
    tracing::info!("the guard has ended: {outcome:?}");
    Ok(ExitCode::SUCCESS)
}

struct Parts;

/// What is behind the kind of guest in the text that says how to reach it.
fn qemu(spec: &GuardSpec) -> Option<&str> {
    spec.access.strip_prefix("qemu:")
}

impl GuardParts for Parts {
    fn guest(&self, spec: &GuardSpec, process: Option<GuestProcess>) -> Result<Box<dyn GuestHandle>, String> {
        if let Some(domain) = spec.access.strip_prefix("xen:") {
            return guarded_domain(domain);
        }
        let qmp = qemu(spec).ok_or_else(|| format!("`{}` names no kind of guest", spec.access))?;
        let process = process.ok_or("the guest's process is not known")?;
        Ok(Box::new(GuardedQemu(QemuHandle::of(qmp, process))))
    }

    fn gate(&self, spec: &GuardSpec) -> Result<Box<dyn GateHandle>, String> {
        match &spec.gate {
            Some(text) => {
                let pid = spec.guest_pid.and_then(|pid| i32::try_from(pid).ok());
                let handle = pid.zip(qemu(spec)).and_then(|(pid, qmp)| QemuHandle::new(qmp, pid).ok());
                gates::guarded(text, handle)
            }
            None => Ok(Box::new(NoGate)),
        }
    }
}

#[cfg(feature = "xen")]
fn guarded_domain(domain: &str) -> Result<Box<dyn GuestHandle>, String> {
    let handle = romulus_xen::XenHandle::open(domain).map_err(|error| error.to_string())?;
    Ok(Box::new(GuardedDomain(handle)))
}

#[cfg(not(feature = "xen"))]
fn guarded_domain(_domain: &str) -> Result<Box<dyn GuestHandle>, String> {
    Err("this romulus was built without Xen".into())
}

/// A Xen domain.
#[cfg(feature = "xen")]
struct GuardedDomain(romulus_xen::XenHandle);

#[cfg(feature = "xen")]
impl GuestHandle for GuardedDomain {
    fn alive(&mut self) -> bool {
        self.0.alive()
    }

    fn resume_if_paused(&mut self) -> Result<(), String> {
        self.0.resume_if_paused().map_err(|error| error.to_string())
    }

    fn tidy(&mut self) -> Result<(), String> {
        self.0.tidy().map_err(|error| error.to_string())
    }

    fn destroy(&mut self) -> Result<(), String> {
        self.0.destroy().map_err(|error| error.to_string())
    }
}

/// A QEMU guest.
struct GuardedQemu(QemuHandle);

impl GuestHandle for GuardedQemu {
    fn alive(&mut self) -> bool {
        self.0.alive()
    }

    fn resume_if_paused(&mut self) -> Result<(), String> {
        self.0.resume_if_paused().map_err(|e| e.to_string())
    }

    fn tidy(&mut self) -> Result<(), String> {
        self.0.tidy().map_err(|e| e.to_string())
    }

    fn destroy(&mut self) -> Result<(), String> {
        self.0.destroy().map_err(|e| e.to_string())
    }
}
