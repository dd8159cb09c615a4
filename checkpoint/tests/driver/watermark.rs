//! The dirty-page watermark ends an epoch early. The timer plays no part: an interval is an hour.

use std::time::Duration;

use romulus_checkpoint::driver::primary::Watermark;
use romulus_checkpoint::synthetic::{Pace, Pattern, SyntheticOptions};

use super::harness::{Lab, until};
use super::takeover::busy_guest;

const WATERMARK: u64 = 200;

/// Writes what a test has it write, always another page.
fn idle_guest() -> SyntheticOptions {
    SyntheticOptions {
        writers: 1,
        pattern: Pattern::Sequential,
        pace: Pace::Idle,
        saving_writes: false,
        ..busy_guest()
    }
}

#[test]
fn an_epoch_ends_when_as_many_pages_are_dirty_as_the_watermark_says() {
    let lab = Lab {
        tune_primary: |options| {
            options.machine.interval = Duration::from_secs(3600);
            options.watermark = Some(Watermark { pages: WATERMARK, check_every: Duration::ZERO });
        },
        ..Lab::new(idle_guest())
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    until("protected", || primary.handle.status().state == "protected");
    let first = primary.handle.status();
    let early = || primary.handle.status().metrics.counters["early_epochs"];
    assert_eq!(early(), 0);
    for round in 1..=3 {
        // One page short of the watermark: whatever ends the epoch now has fewer pages than it.
        let written = primary.guest.writes();
        primary.guest.burst(WATERMARK - 1);
        until("the pages are written", || primary.guest.writes() == written + WATERMARK - 1);
        assert_eq!(primary.guest.pauses(), first.epoch + round - 1);
        primary.guest.burst(1);
        until("an epoch was acked", || primary.handle.status().epoch == first.epoch + round);
        assert_eq!(primary.handle.status().last_dirty_pages, WATERMARK);
        assert_eq!((early(), primary.guest.pauses()), (round, first.epoch + round));
    }
    assert_eq!(primary.handle.status().late_epochs, 0);
    primary.stop();
    backup.stop();
}
