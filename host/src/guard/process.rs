//! A guest that is a process: whether it lives, and its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// A process by pidfd: a reused id is no danger.
#[derive(Debug)]
pub struct GuestProcess {
    pid: u32,
    pidfd: OwnedFd,
}

impl GuestProcess {
    /// Takes hold of a live process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, pidfd: rustix::process::pidfd_open(id, PidfdFlags::empty())? })
    }

    /// The process of a pidfd that was handed over, and its id.
    pub fn from_pidfd(pid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its descriptor.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits up to `timeout` (`None`: without limit) for its end; whether it has ended.
    pub fn wait_end(&self, timeout: Option<Duration>) -> bool {
        let limit = timeout.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        loop {
            match rustix::event::poll(&mut polled, limit.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
                Ok(ready) => return ready > 0,
            }
        }
    }

    /// Whether it lives and is not about to die: a killed process with much memory takes a while
    /// to give it up, and its pidfd says so only in the end.
    pub fn is_alive(&self) -> bool {
        if self.wait_end(Some(Duration::ZERO)) {
            return false;
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        !is_exiting(&stat) && !is_being_killed(&status) && !self.wait_end(Some(Duration::ZERO))
    }

    /// Kills it, also if it is stopped; does not wait for its end.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the main thread is on its way out, by `/proc/PID/stat`.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    // The name may contain anything, the last parenthesis ends it.
    let mut fields = stat.rsplit(')').next().unwrap_or("").split_ascii_whitespace();
    let state = fields.next().unwrap_or("");
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0);
    matches!(state, "Z" | "X") || flags & PF_EXITING != 0
}

/// Whether SIGKILL is pending, by `/proc/PID/status`.
fn is_being_killed(status: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (9 - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & SIGKILL_BIT != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_flags_are_read_behind_the_name() {
        let stat = |state: &str, flags: u64| format!("12 (a) b (c) {state} 1 2 3 4 5 {flags} 7 8");
        assert!(!is_exiting(&stat("S", 0x40_0040)));
        assert!(is_exiting(&stat("R", 0x40_0044)));
        assert!(is_exiting(&stat("Z", 0)));
        assert!(!is_exiting(""));
    }

    #[test]
    fn a_pending_kill_is_seen() {
        assert!(is_being_killed("SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(is_being_killed("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!is_being_killed("SigPnd:\t0000000000000200\nSigBlk:\t0000000000000100\n"));
    }

    #[test]
    fn a_killed_process_is_dead_at_once() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = GuestProcess::open(child.id()).unwrap();
        assert!(process.is_alive());
        process.kill().unwrap();
        assert!(!process.is_alive(), "also before it has given up its memory");
        assert!(process.wait_end(None));
        child.wait().unwrap();
        assert!(!process.is_alive());
        process.kill().unwrap();
    }
}
