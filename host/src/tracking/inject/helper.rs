//! The helper process that carries out the injection, and how it reports.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::super::TrackingError;
use super::tracee::{self, Failure, Plan, Step};

/// What became of the injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The userfaultfd, in this process's table.
    Done(RawFd),
    /// It failed; the thread is as it was.
    Failed(Failure),
    /// The helper has not finished in time; it goes on and puts the thread back when it can.
    Silent,
}

const WAIT_SECONDS: i64 = 10;

/// A page shared with the helper.
#[repr(C)]
struct Answer {
    /// 0: none yet; 1: done; 2 + step: failed.
    outcome: AtomicU32,
    value: AtomicI32,
}

/// Forks the helper and waits for its answer.
pub fn run(plan: &Plan) -> Result<Report, TrackingError> {
    let page = SharedPage::new().map_err(|error| TrackingError::system("map a page", error))?;
    let (helper, pidfd) = fork_helper(plan, page.answer())
        .map_err(|error| TrackingError::system("fork the injection helper", error))?;
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Timespec { tv_sec: WAIT_SECONDS, tv_nsec: 0 };
    let ended = loop {
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(TrackingError::system("wait for the injection helper", error.into())),
            Ok(ready) => break ready > 0,
        }
    };
    if !ended {
        return Ok(Report::Silent);
    }
    let mut status = 0;
    // SAFETY: reaps the helper, a child of this process; the status is a local.
    unsafe { libc::waitpid(helper, &mut status, libc::__WALL) };
    let value = page.answer().value.load(Ordering::Acquire);
    Ok(match page.answer().outcome.load(Ordering::Acquire) {
        1 => Report::Done(value),
        0 => Report::Failed(Failure { step: Step::Helper, errno: libc::EIO }),
        step => Report::Failed(Failure { step: Step::from_number(step - 2), errno: value }),
    })
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
