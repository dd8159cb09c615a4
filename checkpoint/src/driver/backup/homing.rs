//! The `homing` threads: copy committed pages from spare frames home.

use std::time::Duration;

use super::shared::Shared;
use crate::metrics::{Counter, Phase};

/// Longest sleep without a look.
const LOOK: Duration = Duration::from_millis(500);

/// Works until the driver is over.
pub(super) fn run(shared: &Shared) {
    while !shared.is_over() {
        let seen = shared.wake_homing.seen();
        let mut next = shared.call(|backup, _, _| backup.next_homing());
        while let Some(copy) = next {
            let began = std::time::Instant::now();
            if let Some(lent) = shared.lent() {
                lent.copy_home(&copy);
            }
            shared.call(|backup, now, actions| backup.homing_finished(&copy, now, actions));
            shared.metrics.record(Phase::Homing, began.elapsed());
            shared.metrics.count(Counter::Homings, 1);
            shared.homing_done.notify();
            // Before the next copy is taken: a fence that holds up all actions waits for copies.
            shared.perform();
            next = shared.call(|backup, _, _| backup.next_homing());
        }
        shared.wake_homing.wait(seen, LOOK);
    }
}
