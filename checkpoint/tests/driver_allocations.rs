//! The path of an epoch allocates nothing in steady state: not on the primary, not on the backup,
//! not in the fabric. Everything runs in this process under an allocator that counts.

#![allow(missing_docs)] // a test

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::arbiter::Arbiter;
use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::driver::backup::{BackupDriver, BackupOptions, BackupParts, InProcessArenas};
use romulus_checkpoint::driver::primary::{PrimaryDriver, PrimaryOptions, PrimaryOutcome, PrimaryParts};
use romulus_checkpoint::metrics::Counter;
use romulus_checkpoint::synthetic::{
    Fill, Pace, Pattern, SyntheticGuest, SyntheticOptions, SyntheticStandby,
};
use romulus_counting_allocator::{CountingAllocator, Watch};
use romulus_transport::Fabric;
use romulus_transport::tcp::{TcpConfig, TcpFabric};

/// Epochs before counting begins: every reused buffer has met its largest use.
const WARM_UP: u64 = 300;
/// Epochs counted.
const COUNTED: u64 = 200;
/// Stretches of so many epochs that are looked at.
const STRETCHES: usize = 8;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn two_hundred_epochs_allocate_nothing() {
    let options = SyntheticOptions {
        regions: vec![3000, 1000],
        filled_pages: 4000,
        writers: 2,
        pattern: Pattern::Uniform,
        fill: Fill::Touch,
        pace: Pace::PerResume(700),
        saving_writes: true,
        ..SyntheticOptions::default()
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let arbiter: Arc<dyn Arbiter> = Arc::new(FileArbiter::open(directory.path()).expect("an arbiter"));
    let fabric: Arc<dyn Fabric> = Arc::new(TcpFabric::new(TcpConfig::default()));
    let mut backup_options = BackupOptions::new("beta", SocketAddr::from(([127, 0, 0, 1], 0)), 1 << 30);
    backup_options.machine.suspect_after = Duration::from_secs(60);
    let standby = Box::new(SyntheticStandby::new(&options));
    let arenas = Box::new(InProcessArenas { limit_bytes: 1 << 30 });
    let parts = BackupParts::new(Arc::clone(&fabric), standby, arenas, Arc::clone(&arbiter));
    let backup = BackupDriver::spawn(backup_options, parts).expect("the backup starts");

    let guest = SyntheticGuest::start(options).expect("the guest starts");
    let control = guest.control();
    let mut options = PrimaryOptions::new("alpha", backup.local_address(), &guest).expect("random numbers");
    options.machine.interval = Duration::from_millis(5);
    options.machine.suspect_after = Duration::from_secs(50);
    options.copy_workers = 1;
    options.copy_workers_from_pages = 256;
    let primary = PrimaryDriver::spawn(options, PrimaryParts::new(Box::new(guest), arbiter, fabric))
        .expect("it starts");

    let watch = Watch::begin();
    drop(std::hint::black_box(vec![0u8; 10]));
    assert!(watch.times() > 0, "the counter counts");

    let begun = Instant::now();
    let wait_for_pauses = |pauses: u64| {
        while control.pauses() < pauses {
            assert!(begun.elapsed() < Duration::from_secs(120), "{:#?}", primary.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for_pauses(WARM_UP);
    // A burst on a busy machine may make a buffer grow once more; what each epoch allocates shows
    // in every stretch of epochs.
    let mut stretches = Vec::new();
    let (before, after) = loop {
        let before = primary.status();
        let watch = Watch::begin();
        wait_for_pauses(control.pauses() + COUNTED);
        let found = watch.times();
        let after = primary.status();
        if found == 0 {
            break (before, after);
        }
        stretches.push((found, watch.threads(found)));
        assert!(stretches.len() < STRETCHES, "every stretch of {COUNTED} epochs allocates: {stretches:?}");
    };
    let homed = backup.status().pages_homed;

    assert_eq!(before.state, "protected");
    assert_eq!(after.state, "protected");
    assert!(after.epochs_committed >= before.epochs_committed + COUNTED / 2, "{after:#?}");
    assert!(after.metrics.counter(Counter::PagesSent) > before.metrics.counter(Counter::PagesSent));
    assert!(homed > 0, "homing is part of the path");

    primary.request_stop();
    assert_eq!(primary.wait(), PrimaryOutcome::Stopped);
    backup.request_stop();
    backup.wait();
}
