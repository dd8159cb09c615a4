//! The injection itself: stops a thread, makes it call `userfaultfd(2)` and `close(2)`, puts it
//! back.
//!
//! Runs in the helper process after a fork: nothing here may allocate, lock or panic.
//!
//! How the thread is put back: it was first stopped in the kernel's signal work, possibly out of
//! a system call that the stop interrupted (`rax` is then one of the kernel's restart codes and
//! `orig_rax` the call's number). Its registers are restored in another stop of the same kind,
//! where the kernel restarts the interrupted call by itself, as if nothing had happened;
//! restored at a system call's exit they would show the restart code to the program.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_void, user_regs_struct};

use super::super::kernel::UFFD_USER_MODE_ONLY;

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_O_SUSPEND_SECCOMP: c_int = 1 << 21;
const SYSCALL_STOP: c_int = libc::SIGTRAP | 0x80;
/// The code segment of 64-bit user code.
const USER_CS_64: u64 = 0x33;
/// How long to wait for the thread to stop at first. Afterwards there is no limit: a thread with
/// foreign registers is never left alone.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// How often to look for a moment at which the thread is in a system call.
const ATTEMPTS: usize = 5;

/// What to do; all that the helper needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The thread.
    pub tid: i32,
    /// A pidfd of its process.
    pub pidfd: RawFd,
    /// The address of a `syscall` instruction in it.
    pub syscall_address: u64,
    /// Suspend its seccomp filter meanwhile.
    pub suspend_seccomp: bool,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Where it failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Step { $($(#[$doc])* $name,)* }
        impl Step {
            /// The step of a number.
            pub fn from_number(number: u32) -> Step {
                [$(Step::$name),*].get(number as usize).copied().unwrap_or(Step::Helper)
            }
        }
    };
}

steps! {
    /// The helper itself.
    Helper,
    /// Attaching.
    Seize,
    /// Asking it to stop.
    Interrupt,
    /// It did not stop in time.
    Timeout,
    /// The thread or its process ended.
    Gone,
    /// It runs code of another kind than 64-bit.
    Foreign,
    /// Reading or writing its registers or signal mask.
    Registers,
    /// Letting it run to the next stop.
    Continue,
    /// Its call of userfaultfd.
    Userfaultfd,
    /// Taking the descriptor.
    Take,
    /// Its call of close.
    Close,
}

/// A step and its error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// Its errno.
    pub errno: i32,
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Carries out the plan; returns the descriptor in this process's table. In every case the thread
/// goes on as if nothing had happened.
pub fn run(plan: &Plan) -> Result<RawFd, Failure> {
    let options =
        libc::PTRACE_O_TRACESYSGOOD | if plan.suspend_seccomp { PTRACE_O_SUSPEND_SECCOMP } else { 0 };
    let thread = Thread { tid: plan.tid };
    thread.request(libc::PTRACE_SEIZE, 0, options as usize, Step::Seize)?;
    let mut saved = thread.stop_somewhere()?;
    if saved.cs != USER_CS_64 {
        thread.detach();
        return Err(Failure { step: Step::Foreign, errno: libc::EINVAL });
    }
    let mask = thread.signal_mask().inspect_err(|_| thread.detach())?;
    // With all signals blocked no handler can run on top of the injected call. (SIGKILL ends the
    // thread, SIGSTOP stops it: neither looks at the registers.)
    thread.set_signal_mask(u64::MAX).inspect_err(|_| thread.detach())?;
    let result = inject(&thread, plan, &saved);
    let restored = thread.put_back(&mut saved, mask);
    let fd = result?;
    restored.map(|()| fd)
}

fn inject(thread: &Thread, plan: &Plan, saved: &user_regs_struct) -> Result<RawFd, Failure> {
    let flags = libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64 | UFFD_USER_MODE_ONLY;
    let made = thread.call(plan, saved, libc::SYS_userfaultfd, flags)?;
    if made < 0 {
        return Err(Failure { step: Step::Userfaultfd, errno: -made as i32 });
    }
    // SAFETY: plain numbers in, a new close-on-exec descriptor of this process out.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, plan.pidfd, made as c_int, 0) };
    let take_errno = errno();
    let closed = thread.call(plan, saved, libc::SYS_close, made as u64);
    if taken < 0 {
        return Err(Failure { step: Step::Take, errno: take_errno });
    }
    match closed {
        Ok(0) => Ok(taken as RawFd),
        other => {
            // SAFETY: closes the descriptor taken above, which nobody else knows of.
            unsafe { libc::close(taken as RawFd) };
            Err(other.err().unwrap_or(Failure { step: Step::Close, errno: libc::EBADF }))
        }
    }
}

/// A traced thread.
struct Thread {
    tid: i32,
}

/// How a thread stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// As asked, or in a group stop: in the kernel's signal work.
    Asked { group: bool },
    /// At the entry or exit of a system call.
    Syscall,
    /// About to receive a signal.
    Signal(c_int),
    /// Anything else.
    Other,
}

impl Thread {
    fn request(
        &self,
        request: libc::c_uint,
        address: usize,
        data: usize,
        step: Step,
    ) -> Result<c_long, Failure> {
        // SAFETY: callers pass numbers, or pointers to locals of the size that the request reads
        // or writes. ptrace acts on a thread that this process traces, or fails.
        let result = unsafe { libc::ptrace(request, self.tid, address as *mut c_void, data as *mut c_void) };
        if result >= 0 { Ok(result) } else { Err(Failure { step, errno: errno() }) }
    }

