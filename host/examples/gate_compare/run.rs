//! One run: a guest that sends as fast as it may, marks and releases, and a client that checks what it gets.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use romulus_host::gate::{INLET_QUEUE_PACKETS, Tap};

use crate::gate_lab::{INTERVAL, cpu_s};
use crate::load::Load;
use crate::way::{Kind, Way};
use crate::world::{CLIENT_QUEUE_PACKETS, World, buffer};

/// The guest is never further ahead of what the way has taken, so that no queue in between is full.
const MOST_UNTAKEN: u64 = INLET_QUEUE_PACKETS as u64 / 2;
/// Nor of what the client has: what a release lets go at once then has room in the client's queue.
const MOST_UNDERWAY_PACKETS: u64 = CLIENT_QUEUE_PACKETS as u64 - 2 * BATCH;
const MOST_UNDERWAY_BYTES: u64 = 96 << 20;
/// Packets between two looks whether to stand still.
const BATCH: u64 = 32;
const GUEST_WAITS: Duration = Duration::from_micros(200);
const CLIENT_LOOKS: Duration = Duration::from_millis(20);
/// What has not arrived after so long without any arrival is lost.
const SILENCE: Duration = Duration::from_secs(3);
/// While boundaries are looked at.
const FEW_UNDERWAY_PACKETS: u64 = 256;
/// Before the client is asked again whether it has everything.
const SETTLING: Duration = Duration::from_micros(200);

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as it goes for a time, with a mark at each interval.
    Rate(Duration),
    /// So many marks; each is released at once, and the next follows when the client has what it covers and
    /// found nothing more.
    Boundaries(u64),
}

/// What came of a run.
pub struct Outcome {
    pub packets: u64,
    pub seconds: f64,
    /// CPU time of this process: guest, way and client.
    pub own_cpu_s: f64,
    /// CPU time of everything on this machine.
    pub all_cpu_s: f64,
    pub marks_us: Histogram<u64>,
    pub releases_us: Histogram<u64>,
    pub lost: u64,
    pub out_of_order: u64,
    /// Packets that left with a release before that of their mark.
    pub early: u64,
    /// Marks, and those of which the client had all before the next one; with [`Pace::Boundaries`].
    pub epochs: u64,
    pub epochs_checked: u64,
    /// Frames that arrived in another length.
    pub cut: u64,
}

impl Outcome {
    pub fn in_short(&self) -> String {
        let (packets, seconds) = (self.packets as f64, self.seconds);
        format!("{:.0} packets/s, {:.1} us of CPU each", packets / seconds, self.own_cpu_s * 1e6 / packets)
    }
}

#[derive(Default)]
struct Shared {
    stand_still: AtomicBool,
    runs: Mutex<()>,
    goes_on: Condvar,
    guest_over: AtomicBool,
    client_over: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    /// Packets before this one may leave.
    allowed: AtomicU64,
    /// The `allowed` at which the client had that many, and found nothing more.
    settled: AtomicU64,
}

/// What only the client counts.
#[derive(Default)]
struct Seen {
    out_of_order: u64,
    early: u64,
    cut: u64,
}

/// Measures a way with a load; or why it cannot be set up.
pub fn run(kind: Kind, load: Load, pace: Pace) -> Result<Outcome, String> {
    let world = World::new();
    let way = kind.set_up()?;
    let shared = Shared::default();
    let most_underway = match pace {
        Pace::Rate(_) => MOST_UNDERWAY_PACKETS.min(MOST_UNDERWAY_BYTES / load.frame().len() as u64),
        Pace::Boundaries(_) => FEW_UNDERWAY_PACKETS,
    };
    if !kind.holds() {
        shared.allowed.store(u64::MAX, Ordering::SeqCst);
    }
    let (begun, own_begun, all_begun) = (Instant::now(), cpu_s(libc::RUSAGE_SELF), machine_cpu_s());
    let mut outcome = std::thread::scope(|scope| {
        let guest = scope.spawn(|| send(&world.guest, load, &shared, &*way, most_underway));
        let client = scope.spawn(|| receive(&world, load, &shared));
        let mut outcome = keep_time(&*way, kind.holds(), &shared, pace, guest);
        shared.client_over.store(true, Ordering::SeqCst);
        let seen = client.join().expect("the client");
        (outcome.out_of_order, outcome.early, outcome.cut) = (seen.out_of_order, seen.early, seen.cut);
        outcome
    });
    outcome.own_cpu_s = cpu_s(libc::RUSAGE_SELF) - own_begun;
    outcome.all_cpu_s = machine_cpu_s() - all_begun;
    outcome.packets = shared.received.load(Ordering::SeqCst);
    outcome.lost = shared.sent.load(Ordering::SeqCst).saturating_sub(outcome.packets);
    if outcome.lost > 0 {
        // Of what was waited for in vain.
        outcome.seconds = (begun.elapsed().saturating_sub(SILENCE)).as_secs_f64();
    }
    Ok(outcome)
}

