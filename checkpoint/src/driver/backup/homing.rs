//! The `homing` threads: copy committed pages from spare frames home.

use std::time::{Duration, Instant};

use super::shared::Shared;
use super::status::BackupOutcome;
use crate::metrics::{Counter, Phase};

/// Longest sleep without a look.
const LOOK: Duration = Duration::from_millis(500);
/// Copies taken at a time: enough to make the locks cheap, few enough that a fence, which waits
/// for them, is not held up.
const BATCH: usize = 64;

/// Works until the driver is over.
pub(super) fn run(shared: &Shared) {
    let mut batch = Vec::with_capacity(BATCH);
    while !shared.is_over() {
        let seen = shared.wake_homing.seen();
        loop {
            let began = Instant::now();
            // Of one moment: the memory is that of the image that the copies belong to.
            let lent = shared.call(|backup, _, _| {
                batch.extend(std::iter::from_fn(|| backup.next_homing()).take(BATCH));
                shared.lent()
            });
            if batch.is_empty() {
                break;
            }
            if !lent.is_some_and(|lent| batch.iter().all(|copy| lent.homes.copy_home(copy))) {
                // The machine has checked each. One that was not made must not count as one.
                let why = "a page to be copied home lies outside the memory lent";
                return shared.finish(BackupOutcome::Failed(why.into()));
            }
            let copies = batch.len();
            shared.call(|backup, now, actions| {
                batch.drain(..).for_each(|copy| backup.homing_finished(&copy, now, actions));
            });
            shared.metrics.record(Phase::Homing, began.elapsed() / copies as u32);
            shared.metrics.count(Counter::Homings, copies as u64);
            shared.homing_done.notify();
            // Before the next copies are taken: a fence that holds up all actions waits for copies.
            shared.perform();
        }
        shared.wake_homing.wait(seen, LOOK);
    }
}
