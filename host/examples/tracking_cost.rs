//! What dirty tracking costs here: milliseconds per GiB of clean memory, and for 10,000 random
//! dirty pages, with one and two scan threads.
//!
//! `cargo run --release -p romulus-host --example tracking_cost -- [--json] [--huge] [--runs N] [GiB ...]`
//!
//! The tracked process is this program again. `--huge` lets the kernel back the memory with
//! transparent huge pages.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use romulus_checkpoint::{Extent, PageIndex};
use romulus_host::tracking::{self, DirtyRange, DirtyTracker, TrackingOptions};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

type Failure = Box<dyn std::error::Error>;

const PAGE: usize = 4096;
const DIRTY_PAGES: u64 = 10_000;

fn main() -> Result<(), Failure> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--as-target") {
        return be_target(&arguments);
    }
    let json = take_flag(&mut arguments, "--json");
    let huge = take_flag(&mut arguments, "--huge");
    let runs = match arguments.iter().position(|argument| argument == "--runs") {
        Some(at) if at + 1 < arguments.len() => {
            arguments.remove(at);
            arguments.remove(at).parse()?
        }
        _ => 20,
    };
    let mut sizes: Vec<u64> = arguments.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
    if sizes.is_empty() {
        sizes = vec![1, 2];
    }
    let mut rows = Vec::new();
    for gib in sizes {
        rows.extend(measure(gib, huge, runs)?);
    }
    print(&rows, json)
}

fn take_flag(arguments: &mut Vec<String>, flag: &str) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| argument != flag);
    arguments.len() < before
}

struct Row {
    gib: u64,
    threads: usize,
    start_ms: f64,
    clean_ms: f64,
    clean_running_ms: f64,
    dirty_ms: f64,
    dirty_running_ms: f64,
    reported_pages: u64,
}

fn measure(gib: u64, huge: bool, runs: usize) -> Result<Vec<Row>, Failure> {
    let pages = (gib << 30) / PAGE as u64;
    let available = romulus_host::memory::available_bytes();
    if gib << 30 > available {
        return Err(format!("{gib} GiB asked for, {} MiB available", available >> 20).into());
    }
    let mut target = Target::start(pages, huge)?;
    let range = DirtyRange { address: target.address, pages, first: PageIndex(0) };
    let mut rows = Vec::new();
    for threads in [1, 2] {
        let options = TrackingOptions { threads, ..TrackingOptions::default() };
        let mut tracker = tracking::open(target.child.id(), &[range], &options)?;
        let began = Instant::now();
        tracker.start()?;
        let start_ms = began.elapsed().as_secs_f64() * 1e3;
        let mut row = Row {
            gib,
            threads,
            start_ms,
            clean_ms: 0.0,
            clean_running_ms: 0.0,
            dirty_ms: 0.0,
            dirty_running_ms: 0.0,
            reported_pages: 0,
        };
        row.clean_ms = median(runs, |_| collect(&mut *tracker, true, &mut Vec::new()))?;
        row.clean_running_ms = median(runs, |_| collect(&mut *tracker, false, &mut Vec::new()))?;
        let mut dirty = Vec::new();
        for stopped in [true, false] {
            let time = median(runs, |run| {
                target.ask(&format!("{run} {DIRTY_PAGES}"))?;
                dirty.clear();
                collect(&mut *tracker, stopped, &mut dirty)
            })?;
            *(if stopped { &mut row.dirty_ms } else { &mut row.dirty_running_ms }) = time;
        }
        row.reported_pages = dirty.iter().map(|extent| extent.pages).sum();
        rows.push(row);
    }
    Ok(rows)
}

fn collect(tracker: &mut dyn DirtyTracker, stopped: bool, dirty: &mut Vec<Extent>) -> Result<f64, Failure> {
    let began = Instant::now();
    if stopped {
        tracker.collect_stopped(dirty)?
    } else {
        tracker.collect_running(dirty)?
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn median(runs: usize, mut run: impl FnMut(usize) -> Result<f64, Failure>) -> Result<f64, Failure> {
    let mut times = (0..runs.max(1)).map(&mut run).collect::<Result<Vec<f64>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn print(rows: &[Row], json: bool) -> Result<(), Failure> {
    if !json {
        println!("medians in ms; dirty: {DIRTY_PAGES} random writes");
        println!(
            "GiB threads   start  clean/GiB  clean  clean(running)  dirty  dirty(running)  pages reported"
        );
        for row in rows {
            println!(
                "{:3} {:7} {:7.1} {:10.3} {:6.2} {:15.2} {:6.2} {:15.2} {:15}",
                row.gib,
                row.threads,
                row.start_ms,
                row.clean_ms / row.gib as f64,
                row.clean_ms,
                row.clean_running_ms,
                row.dirty_ms,
                row.dirty_running_ms,
                row.reported_pages
            );
        }
        return Ok(());
    }
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "memory_gib": row.gib,
                "threads": row.threads,
                "start_ms": row.start_ms,
                "clean_ms": row.clean_ms,
                "clean_ms_per_gib": row.clean_ms / row.gib as f64,
                "clean_running_ms": row.clean_running_ms,
                "dirty_writes": DIRTY_PAGES,
                "dirty_ms": row.dirty_ms,
                "dirty_running_ms": row.dirty_running_ms,
                "reported_pages": row.reported_pages,
            })
        })
        .collect();
    println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "tracking_cost": rows }))?);
    Ok(())
}

struct Target {
    child: Child,
    answers: BufReader<ChildStdout>,
    address: u64,
}

impl Target {
    fn start(pages: u64, huge: bool) -> Result<Self, Failure> {
        let file = rustix::fs::memfd_create("tracking-cost", MemfdFlags::empty())?;
        rustix::fs::ftruncate(&file, pages * PAGE as u64)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--as-target", &file.as_raw_fd().to_string(), &pages.to_string(), &huge.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut target = Target { child, answers, address: 0 };
        target.address = target.receive()?.parse()?;
        Ok(target)
    }

    fn ask(&mut self, question: &str) -> Result<String, Failure> {
        writeln!(self.child.stdin.as_mut().ok_or("no pipe")?, "{question}")?;
        self.receive()
    }

    fn receive(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a number of random pages for each line `SEED COUNT` on standard input.
fn be_target(arguments: &[String]) -> Result<(), Failure> {
    let [_, fd, pages, huge] = arguments else { return Err("arguments".into()) };
    let (fd, pages): (i32, usize) = (fd.parse()?, pages.parse()?);
    // SAFETY: the descriptor was inherited for this purpose and stays open.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    // SAFETY: a new mapping at an address of the kernel's choice; advice about it changes nothing
    // that Rust could see.
    let base = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let base =
            rustix::mm::mmap(std::ptr::null_mut(), pages * PAGE, protection, MapFlags::SHARED, file, 0)?;
        if huge == "true" {
            rustix::mm::madvise(base, pages * PAGE, Advice::LinuxHugepage)?;
        }
        base.cast::<u8>()
    };
    let write = |page: usize| {
        // SAFETY: inside the mapping, which no reference points into.
        unsafe { base.add(page % pages * PAGE).write_volatile(1) }
    };
    (0..pages).for_each(write);
    println!("{}", base as u64);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (seed, count) = line.split_once(' ').ok_or("SEED COUNT")?;
        let mut state = seed.parse::<u64>()?.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..count.parse::<u64>()? {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            write(state as usize);
        }
        println!("done");
    }
    Ok(())
}
