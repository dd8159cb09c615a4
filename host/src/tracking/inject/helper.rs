//! The helper process that carries out the injection, and how it reports.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::super::TrackingError;
use super::tracee::{self, Failure, Plan, Step};

/// What became of the injection.
#[derive(Debug)]
pub enum Report {
    /// The userfaultfd.
    Done(OwnedFd),
    /// It failed; the thread is as it was.
    Failed(Failure),
    /// The helper has not finished in time; it goes on and puts the thread back when it can.
    Silent,
}

/// How long the helper may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A page shared with the helper.
#[repr(C)]
struct Answer {
    /// 0: none yet; 1: done; 2 + step: failed.
    outcome: AtomicU32,
    value: AtomicI32,
}

/// Forks the helper and waits for its answer. `pidfd` is the one that the plan names: it stays open
/// until the helper has ended.
pub fn run(plan: &Plan, pidfd: OwnedFd, patience: Duration) -> Result<Report, TrackingError> {
    let page = SharedPage::new().map_err(|error| TrackingError::system("map a page", error))?;
    let (id, process) = fork_helper(plan, page.answer())
        .map_err(|error| TrackingError::system("fork the injection helper", error))?;
    let helper = Helper { id, process, page, _pidfd: pidfd };
    if helper.has_ended(Some(patience)) {
        return Ok(helper.finish());
    }
    // Nobody waits for a late answer: what comes of it is put away.
    let waiting = std::thread::Builder::new().name("inject-late".into()).spawn(move || {
        helper.has_ended(None);
        helper.finish();
    });
    waiting.map_err(|error| TrackingError::system("start a thread", error))?;
    Ok(Report::Silent)
}

/// The helper while it is under way.
struct Helper {
    id: libc::pid_t,
    process: OwnedFd,
    page: SharedPage,
    _pidfd: OwnedFd,
}

impl Helper {
    /// Waits for its end; whether it came.
    fn has_ended(&self, patience: Option<Duration>) -> bool {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            let mut polled = [PollFd::new(&self.process, PollFlags::IN)];
            match rustix::event::poll(&mut polled, limit.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return false,
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // An error means wrong arguments; reaping it waits as well.
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// Reaps it, which has ended, and takes its answer.
    fn finish(self) -> Report {
        let mut status = 0;
        // SAFETY: reaps the helper, a child of this process; the status is a local.
        unsafe { libc::waitpid(self.id, &mut status, libc::__WALL) };
        let answer = self.page.answer();
        let value = answer.value.load(Ordering::Acquire);
        match answer.outcome.load(Ordering::Acquire) {
            // SAFETY: the helper put this descriptor into the table that it shares with this process and
            // handed it over; nobody else knows of it.
            1 => Report::Done(unsafe { OwnedFd::from_raw_fd(value) }),
            0 => Report::Failed(Failure { step: Step::Helper, errno: libc::EIO }),
            step => Report::Failed(Failure { step: Step::from_number(step - 2), errno: value }),
        }
    }
}

/// Forks with a shared descriptor table, so that the descriptor which the helper takes arrives
/// here. The helper sends no signal when it ends: no SIGCHLD handler and no `wait` of this
/// process sees it. It begins with all signals blocked: a Ctrl-C at the terminal must not stop it
/// half-way.
fn fork_helper(plan: &Plan, answer: &Answer) -> io::Result<(libc::pid_t, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_FILES | libc::CLONE_PIDFD;
    // SAFETY: plain signal-set calls on locals; the mask is restored below in this thread.
    let previous = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut previous: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut previous);
        previous
    };
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of this memory and runs
    // on this stack. It only calls `tracee::run`, which neither allocates nor locks, and `_exit`.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, &raw mut pidfd, 0, 0) };
    if child == 0 {
        match tracee::run(plan) {
            Ok(fd) => {
                answer.value.store(fd, Ordering::Release);
                answer.outcome.store(1, Ordering::Release);
            }
            Err(failure) => {
                answer.value.store(failure.errno, Ordering::Release);
                answer.outcome.store(2 + failure.step as u32, Ordering::Release);
            }
        }
        // SAFETY: ends the helper without running this process's exit handlers.
        unsafe { libc::_exit(0) }
    }
    let error = io::Error::last_os_error();
    // SAFETY: restores the mask saved above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &previous, std::ptr::null_mut()) };
    if child < 0 {
        return Err(error);
    }
    // SAFETY: a successful clone with CLONE_PIDFD stored a new descriptor that nobody else owns.
    Ok((child as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

struct SharedPage(*mut libc::c_void);

// SAFETY: the page is mapped as long as the value lives and is only touched through atomics.
unsafe impl Send for SharedPage {}

impl SharedPage {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping; touches no existing memory.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(page)) }
    }

    fn answer(&self) -> &Answer {
        // SAFETY: the page is mapped as long as `self` lives, zeroed and aligned; `Answer` is made
        // of atomics, for which any bytes are valid and sharing between processes is sound.
        unsafe { &*self.0.cast::<Answer>() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once; `answer` borrows from `self`. The helper has its
        // own reference to the page.
        unsafe { libc::munmap(self.0, 4096) };
    }
}