    /// Waits for the next stop; `limit` is from now.
    fn wait(&self, limit: Option<Duration>) -> Result<Stop, Failure> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let mut status: c_int = 0;
            let options = libc::__WALL | if deadline.is_some() { libc::WNOHANG } else { 0 };
            // SAFETY: waits for a thread that this process traces; the status is a local.
            let waited = unsafe { libc::waitpid(self.tid, &mut status, options) };
            if waited < 0 && errno() == libc::EINTR {
                continue;
            }
            if waited < 0 {
                return Err(Failure { step: Step::Gone, errno: errno() });
            }
            if waited == 0 {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Err(Failure { step: Step::Timeout, errno: libc::ETIMEDOUT });
                }
                std::thread::sleep(Duration::from_micros(20));
                continue;
            }
            if !libc::WIFSTOPPED(status) {
                return Err(Failure { step: Step::Gone, errno: libc::ESRCH });
            }
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            return Ok(match event {
                libc::PTRACE_EVENT_STOP => Stop::Asked { group: signal != libc::SIGTRAP },
                0 if signal == SYSCALL_STOP => Stop::Syscall,
                0 => Stop::Signal(signal),
                _ => Stop::Other,
            });
        }
    }

    /// Lets the thread go on from `stop`, passing on the signal that it was about to receive.
    fn go_on(&self, request: libc::c_uint, stop: Stop) -> Result<(), Failure> {
        let signal = if let Stop::Signal(signal) = stop { signal as usize } else { 0 };
        self.request(request, 0, signal, Step::Continue).map(drop)
    }

    /// Asks the thread to stop and waits for it; returns whether in a group stop.
    fn interrupt(&self, limit: Option<Duration>) -> Result<bool, Failure> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0, Step::Interrupt)?;
        loop {
            match self.wait(limit)? {
                Stop::Asked { group } => return Ok(group),
                other => self.go_on(libc::PTRACE_CONT, other)?,
            }
        }
    }

    /// Stops the thread, if possible inside a system call: stopped in user code it might be in a
    /// restartable sequence, which the kernel would no longer know to abort.
    fn stop_somewhere(&self) -> Result<user_regs_struct, Failure> {
        for attempt in 1.. {
            let group = self.interrupt(Some(STOP_LIMIT))?;
            let registers = self.registers()?;
            if registers.orig_rax as i64 >= 0 || group || attempt >= ATTEMPTS {
                return Ok(registers);
            }
            self.request(libc::PTRACE_CONT, 0, 0, Step::Continue)?;
            std::thread::sleep(Duration::from_micros(500));
        }
        Err(Failure { step: Step::Timeout, errno: libc::ETIMEDOUT })
    }

    /// Makes the thread execute one system call; returns its result. The thread stays at the
    /// call's exit.
    fn call(
        &self,
        plan: &Plan,
        saved: &user_regs_struct,
        number: c_long,
        argument: u64,
    ) -> Result<i64, Failure> {
        let mut registers = *saved;
        registers.rip = plan.syscall_address;
        registers.rax = number as u64;
        // Not out of a system call: the kernel must not restart anything with these registers.
        registers.orig_rax = u64::MAX;
        registers.rdi = argument;
        self.set_registers(&mut registers)?;
        for _ in ["entry", "exit"] {
            let mut stop = Stop::Other;
            while stop != Stop::Syscall {
                self.go_on(libc::PTRACE_SYSCALL, stop)?;
                stop = self.wait(None)?;
            }
        }
        Ok(self.registers()?.rax as i64)
    }

    fn put_back(&self, saved: &mut user_regs_struct, mask: u64) -> Result<(), Failure> {
        self.interrupt_from_stop()?;
        self.set_registers(saved)?;
        self.set_signal_mask(mask)?;
        self.detach();
        Ok(())
    }

    /// From a system call's exit to a stop in the kernel's signal work, without executing any
    /// instruction of the program in between.
    fn interrupt_from_stop(&self) -> Result<(), Failure> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0, Step::Interrupt)?;
        let mut stop = Stop::Other;
        loop {
            self.go_on(libc::PTRACE_CONT, stop)?;
            stop = self.wait(None)?;
            if matches!(stop, Stop::Asked { .. }) {
                return Ok(());
            }
        }
    }

    fn registers(&self) -> Result<user_regs_struct, Failure> {
        // SAFETY: the struct is plain numbers, for which all zeros is a value.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, &raw mut registers as usize, Step::Registers)?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &mut user_regs_struct) -> Result<(), Failure> {
        self.request(libc::PTRACE_SETREGS, 0, &raw mut *registers as usize, Step::Registers).map(drop)
    }

    fn signal_mask(&self) -> Result<u64, Failure> {
        let mut mask = 0u64;
        self.request(PTRACE_GETSIGMASK, 8, &raw mut mask as usize, Step::Registers)?;
        Ok(mask)
    }

    fn set_signal_mask(&self, mask: u64) -> Result<(), Failure> {
        let mut mask = mask;
        self.request(PTRACE_SETSIGMASK, 8, &raw mut mask as usize, Step::Registers).map(drop)
    }

    fn detach(&self) {
        // Fails only if the thread is gone.
        let _ = self.request(libc::PTRACE_DETACH, 0, 0, Step::Continue);
    }
}
