//! How close replication comes to what plain `sendmsg` and `recv` move over as many streams on this
//! machine, in this very run:
//! `cargo run --release -p romulus-checkpoint --example steady_load -- [--gib 4] [--streams 2]
//! [--epoch-mib 50] [--interval-ms 1] [--pattern hot|sequential] [--seconds 5] [--rounds 3]
//! [--capture staged|direct] [--send-now on|off] [--staging-mib 64] [--copy-workers 0]
//! [--congestion NAME|system]`
//!
//! Each round measures with the same memory: plain sockets into fresh memory beside the initial
//! synchronization of a guest (whose arena is fresh too), and plain sockets into populated memory,
//! before and after epochs of a steady load that follow each other as fast as they commit. In each
//! epoch the guest writes exactly `--epoch-mib` different pages, scattered over twice as many
//! (`hot`) or new ones each time (`sequential`), and is paused only when it has. The plain program
//! runs with the system's congestion control, as a program that sets nothing has it, and with the
//! fabric's; with that also from and to scattered pages, as replication does. The ratios are what counts: absolute figures of a shared machine vary.

mod cpu;
mod options;
mod plain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu::CpuTimes;
use options::{GIB, Options};
use romulus_checkpoint::PAGE_BYTES;
use romulus_checkpoint::arbiter::Arbiter;
use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::driver::anonymous_mapping;
use romulus_checkpoint::driver::backup::{
    BackupDriver, BackupHandle, BackupOptions, BackupParts, InProcessArenas,
};
use romulus_checkpoint::driver::primary::{
    CaptureMode, PrimaryDriver, PrimaryHandle, PrimaryOptions, PrimaryParts, PrimaryStatus,
};
use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::metrics::Phase;
use romulus_checkpoint::synthetic::{
    Fill, Pace, Pattern, SyntheticGuest, SyntheticOptions, SyntheticStandby,
};
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Fabric, Memory};

use plain::{Places, Plain};

/// Both drivers, protecting.
struct Lab {
    primary: PrimaryHandle,
    backup: BackupHandle,
    _directory: tempfile::TempDir,
}

fn start(options: &Options, guest: SyntheticGuest, guest_options: &SyntheticOptions) -> Lab {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let arbiter: Arc<dyn Arbiter> = Arc::new(FileArbiter::open(directory.path()).expect("an arbiter"));
    let congestion_control = options.congestion.clone();
    let config = TcpConfig { streams: options.streams, congestion_control, ..TcpConfig::default() };
    let fabric: Arc<dyn Fabric> = Arc::new(TcpFabric::new(config));
    let mut backup_options = BackupOptions::new("beta", SocketAddr::from(([127, 0, 0, 1], 0)), u64::MAX);
    backup_options.machine.suspect_after = Duration::from_secs(60);
    let standby = Box::new(SyntheticStandby::new(guest_options));
    let arenas = Box::new(InProcessArenas { limit_bytes: u64::MAX });
    let parts = BackupParts::new(Arc::clone(&fabric), standby, arenas, Arc::clone(&arbiter));
    let backup = BackupDriver::spawn(backup_options, parts).expect("the backup starts");
    let mut driver = PrimaryOptions::new("alpha", backup.local_address(), &guest).expect("random numbers");
    driver.machine.interval = Duration::from_millis(options.interval_ms);
    driver.machine.suspect_after = Duration::from_secs(50);
    driver.machine.sync_target_pages = 2 * options.epoch_pages();
    driver.spares = 4 * options.epoch_pages();
    driver.machine.low_water_spares = 2 * options.epoch_pages();
    driver.staging_bytes = options.staging_mib << 20;
    driver.copy_workers = options.copy_workers;
    driver.send_now_from_pages = Some(if options.send_now { 0 } else { u64::MAX });
    driver.capture = if options.direct { CaptureMode::Direct } else { CaptureMode::Staged };
    let parts = PrimaryParts::new(Box::new(guest), arbiter, fabric);
    let primary = PrimaryDriver::spawn(driver, parts).expect("the primary starts");
    Lab { primary, backup, _directory: directory }
}

