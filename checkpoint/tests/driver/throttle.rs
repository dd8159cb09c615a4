//! Back-pressure with real threads: a guest that writes new pages in each epoch is sustained.

use std::time::Duration;

use romulus_checkpoint::driver::primary::CaptureMode;
use romulus_checkpoint::synthetic::{Fill, Pace, Pattern, SyntheticOptions};

use super::harness::Lab;
use super::takeover::busy_guest;

/// Two epochs do not fit into the spares.
const SPARES: u64 = 1500;

fn new_pages_each_epoch() -> SyntheticOptions {
    SyntheticOptions {
        regions: vec![9_000],
        filled_pages: 9_000,
        writers: 1,
        pattern: Pattern::Sequential,
        pace: Pace::PerEpoch(1_200),
        fill: Fill::Touch,
        ..busy_guest()
    }
}

fn sustain(lab: &Lab) {
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(60);
    let status = primary.handle.status();
    assert_eq!((status.overflows, status.stalled_epochs), (0, 0), "{:#?}", status.reports);
    assert!(status.throttled_epochs > 0, "the load is too light to show anything: {status:#?}");
    // The first epoch ends the synchronization with whatever was dirty; later ones are the load.
    assert!(status.dirty_pages.p50 >= 1_200, "{:?}", status.dirty_pages);
    lab.kill_primary_host();
    lab.take_over(&primary, &backup);
}

#[test]
fn i7_new_pages_in_each_epoch_are_sustained_without_a_synchronization() {
    sustain(&Lab {
        tune_primary: |options| {
            options.spares = SPARES;
            options.machine.low_water_spares = SPARES / 4;
            options.machine.sync_target_pages = 1_300;
            options.machine.throttle_pause = Duration::from_secs(3600);
        },
        ..Lab::new(new_pages_each_epoch())
    });
}

#[test]
fn i7_the_same_with_direct_capture() {
    sustain(&Lab {
        tune_primary: |options| {
            options.spares = SPARES;
            options.capture = CaptureMode::Direct;
            options.machine.low_water_spares = SPARES / 4;
            options.machine.sync_target_pages = 1_300;
            options.machine.throttle_pause = Duration::from_secs(3600);
        },
        ..Lab::new(new_pages_each_epoch())
    });
}
