//! No write is lost, whatever the writers do meanwhile: a copy kept up to date from what is
//! reported alone equals the memory in the end.

use std::os::unix::fs::FileExt;

use romulus_checkpoint::Extent;
use romulus_host::tracking::{DirtyTracker, TrackingError};

use super::robot::{PAGE, Robot};
use super::{available, tracker_of};

type Collect = fn(&mut dyn DirtyTracker, &mut Vec<Extent>) -> Result<(), TrackingError>;

fn copy(robot: &Robot, extents: &[Extent], shadow: &mut [u8]) {
    for extent in extents {
        let (start, len) = (extent.first.0 as usize * PAGE, extent.pages as usize * PAGE);
        robot.memory.read_exact_at(&mut shadow[start..start + len], start as u64).unwrap();
    }
}

fn shadow_follows(pages: u64, threads: usize, rounds: usize, collect: Collect) {
    if !available() {
        return;
    }
    let mut robot = Robot::start(pages);
    let mut tracker = tracker_of(&robot, threads);
    robot.ask("hammer 3");
    tracker.start().unwrap();
    let mut shadow = vec![0; pages as usize * PAGE];
    let everything = Extent { first: romulus_checkpoint::PageIndex(0), pages };
    copy(&robot, &[everything], &mut shadow);
    let mut dirty = Vec::new();
    let mut reported = 0;
    for _ in 0..rounds {
        dirty.clear();
        collect(&mut tracker, &mut dirty).unwrap();
        assert!(dirty.windows(2).all(|pair| pair[0].first.0 + pair[0].pages < pair[1].first.0));
        reported += dirty.iter().map(|extent| extent.pages).sum::<u64>();
        copy(&robot, &dirty, &mut shadow);
    }
    robot.ask("halt");
    dirty.clear();
    collect(&mut tracker, &mut dirty).unwrap();
    copy(&robot, &dirty, &mut shadow);
    let mut truth = vec![0; shadow.len()];
    robot.memory.read_exact_at(&mut truth, 0).unwrap();
    assert!(shadow == truth, "a write was lost");
    assert!(reported > 0, "the writers did not write");
}

pub fn while_running() {
    shadow_follows(20_000, 1, 60, |tracker, dirty| tracker.collect_running(dirty));
}

pub fn while_running_with_several_scan_threads() {
    // Large enough for two threads and more slices than threads.
    shadow_follows(140_000, 2, 15, |tracker, dirty| tracker.collect_running(dirty));
}

pub fn even_if_the_writers_do_not_stand_still() {
    shadow_follows(20_000, 1, 60, |tracker, dirty| tracker.collect_stopped(dirty));
    shadow_follows(140_000, 2, 15, |tracker, dirty| tracker.collect_stopped(dirty));
}