/// Bytes a second of the first round, which sends all pages.
fn measure_sync(lab: &Lab) -> f64 {
    let mut begun = None;
    loop {
        let sync = lab.primary.sync_progress();
        if sync.round >= 1 && begun.is_none() {
            begun = Some((Instant::now(), sync.pages_done));
        }
        if let Some((begun, from)) = begun
            && (sync.round > 1 || sync.pages_done == sync.pages_total)
        {
            let pages = lab.primary.status().sync.pages_total.max(sync.pages_total) - from;
            return (pages * PAGE_BYTES) as f64 / begun.elapsed().as_secs_f64();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the steady load reached.
struct Steady {
    /// Bytes a second of committed pages.
    rate: f64,
    epochs_per_second: f64,
    /// CPU time of all threads, guest included, for each GiB in milliseconds; and by thread.
    cpu: (f64, String),
}

fn measure_epochs(options: &Options, lab: &Lab) -> Steady {
    while lab.primary.status().state != "protected" {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(1));
    let (before, cpu_before) = (lab.primary.status(), CpuTimes::now());
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    let (after, cpu_after) = (lab.primary.status(), CpuTimes::now());
    let seconds = begun.elapsed().as_secs_f64();
    let epochs = (after.epochs_committed - before.epochs_committed) as f64;
    let bytes = epochs * (options.epoch_pages() * PAGE_BYTES) as f64;
    Steady {
        rate: bytes / seconds,
        epochs_per_second: epochs / seconds,
        cpu: cpu_after.since(&cpu_before, bytes / GIB),
    }
}

fn populated(len_bytes: usize) -> Memory {
    let memory = anonymous_mapping(len_bytes).expect("memory");
    (0..len_bytes).step_by(PAGE_BYTES as usize).for_each(|offset| memory.write(offset, &[1]));
    memory
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Plain sockets over populated memory: with the system's congestion control, with the fabric's, and
/// with that over scattered pages, as replication has them.
struct PlainSteady {
    source: Memory,
    target: Memory,
    system: Vec<Plain>,
    alike: Vec<Plain>,
    pages: Vec<Plain>,
}

impl PlainSteady {
    fn new(options: &Options) -> Self {
        Self {
            source: populated((2 * options.epoch_mib as usize) << 20),
            target: populated((4 * options.epoch_mib as usize) << 20),
            system: Vec::new(),
            alike: Vec::new(),
            pages: Vec::new(),
        }
    }

    fn measure(&mut self, options: &Options) {
        let bytes = (options.seconds * GIB) as u64 / 2;
        let one = |congestion, places| {
            plain::measure(options.streams, congestion, places, &self.source, &self.target, bytes)
        };
        self.system.push(one(None, Places::Whole));
        self.alike.push(one(options.congestion_name(), Places::Whole));
        self.pages.push(one(options.congestion_name(), Places::Pages));
    }
}

/// The mean rate, and the mean CPU time of a GiB in milliseconds.
fn mean(runs: &[Plain]) -> (f64, f64) {
    let mean = |each: fn(&Plain) -> f64| runs.iter().map(each).sum::<f64>() / runs.len() as f64;
    (mean(|plain| plain.rate), 1e3 * GIB * mean(|plain| plain.cpu_per_byte))
}

/// Ratios to plain sockets: synchronization, steady load, steady load with sockets set alike.
fn round(options: &Options, number: usize) -> [f64; 3] {
    let hot = Pattern::Shuffled { pages: 2 * options.epoch_pages() };
    let guest_options = SyntheticOptions {
        regions: vec![options.pages()],
        filled_pages: options.pages(),
        state_bytes: 64 << 10,
        pattern: if options.sequential { Pattern::Sequential } else { hot },
        fill: Fill::Touch,
        pace: Pace::PerEpoch(options.epoch_pages()),
        ..SyntheticOptions::default()
    };
    let guest = SyntheticGuest::start(guest_options.clone()).expect("the guest starts");
    let source = guest.memory()[0].clone();
    let plain_sync = {
        let fresh = anonymous_mapping(source.len_bytes()).expect("memory");
        plain::measure(options.streams, None, Places::Whole, &source, &fresh, source.len_bytes() as u64).rate
    };
    let mut plain = PlainSteady::new(options);
    plain.measure(options);
    let lab = start(options, guest, &guest_options);
    let sync = measure_sync(&lab);
    let steady = measure_epochs(options, &lab);
    let status = lab.primary.status();
    lab.primary.request_stop();
    lab.primary.wait();
    lab.backup.request_stop();
    lab.backup.wait();
    drop(lab);
    plain.measure(options);
    println!(
        "round {number} sync: plain {:.2} GiB/s, replication {:.2} GiB/s, {:.0} %",
        plain_sync / GIB,
        sync / GIB,
        100.0 * sync / plain_sync
    );
    let (system, alike, pages) = (mean(&plain.system), mean(&plain.alike), mean(&plain.pages));
    println!(
        "round {number} steady: replication {:.2} GiB/s ({:.1} epochs/s of {} to {} pages, {:.0} ms CPU a GiB); \
         plain {:.2} GiB/s ({:.0} ms CPU), {:.0} %; plain with {} {:.2} GiB/s ({:.0} ms CPU), {:.0} %, over scattered \
         pages {:.2} GiB/s ({:.0} ms CPU), {:.0} %",
        steady.rate / GIB,
        steady.epochs_per_second,
        status.dirty_pages.p50,
        status.dirty_pages.max,
        steady.cpu.0,
        system.0 / GIB,
        system.1,
        100.0 * steady.rate / system.0,
        options.congestion_name().unwrap_or("the same"),
        alike.0 / GIB,
        alike.1,
        100.0 * steady.rate / alike.0,
        pages.0 / GIB,
        pages.1,
        100.0 * steady.rate / pages.0,
    );
    let us = |phase: Phase| status.metrics.phase(phase).p50;
    println!(
        "  us p50: pause {:.0} (stop, the guest's writing included, {:.0}, collect {:.0}, place {:.0}, \
         copy {:.0}), post {:.0}, commit {:.0}; CPU ms a GiB: {}",
        us(Phase::Pause),
        us(Phase::Stop),
        us(Phase::Collect),
        us(Phase::Place),
        us(Phase::Copy),
        us(Phase::Post),
        us(Phase::CommitLatency),
        steady.cpu.1,
    );
    let PrimaryStatus { overflows, throttled_epochs, stalled_epochs, pieced_epochs, connections, .. } =
        status;
    if overflows + throttled_epochs + stalled_epochs + pieced_epochs > 0 || connections > 1 {
        println!(
            "  {overflows} overflows, {throttled_epochs} throttled (p50 {:.0} us), {stalled_epochs} stalls, \
             {pieced_epochs} epochs in pieces, {connections} connections",
            us(Phase::Throttle)
        );
    }
    [sync / plain_sync, steady.rate / system.0, steady.rate / alike.0]
}

fn main() {
    let options = Options::parse().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let ratios: Vec<[f64; 3]> = (1..=options.rounds).map(|number| round(&options, number)).collect();
    let median = |which: usize| 100.0 * median(ratios.iter().map(|ratios| ratios[which]).collect());
    println!(
        "median of plain sockets: sync {:.0} %, steady {:.0} %, steady beside sockets with the same congestion \
         control {:.0} %",
        median(0),
        median(1),
        median(2)
    );
}
