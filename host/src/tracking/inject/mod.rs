//! Makes a userfaultfd inside another process and moves it here.
//!
//! A userfaultfd watches the memory of the process that made it, so the call must be made *by*
//! the tracked process: one of its threads is stopped with ptrace for a fraction of a
//! millisecond, made to execute `userfaultfd(2)` through a `syscall` instruction that its text
//! has anyway, and put back exactly as it was. The descriptor is taken with `pidfd_getfd` and
//! closed in the process, so that it lives only here.
//!
//! All this is done by a helper process, a fork that shares nothing but the descriptor table: if
//! Romulus is killed half-way, the helper still puts the thread back, instead of leaving it with
//! foreign registers.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("write-protect tracking knows the registers and system calls of x86-64 only");

mod helper;
mod thread;
mod tracee;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::PidfdGetfdFlags;

use super::TrackingError;
use super::target::Target;
use crate::maps;
use helper::Report;
use thread::ThreadFacts;
use tracee::{Failure, Plan, Step};

/// How long to wait for another tracer to let go: the helper of a predecessor that was killed
/// lives a few milliseconds longer than it.
const OTHER_TRACER_LIMIT: Duration = Duration::from_secs(1);
/// How often to try where no other tracer is seen: it may have come and gone in between.
const REFUSALS: usize = 5;

/// A new userfaultfd of the target's memory, open only in this process.
pub fn userfaultfd(target: &Target) -> Result<OwnedFd, TrackingError> {
    let deadline = Instant::now() + OTHER_TRACER_LIMIT;
    let mut refusals = 0;
    loop {
        let before = thread::choose(target)?;
        let failure = match inject_into(target, &before, helper::PATIENCE)? {
            Report::Done(uffd) => return Ok(uffd),
            Report::Failed(failure) => failure,
            Report::Silent => Failure { step: Step::Timeout, errno: libc::ETIMEDOUT },
        };
        let refused = failure == Failure { step: Step::Seize, errno: libc::EPERM };
        let facts = if refused { thread::choose(target)? } else { before };
        refusals += usize::from(facts.tracer == 0 && before.tracer == 0);
        if !refused || refusals >= REFUSALS || Instant::now() >= deadline {
            return Err(explain(target, &facts, failure));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn inject_into(target: &Target, facts: &ThreadFacts, patience: Duration) -> Result<Report, TrackingError> {
    let syscall_address = find_syscall_instruction(target, facts)?;
    // Its own, since a helper that is late outlives the target's value.
    let pidfd = target.pidfd().try_clone_to_owned();
    let pidfd = pidfd.map_err(|error| TrackingError::system("duplicate a pidfd", error))?;
    let plan =
        Plan { tid: facts.tid, pidfd: pidfd.as_raw_fd(), syscall_address, suspend_seccomp: facts.seccomp };
    helper::run(&plan, pidfd, patience)
}

/// The address of a `syscall` instruction in the target's vDSO, which every process has and no
/// library version changes.
fn find_syscall_instruction(target: &Target, facts: &ThreadFacts) -> Result<u64, TrackingError> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let mappings = maps::parse(&target.read_proc("maps")?);
    let vdso = mappings.iter().find(|mapping| mapping.name == "[vdso]");
    let Some(vdso) = vdso else {
        return Err(TrackingError::Refused(format!("process {} has no vDSO", target.pid())));
    };
    let len_bytes = usize::try_from(vdso.end - vdso.start).unwrap_or(0).min(1 << 20);
    let mut text = vec![0; len_bytes];
    // The kernel allows this to whom it allows ptrace.
    let memory = target.open_proc("mem", false).map_err(|error| match error {
        TrackingError::Privilege(_) => refused_ptrace(target.pid(), facts),
        other => other,
    })?;
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut text, vdso.start).map_err(|error| {
        TrackingError::system(format!("read the vDSO of process {}", target.pid()), error)
    })?;
    let offset = text.windows(2).position(|bytes| bytes == SYSCALL).ok_or_else(|| {
        TrackingError::Refused(format!("the vDSO of process {} has no syscall instruction", target.pid()))
    })?;
    Ok(vdso.start + offset as u64)
}

fn explain(target: &Target, facts: &ThreadFacts, failure: Failure) -> TrackingError {
    let pid = target.pid();
    let source = io::Error::from_raw_os_error(failure.errno);
    match (failure.step, failure.errno) {
        (Step::Gone, _) | (_, libc::ESRCH) => target.gone(),
        (Step::Seize, libc::EPERM) => refused_ptrace(pid, facts),
        (Step::Seize, libc::EINVAL) if facts.seccomp => TrackingError::Refused(refused_seccomp(pid)),
        (Step::Seize, libc::EIO) => TrackingError::Refused(format!("process {pid} cannot be traced")),
        (Step::Foreign, _) => TrackingError::Refused(format!(
            "process {pid} runs 32-bit code; only 64-bit processes are tracked"
        )),
        (Step::Timeout, _) => TrackingError::Refused(format!(
            "process {pid} did not stop for ptrace in time (is it in an uninterruptible wait?)"
        )),
        (Step::Userfaultfd, libc::ENOSYS) => {
            TrackingError::Refused("this kernel has no userfaultfd (CONFIG_USERFAULTFD)".into())
        }
        (Step::Userfaultfd, libc::EPERM) => TrackingError::Refused(format!(
            "process {pid} may not call userfaultfd: a seccomp filter or a security module forbids it \
             (QEMU: start it without -sandbox)"
        )),
        (step, _) => TrackingError::system(format!("make a userfaultfd in process {pid}: {step:?}"), source),
    }
}

/// Whether this process may do what [`userfaultfd`] does, without touching the target.
pub fn check(target: &Target) -> Result<(), TrackingError> {
    // The kernel asks the same as for ptrace, before it looks whether there is such a descriptor.
    match rustix::process::pidfd_getfd(target.pidfd(), 0, PidfdGetfdFlags::empty()) {
        Err(rustix::io::Errno::PERM) => Err(refused_ptrace(target.pid(), &thread::choose(target)?)),
        Err(rustix::io::Errno::SRCH) => Err(target.gone()),
        _ => Ok(()),
    }
}

fn refused_ptrace(pid: u32, facts: &ThreadFacts) -> TrackingError {
    if facts.tracer != 0 {
        if is_own_child(facts.tracer) {
            return TrackingError::Refused(format!(
                "an earlier attempt to track process {pid} still waits for it (is it in an uninterruptible wait, or \
                 frozen?)"
            ));
        }
        return TrackingError::Refused(format!(
            "process {pid} is already traced by process {} (a debugger, strace?); end that first",
            facts.tracer
        ));
    }
    if facts.seccomp {
        return TrackingError::Refused(refused_seccomp(pid));
    }
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    TrackingError::Privilege(match yama.as_deref().map(str::trim) {
        Ok("3") => {
            "ptrace is switched off for good on this system (kernel.yama.ptrace_scope = 3); it needs a \
                    reboot with another setting"
                .into()
        }
        Ok(scope @ ("1" | "2")) => format!(
            "not allowed to trace process {pid}: kernel.yama.ptrace_scope is {scope}; run as root or with \
             CAP_SYS_PTRACE"
        ),
        _ => format!("not allowed to trace process {pid}: run as root or with CAP_SYS_PTRACE"),
    })
}

/// Whether a tracer is a helper of this process that is late.
fn is_own_child(tracer: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tracer}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.and_then(|parent| parent.trim().parse().ok()) == Some(std::process::id())
}