/// Marks and releases, until everything has arrived or is lost.
fn keep_time(
    way: &dyn Way,
    holds: bool,
    shared: &Shared,
    pace: Pace,
    guest: std::thread::ScopedJoinHandle<'_, ()>,
) -> Outcome {
    let begun = Instant::now();
    let mut turns = Turns { way, shared, mark: 0, boundary: 0, outcome: empty() };
    match pace {
        Pace::Rate(length) if holds => {
            while begun.elapsed() < length {
                std::thread::sleep(INTERVAL);
                turns.release();
                turns.mark();
            }
        }
        Pace::Rate(length) => std::thread::sleep(length),
        Pace::Boundaries(marks) => (0..marks).for_each(|turn| turns.boundary(turn)),
    }
    shared.guest_over.store(true, Ordering::SeqCst);
    guest.join().expect("the guest");
    if holds {
        turns.release();
        turns.mark();
        turns.release();
    }
    let (mut received, mut last) = (0, Instant::now());
    while received < shared.sent.load(Ordering::SeqCst) && last.elapsed() < SILENCE {
        std::thread::sleep(Duration::from_millis(1));
        let now = shared.received.load(Ordering::SeqCst);
        if now != received {
            (received, last) = (now, Instant::now());
        }
    }
    Outcome { seconds: begun.elapsed().as_secs_f64(), ..turns.outcome }
}

fn empty() -> Outcome {
    let histogram = || Histogram::new(3).expect("fixed precision is good");
    Outcome {
        packets: 0,
        seconds: 0.0,
        own_cpu_s: 0.0,
        all_cpu_s: 0.0,
        marks_us: histogram(),
        releases_us: histogram(),
        lost: 0,
        out_of_order: 0,
        early: 0,
        epochs: 0,
        epochs_checked: 0,
        cut: 0,
    }
}

struct Turns<'a> {
    way: &'a dyn Way,
    shared: &'a Shared,
    mark: u64,
    /// Packets before the mark.
    boundary: u64,
    outcome: Outcome,
}

impl Turns<'_> {
    fn mark(&mut self) {
        // The guest stands still.
        self.shared.stand_still.store(true, Ordering::SeqCst);
        let runs = self.shared.runs.lock().expect("no thread panics");
        self.boundary = self.shared.sent.load(Ordering::SeqCst);
        self.mark += 1;
        let begun = Instant::now();
        self.way.mark(self.mark);
        self.outcome.marks_us.record(begun.elapsed().as_micros() as u64).expect("it grows");
        self.shared.stand_still.store(false, Ordering::SeqCst);
        drop(runs);
        self.shared.goes_on.notify_all();
    }

    fn release(&mut self) {
        if self.mark == 0 {
            return;
        }
        self.shared.allowed.store(self.boundary, Ordering::SeqCst);
        let begun = Instant::now();
        self.way.release(self.mark);
        self.outcome.releases_us.record(begun.elapsed().as_micros() as u64).expect("it grows");
    }

    /// A mark in the middle of the guest's sending, its release, and a look at what the client gets.
    fn boundary(&mut self, turn: u64) {
        let more = self.boundary + 1 + BATCH * (turn % 5);
        wait_until(|| self.shared.sent.load(Ordering::SeqCst) >= more);
        self.mark();
        self.release();
        self.outcome.epochs += 1;
        let settled = || self.shared.settled.load(Ordering::SeqCst) == self.boundary;
        self.outcome.epochs_checked += u64::from(wait_until(settled));
    }
}

/// Whether it came true.
fn wait_until(condition: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() >= SILENCE {
            return false;
        }
        std::thread::sleep(SETTLING);
    }
    true
}

impl Shared {
    /// Where the guest runs; not while it is to stand still.
    fn guest_runs(&self) -> MutexGuard<'_, ()> {
        let runs = self.runs.lock().expect("no thread panics");
        let stands = |_: &mut ()| self.stand_still.load(Ordering::SeqCst);
        self.goes_on.wait_while(runs, stands).expect("no thread panics")
    }
}

fn send(tap: &Tap, load: Load, shared: &Shared, way: &dyn Way, most_underway: u64) {
    let mut frame = load.frame();
    let mut sent = 0;
    while !shared.guest_over.load(Ordering::SeqCst) {
        let underway = sent - shared.received.load(Ordering::SeqCst).min(sent);
        if underway >= most_underway || sent - way.taken(sent).min(sent) >= MOST_UNTAKEN {
            std::thread::sleep(GUEST_WAITS);
            continue;
        }
        let runs = shared.guest_runs();
        for _ in 0..BATCH {
            load.set_number(&mut frame, sent);
            if !tap.write(&frame).expect("sending") {
                break;
            }
            sent += 1;
        }
        shared.sent.store(sent, Ordering::SeqCst);
        drop(runs);
    }
}

fn receive(world: &World, load: Load, shared: &Shared) -> Seen {
    let (mut seen, mut room) = (Seen::default(), buffer());
    let whole = load.frame().len();
    let (mut received, mut next) = (0, 0);
    while !shared.client_over.load(Ordering::SeqCst) {
        let allowed = shared.allowed.load(Ordering::SeqCst);
        let Some((number, length)) = world.receive(load, &mut room, Duration::ZERO) else {
            if received >= allowed {
                shared.settled.store(allowed, Ordering::SeqCst);
            }
            world.wait(CLIENT_LOOKS);
            continue;
        };
        // Read after the packet: what left in time was allowed before.
        seen.early += u64::from(number >= shared.allowed.load(Ordering::SeqCst));
        seen.out_of_order += u64::from(number < next);
        seen.cut += u64::from(length != whole);
        next = next.max(number + 1);
        received += 1;
        shared.received.store(received, Ordering::SeqCst);
    }
    seen
}

/// CPU time of everything that ran on this machine, in seconds.
fn machine_cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("proc is mounted");
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq: not those that wait.
    let busy = fields.take(7).enumerate().filter(|(place, _)| !matches!(place, 3 | 4));
    let ticks: u64 = busy.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum();
    // SAFETY: asks for a number of the system's.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}
