//! How close replication comes to what plain `sendmsg` and `recv` move over as many streams on this
//! machine, in this very run:
//! `cargo run --release -p romulus-checkpoint --example steady_load -- [--gib 4] [--streams 2]
//! [--epoch-mib 50] [--interval-ms 5] [--pattern sequential|hot] [--seconds 5] [--rounds 3]
//! [--capture staged|direct] [--copy-workers 0]`
//!
//! Each round measures pairs with the same memory: plain sockets into fresh memory beside the
//! initial synchronization of a guest (whose arena is fresh too), and plain sockets into populated
//! memory beside epochs of a steady load, one after the other as fast as they commit. The ratios
//! are what counts: absolute figures of a shared machine vary.

mod plain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::PAGE_BYTES;
use romulus_checkpoint::arbiter::Arbiter;
use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::driver::anonymous_mapping;
use romulus_checkpoint::driver::backup::{
    BackupDriver, BackupHandle, BackupOptions, BackupParts, InProcessArenas,
};
use romulus_checkpoint::driver::primary::{
    CaptureMode, PrimaryDriver, PrimaryHandle, PrimaryOptions, PrimaryParts,
};
use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::metrics::Phase;
use romulus_checkpoint::synthetic::{
    Fill, Pace, Pattern, SyntheticGuest, SyntheticOptions, SyntheticStandby,
};
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Fabric, Memory};

const GIB: f64 = (1u64 << 30) as f64;

struct Options {
    gib: f64,
    streams: usize,
    epoch_mib: u64,
    seconds: f64,
    rounds: usize,
    interval_ms: u64,
    hot: bool,
    direct: bool,
    copy_workers: usize,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self {
            gib: 4.0,
            streams: 2,
            epoch_mib: 50,
            seconds: 5.0,
            rounds: 3,
            interval_ms: 5,
            hot: false,
            direct: false,
            copy_workers: 0,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let bad = |error: &dyn std::fmt::Display| format!("{name} {value}: {error}");
            match name.as_str() {
                "--gib" => options.gib = value.parse().map_err(|error| bad(&error))?,
                "--streams" => options.streams = value.parse().map_err(|error| bad(&error))?,
                "--epoch-mib" => options.epoch_mib = value.parse().map_err(|error| bad(&error))?,
                "--seconds" => options.seconds = value.parse().map_err(|error| bad(&error))?,
                "--rounds" => options.rounds = value.parse().map_err(|error| bad(&error))?,
                "--copy-workers" => options.copy_workers = value.parse().map_err(|error| bad(&error))?,
                "--interval-ms" => options.interval_ms = value.parse().map_err(|error| bad(&error))?,
                "--pattern" => options.hot = value == "hot",
                "--capture" => options.direct = value == "direct",
                _ => return Err(format!("{name} is unknown")),
            }
        }
        Ok(options)
    }

    fn pages(&self) -> u64 {
        (self.gib * GIB) as u64 / PAGE_BYTES
    }

    fn epoch_pages(&self) -> u64 {
        (self.epoch_mib << 20) / PAGE_BYTES
    }
}

/// Both drivers, protecting.
struct Lab {
    primary: PrimaryHandle,
    backup: BackupHandle,
    _directory: tempfile::TempDir,
}

fn start(options: &Options, guest: SyntheticGuest, guest_options: &SyntheticOptions) -> Lab {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let arbiter: Arc<dyn Arbiter> = Arc::new(FileArbiter::open(directory.path()).expect("an arbiter"));
    let config = TcpConfig { streams: options.streams, ..TcpConfig::default() };
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
    driver.staging_bytes = 4 * (options.epoch_mib << 20);
    driver.copy_workers = options.copy_workers;
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

/// Bytes a second of committed epochs, and epochs a second.
fn measure_epochs(options: &Options, lab: &Lab) -> (f64, f64) {
    while lab.primary.status().state != "protected" {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(1));
    let before = lab.primary.status();
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    let after = lab.primary.status();
    let seconds = begun.elapsed().as_secs_f64();
    let epochs = (after.epochs_committed - before.epochs_committed) as f64;
    ((after.bytes_written - before.bytes_written) as f64 / seconds, epochs / seconds)
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

fn round(options: &Options, number: usize) -> (f64, f64) {
    // Twice as many pages as an epoch writes, all of them again and again.
    let hot = Pattern::HotSet { pages: 2 * options.epoch_pages(), percent: 100 };
    let guest_options = SyntheticOptions {
        regions: vec![options.pages()],
        filled_pages: options.pages(),
        state_bytes: 64 << 10,
        pattern: if options.hot { hot } else { Pattern::Sequential },
        fill: Fill::Touch,
        pace: Pace::PerResume(options.epoch_pages()),
        ..SyntheticOptions::default()
    };
    let guest = SyntheticGuest::start(guest_options.clone()).expect("the guest starts");
    let source = guest.memory()[0].clone();
    let plain_sync = {
        let fresh = anonymous_mapping(source.len_bytes()).expect("memory");
        plain::measure(options.streams, &source, &fresh, source.len_bytes() as u64)
    };
    let lab = start(options, guest, &guest_options);
    let sync = measure_sync(&lab);
    let (steady, rate) = measure_epochs(options, &lab);
    let status = lab.primary.status();
    lab.primary.request_stop();
    lab.primary.wait();
    lab.backup.request_stop();
    lab.backup.wait();
    drop(lab);
    let total = (options.seconds * steady) as u64;
    let target = populated((4 * options.epoch_mib as usize) << 20);
    let staging = populated((2 * options.epoch_mib as usize) << 20);
    let plain_steady = plain::measure(options.streams, &staging, &target, total);
    println!(
        "round {number} sync: plain {:.2} GiB/s, replication {:.2} GiB/s, {:.0} %",
        plain_sync / GIB,
        sync / GIB,
        100.0 * sync / plain_sync
    );
    let us = |phase: Phase| status.metrics.phase(phase).p50;
    println!(
        "round {number} steady: plain {:.2} GiB/s, replication {:.2} GiB/s ({rate:.1} epochs/s of {} pages), \
         {:.0} %; us p50: pause {:.0} (collect {:.0}, place {:.0}, copy {:.0}), post {:.0}, commit {:.0}",
        plain_steady / GIB,
        steady / GIB,
        status.dirty_pages.p50,
        100.0 * steady / plain_steady,
        us(Phase::Pause),
        us(Phase::Collect),
        us(Phase::Place),
        us(Phase::Copy),
        us(Phase::Post),
        us(Phase::CommitLatency),
    );
    if status.overflows + status.stalled_epochs + status.pieced_epochs > 0 || status.connections > 1 {
        println!(
            "  {} overflows, {} stalls, {} epochs in pieces, {} connections",
            status.overflows, status.stalled_epochs, status.pieced_epochs, status.connections
        );
    }
    (sync / plain_sync, steady / plain_steady)
}

fn main() {
    let options = Options::parse().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let (sync, steady): (Vec<f64>, Vec<f64>) =
        (1..=options.rounds).map(|number| round(&options, number)).unzip();
    println!(
        "median ratio to plain sockets: sync {:.0} %, steady {:.0} %",
        100.0 * median(sync),
        100.0 * median(steady)
    );
}