fn refused_seccomp(pid: u32) -> String {
    format!(
        "process {pid} runs under a seccomp filter (QEMU -sandbox on), which might kill it for calling \
         userfaultfd; run as root (CAP_SYS_ADMIN) on a kernel with CONFIG_CHECKPOINT_RESTORE, so that the \
         filter can be suspended for that one call, or start it without the filter"
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::Stdio;

    use super::*;

    /// Children of this process that trace, or have traced, another one.
    fn helpers() -> usize {
        let own = format!("PPid:\t{}\n", std::process::id());
        let children = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            // A fork of this program, alive or dead, and no program of its own.
            read("status").contains(&own) && read("comm") == comm()
        });
        children.count()
    }

    fn comm() -> String {
        std::fs::read_to_string("/proc/thread-self/comm").unwrap()
    }

    fn userfaultfds() -> usize {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("userfaultfd")).count()
    }

    #[test]
    fn a_late_answer_leaves_no_process_and_no_descriptor() {
        if super::super::probe::write_protect().is_err() {
            return;
        }
        let mut command = std::process::Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it echoes, it is all there.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let target = Target::open(child.id()).unwrap();
        let before = userfaultfds();
        let facts = thread::choose(&target).unwrap();
        // Only a helper that is done before it is waited for is not late.
        while !matches!(inject_into(&target, &facts, Duration::ZERO).unwrap(), Report::Silent) {}
        let deadline = Instant::now() + Duration::from_secs(60);
        while helpers() > 0 || userfaultfds() > before {
            assert!(Instant::now() < deadline, "{} helpers, {} descriptors", helpers(), userfaultfds());
            std::thread::yield_now();
        }
        drop(userfaultfd(&target).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
