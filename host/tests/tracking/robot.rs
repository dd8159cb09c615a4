//! The process that is tracked: this test program again, which obeys commands on its standard
//! input and answers each with a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use romulus_checkpoint::PageIndex;
use romulus_host::tracking::DirtyRange;

pub const PAGE: usize = 4096;
const ROLE: &str = "--role=";

/// Starts this program again in a role of its own.
pub fn start_role(role: &str, arguments: &str) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("{ROLE}{role}"), arguments])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    Process { child, stdin, stdout }
}

/// The role and its arguments, in a process that has one.
pub fn role() -> Option<(String, String)> {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next()?.strip_prefix(ROLE)?.to_owned();
    Some((role, arguments.next().unwrap_or_default()))
}

/// Prints an answer.
pub fn answer(text: &str) {
    println!("{text}");
}

pub struct Process {
    pub child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn send(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    pub fn receive(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the process ended");
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.receive()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the main thread is blocked in the system call of this number.
    pub fn wait_for_syscall(&self, number: i64) {
        let path = format!("/proc/{}/syscall", self.pid());
        while !std::fs::read_to_string(&path).unwrap().starts_with(&format!("{number} ")) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A robot with a shared mapping of `pages` pages, and the file behind it.
pub struct Robot {
    pub process: Process,
    pub memory: File,
    pub address: u64,
    pub pages: u64,
}

impl Robot {
    pub fn start(pages: u64) -> Self {
        // SAFETY: a plain call; the descriptor is new and owned by the file alone. Without
        // close-on-exec, so that the robot inherits it.
        let memory = unsafe {
            let fd = libc::memfd_create(c"romulus-test".as_ptr(), 0);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        };
        memory.set_len(pages * PAGE as u64).unwrap();
        let mut process = start_role("robot", &format!("{} {pages}", memory.as_raw_fd()));
        let address = process.receive().parse().unwrap();
        Robot { process, memory, address, pages }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.process.ask(command)
    }

    pub fn range(&self) -> DirtyRange {
        DirtyRange { address: self.address, pages: self.pages, first: PageIndex(0) }
    }

    /// Whether the kernel has the mapping registered for write protection.
    pub fn is_protected(&self) -> bool {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid())).unwrap();
        let mapping = smaps.split("VmFlags:").find(|text| text.contains("romulus-test"));
        assert!(mapping.is_some());
        smaps.lines().filter(|line| line.starts_with("VmFlags:")).any(|line| line.contains(" uw"))
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

/// The robot's life.
pub fn obey(arguments: &str) {
    let (fd, pages) = arguments.split_once(' ').unwrap();
    let (fd, pages): (i32, usize) = (fd.parse().unwrap(), pages.parse().unwrap());
    // SAFETY: a new mapping of the inherited descriptor.
    let base = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), pages * PAGE, protection, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(base, libc::MAP_FAILED);
    let memory = Mapped(base.cast(), pages);
    answer(&format!("{}", base as u64));
    let halt = Arc::new(AtomicBool::new(false));
    let mut hammers = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let numbers: Vec<u64> = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
        match word {
            "write" => numbers.iter().for_each(|page| memory.increment(*page as usize)),
            "look" => assert_eq!(memory.value(numbers[0] as usize).load(Ordering::Relaxed), 0),
            "read-file" => memory.read_file(numbers[0] as usize),
            "hammer" => {
                for seed in 0..numbers[0] {
                    let halt = Arc::clone(&halt);
                    hammers.push(std::thread::spawn(move || memory.hammer(seed, &halt)));
                }
            }
            "halt" => {
                halt.store(true, Ordering::Relaxed);
                hammers.drain(..).for_each(|hammer| hammer.join().unwrap());
            }
            "sleep" => {
                answer(&format!("slept {}", sleep_ms(numbers[0])));
                continue;
            }
            "poll" => {
                answer(&format!("polled {}", poll(numbers[0] as i32)));
                continue;
            }
            "compute" => {
                answer("computing");
                answer(&format!("computed {}", compute(numbers[0])));
                continue;
            }
            "signals" => signal_main_thread(&halt, &mut hammers),
            "seccomp" => forbid_userfaultfd(),
            _ => panic!("unknown command {line}"),
        }
        answer("done");
    }
}

#[derive(Clone, Copy)]
struct Mapped(*mut u8, usize);

// SAFETY: the mapping lives as long as the process and is only touched through atomics.
unsafe impl Send for Mapped {}

impl Mapped {
    fn value(&self, page: usize) -> &AtomicU64 {
        assert!(page < self.1);
        // SAFETY: inside the mapping, aligned, never accessed otherwise.
        unsafe { &*self.0.add(page * PAGE).cast::<AtomicU64>() }
    }

    fn increment(&self, page: usize) {
        self.value(page).fetch_add(1, Ordering::Relaxed);
    }

    fn hammer(self, seed: u64, halt: &AtomicBool) {
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed + 1);
        while !halt.load(Ordering::Relaxed) {
            // Bursts, so that only part of the pages is dirty at any scan.
            for _ in 0..32 {
                self.increment(xorshift(&mut state) as usize % self.1);
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }

    fn read_file(&self, page: usize) {
        assert!(page < self.1);
        let file = File::open("/proc/self/exe").unwrap();
        // SAFETY: the page is inside the mapping, which nothing refers to as Rust memory.
        let count = unsafe { libc::read(file.as_raw_fd(), self.0.add(page * PAGE).cast(), PAGE) };
        assert_eq!(count, PAGE as isize);
    }
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// What [`Robot`] answers to `compute`, calculated without being disturbed.
pub fn compute(rounds: u64) -> u64 {
    let mut state = 88_172_645_463_325_252;
    (0..rounds).fold(0, |sum: u64, _| sum.wrapping_mul(31).wrapping_add(xorshift(&mut state)))
}

/// The error number of one uninterrupted sleep (0: slept to the end).
fn sleep_ms(milliseconds: u64) -> i32 {
    let time = libc::timespec {
        tv_sec: (milliseconds / 1000) as i64,
        tv_nsec: (milliseconds % 1000 * 1_000_000) as i64,
    };
    // SAFETY: the time is a local; no remaining time is asked for.
    unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &time, std::ptr::null_mut()) }
}

/// The result of one `ppoll` without time limit.
fn poll(fd: i32) -> i32 {
    let mut polled = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, a local.
    unsafe { libc::ppoll(&mut polled, 1, std::ptr::null(), std::ptr::null()) }
}

/// Sends signals to this thread without end; its handler does work of its own.
fn signal_main_thread(halt: &Arc<AtomicBool>, threads: &mut Vec<std::thread::JoinHandle<()>>) {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn count(_signal: i32) {
        SEEN.fetch_add(compute(20) & 1, Ordering::Relaxed);
    }
    let handler = count as extern "C" fn(i32);
    // SAFETY: the handler only computes and uses an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let halt = Arc::clone(halt);
    threads.push(std::thread::spawn(move || {
        let pid = std::process::id() as i32;
        while !halt.load(Ordering::Relaxed) {
            // SAFETY: signals the main thread of this very process.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1) };
        }
    }));
}

/// A seccomp filter that kills this process for calling userfaultfd.
fn forbid_userfaultfd() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_userfaultfd as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter are locals that outlive the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0), 0);
    }
}
