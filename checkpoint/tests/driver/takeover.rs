//! The primary's host dies: the backup has exactly the guest of the last committed pause.

use std::sync::atomic::Ordering;

use romulus_checkpoint::driver::primary::{CaptureMode, PrimaryOutcome};
use romulus_checkpoint::synthetic::{Fill, Pace, Pattern, SyntheticOptions};

use super::harness::{Lab, until};

pub fn busy_guest() -> SyntheticOptions {
    SyntheticOptions {
        regions: vec![900, 300],
        filled_pages: 800,
        writers: 2,
        pattern: Pattern::Uniform,
        fill: Fill::Whole,
        pace: Pace::PerResume(120),
        saving_writes: true,
        ..SyntheticOptions::default()
    }
}

fn protect_kill_and_check(lab: &Lab, operations: &[i64]) {
    for operations in operations {
        let lab = Lab {
            tune_primary: lab.tune_primary,
            tune_backup: lab.tune_backup,
            ..Lab::new(lab.guest_options.clone())
        };
        let backup = lab.start_backup();
        let primary = lab.start_primary(backup.handle.local_address());
        primary.until_protected(5);
        lab.primary_switch.plan(*operations, true);
        until("the host is dead", || lab.primary_switch.is_dead());
        lab.kill_primary_host();
        lab.take_over(&primary, &backup);
    }
}

#[test]
fn i2_the_image_is_the_guest_of_the_last_committed_pause_wherever_the_host_dies() {
    protect_kill_and_check(&Lab::new(busy_guest()), &[0, 1, 2, 3, 4, 5, 17, 40, 101]);
}

#[test]
fn i2_with_direct_capture() {
    let lab = Lab {
        tune_primary: |options| options.capture = CaptureMode::Direct,
        ..Lab::new(SyntheticOptions { fill: Fill::Touch, ..busy_guest() })
    };
    protect_kill_and_check(&lab, &[1, 2, 33]);
}

/// Each epoch takes longer than anything may take that makes no progress.
#[test]
fn direct_capture_over_a_slow_network_keeps_its_connection() {
    let lab = Lab {
        tune_primary: |options| {
            options.capture = CaptureMode::Direct;
            options.spares = 8_000;
            options.machine.low_water_spares = 4_000;
            options.machine.sync_target_pages = 6_500;
        },
        ..Lab::new(SyntheticOptions {
            regions: vec![9_000],
            filled_pages: 9_000,
            pace: Pace::PerEpoch(6_000),
            fill: Fill::Touch,
            ..busy_guest()
        })
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(2);
    lab.primary_switch.bytes_per_second.store(6 << 20, Ordering::SeqCst);
    let before = primary.handle.status().epochs_committed;
    until("slow epochs are committed", || primary.handle.status().epochs_committed >= before + 2);
    let status = primary.handle.status();
    assert_eq!(status.connections, 1, "{:#?}", status.reports);
    assert!(status.pause_us.max > 2_200_000, "{:?}", status.pause_us);
    lab.primary_switch.bytes_per_second.store(0, Ordering::SeqCst);
    primary.stop();
    backup.stop();
}

#[test]
fn i2_with_copy_workers_depth_4_and_memory_that_cannot_be_registered() {
    let lab = Lab {
        tune_primary: |options| {
            options.copy_workers = 2;
            options.copy_workers_from_pages = 16;
            options.machine.depth = 4;
            options.staging_bytes = 4 << 20;
        },
        ..Lab::new(SyntheticOptions { registrable: false, ..busy_guest() })
    };
    protect_kill_and_check(&lab, &[0, 3, 50]);
}

#[test]
fn i2_with_large_epochs_sent_from_guest_memory_as_far_as_the_sockets_take_them() {
    let large = SyntheticOptions {
        regions: vec![9_000],
        filled_pages: 9_000,
        pace: Pace::PerEpoch(6_000),
        pattern: Pattern::Uniform,
        ..busy_guest()
    };
    let lab = Lab {
        tune_primary: |options| {
            options.spares = 8_000;
            options.machine.low_water_spares = 4_000;
            options.machine.sync_target_pages = 6_500;
        },
        ..Lab::new(large)
    };
    protect_kill_and_check(&lab, &[1, 10, 33, 60]);
}

#[test]
fn i2_with_epochs_larger_than_staging() {
    let options = SyntheticOptions {
        pace: Pace::PerResume(3000),
        fill: Fill::Touch,
        regions: vec![3000],
        ..busy_guest()
    };
    let lab = Lab {
        tune_primary: |options| {
            options.staging_bytes = 4 << 20;
            options.spares = 8192;
            options.machine.interval = std::time::Duration::from_millis(20);
        },
        ..Lab::new(options)
    };
    protect_kill_and_check(&lab, &[2, 9]);
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    let begun = std::time::Instant::now();
    while primary.handle.status().pieced_epochs == 0 {
        assert!(begun.elapsed() < super::harness::PATIENCE, "{:#?}", primary.handle.status());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    primary.stop();
    backup.stop();
}

#[test]
fn a_silent_primary_is_suspected_and_taken_over() {
    let lab = Lab {
        tune_backup: |options| {
            options.machine.suspect_after = std::time::Duration::from_millis(400);
        },
        tune_primary: |options| options.machine.suspect_after = std::time::Duration::from_millis(300),
        ..Lab::new(busy_guest())
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    lab.kill_primary_host();
    backup.assert_exact_takeover();
    let takeover = backup.handle.status().takeover.expect("it took over");
    assert!(takeover.detection_ms >= 390.0, "{takeover:?}");
    assert!(takeover.total_ms >= takeover.detection_ms, "{takeover:?}");
    lab.primary_arbiter.unreachable.store(false, Ordering::SeqCst);
    assert_eq!(primary.wait(), PrimaryOutcome::TakenOver);
}
