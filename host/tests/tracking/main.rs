//! Dirty tracking against a real process. Skipped, in so many words, where the kernel lacks
//! write-protect tracking.
//!
//! The tracked process is this program again, with its main thread doing what a test tells it;
//! hence a `main` of its own.

mod injection;
mod lossless;
mod robot;

use romulus_checkpoint::{Extent, PageIndex};
use romulus_host::tracking::{self, DirtyTracker, TrackingError, TrackingOptions, WriteProtectTracker};

use robot::Robot;

fn main() -> std::process::ExitCode {
    match robot::role() {
        Some((role, arguments)) if role == "robot" => robot::obey(&arguments),
        Some((role, arguments)) if role == "tracker" => injection::track(&arguments),
        Some((role, _)) => panic!("unknown role {role}"),
        None => return libtest_mimic::run(&libtest_mimic::Arguments::from_args(), tests()).exit_code(),
    }
    std::process::ExitCode::SUCCESS
}

macro_rules! trials {
    ($($path:path,)*) => {
        vec![$(libtest_mimic::Trial::test(stringify!($path), || {
            $path();
            Ok(())
        })),*]
    };
}

fn tests() -> Vec<libtest_mimic::Trial> {
    trials![
        written_pages_are_reported_once_as_extents,
        more_runs_than_one_call_reports_come_in_order_and_once,
        unpopulated_and_merely_read_pages_are_clean,
        writes_by_the_kernel_are_seen,
        page_numbers_follow_the_ranges,
        stopping_leaves_the_process_as_it_was,
        a_second_tracker_is_refused,
        memory_that_is_not_shared_or_not_there_is_refused,
        the_end_of_the_process_is_an_error_and_not_a_clean_scan,
        lossless::while_running,
        lossless::while_running_with_several_scan_threads,
        lossless::even_if_the_writers_do_not_stand_still,
        injection::an_interrupted_sleep_goes_on,
        injection::an_interrupted_poll_goes_on,
        injection::a_computation_is_not_disturbed,
        injection::a_storm_of_signals_does_no_harm,
        injection::a_stopped_process_stays_stopped,
        injection::a_seccomp_filter_is_respected_or_suspended_but_never_fatal,
        injection::a_process_that_is_traced_by_another_is_refused,
        injection::a_killed_tracker_leaves_no_protection,
        injection::a_tracker_may_be_killed_in_the_middle_of_an_injection,
    ]
}

/// Whether this kernel can run these tests.
fn available() -> bool {
    let probed = tracking::probe::write_protect();
    if let Err(why) = &probed {
        eprintln!("skipped: no write-protect tracking here: {why}");
    }
    probed.is_ok()
}

fn tracker_of(robot: &Robot, threads: usize) -> WriteProtectTracker {
    let options = TrackingOptions { threads, ..TrackingOptions::default() };
    WriteProtectTracker::new(robot.pid(), &[robot.range()], &options).unwrap()
}

fn extent(first: u64, pages: u64) -> Extent {
    Extent { first: PageIndex(first), pages }
}

fn collect(tracker: &mut WriteProtectTracker) -> Vec<Extent> {
    let mut dirty = Vec::new();
    tracker.collect_stopped(&mut dirty).unwrap();
    dirty
}

fn written_pages_are_reported_once_as_extents() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(100_000);
    robot.ask("write 0 1 2 70000");
    let mut tracker = tracker_of(&robot, 1);
    tracker.start().unwrap();
    assert!(collect(&mut tracker).is_empty(), "what was written before the start is not reported");
    robot.ask("write 5 6 7 7 7 2 99999 512 50000");
    let expected = [extent(2, 1), extent(5, 3), extent(512, 1), extent(50_000, 1), extent(99_999, 1)];
    assert_eq!(collect(&mut tracker), expected);
    assert!(collect(&mut tracker).is_empty());
    robot.ask("write 6");
    let mut dirty = Vec::new();
    tracker.collect_running(&mut dirty).unwrap();
    assert_eq!(dirty, [extent(6, 1)]);
    dirty.clear();
    tracker.collect_running(&mut dirty).unwrap();
    assert!(dirty.is_empty());
}

fn more_runs_than_one_call_reports_come_in_order_and_once() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(20_000);
    let mut tracker = tracker_of(&robot, 1);
    tracker.start().unwrap();
    // Below and above what the kernel buffers (512) and what one call reports (2,048).
    for count in [500u64, 513, 2048, 2049, 6_600] {
        let pages: Vec<u64> = (0..count).map(|index| index * 3 + 1).collect();
        let words: Vec<String> = pages.iter().map(u64::to_string).collect();
        let expected: Vec<Extent> = pages.iter().map(|page| extent(*page, 1)).collect();
        robot.ask(&format!("write {}", words.join(" ")));
        let mut dirty = Vec::new();
        tracker.collect_running(&mut dirty).unwrap();
        assert!(dirty == expected, "{count} runs while running");
        for _ in 0..2 {
            robot.ask(&format!("write {}", words.join(" ")));
            assert!(collect(&mut tracker) == expected, "{count} runs");
        }
        assert!(collect(&mut tracker).is_empty());
    }
}

fn unpopulated_and_merely_read_pages_are_clean() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(4096);
    let mut tracker = tracker_of(&robot, 1);
    tracker.start().unwrap();
    robot.ask("look 1000");
    assert!(collect(&mut tracker).is_empty());
    robot.ask("write 1001");
    assert_eq!(collect(&mut tracker), [extent(1001, 1)]);
}

fn writes_by_the_kernel_are_seen() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(4096);
    robot.ask("write 17");
    let mut tracker = tracker_of(&robot, 1);
    tracker.start().unwrap();
    robot.ask("read-file 17");
    robot.ask("read-file 2000");
    assert_eq!(collect(&mut tracker), [extent(17, 1), extent(2000, 1)]);
}

fn page_numbers_follow_the_ranges() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(4096);
    let whole = robot.range();
    let ranges = [
        tracking::DirtyRange { address: whole.address, pages: 1000, first: PageIndex(0) },
        tracking::DirtyRange { address: whole.address + 2000 * 4096, pages: 2096, first: PageIndex(1000) },
    ];
    let mut tracker = tracking::open(robot.pid(), &ranges, &TrackingOptions::default()).unwrap();
    assert_eq!(tracker.method(), "write-protect");
    tracker.start().unwrap();
    robot.ask("write 999 1500 2000 2001 4095");
    let mut dirty = Vec::new();
    tracker.collect_stopped(&mut dirty).unwrap();
    assert_eq!(dirty, [extent(999, 3), extent(3095, 1)]);
}

fn stopping_leaves_the_process_as_it_was() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(4096);
    let descriptors = robot.descriptors();
    let mut tracker = tracker_of(&robot, 1);
    for _ in 0..3 {
        tracker.start().unwrap();
        assert!(robot.is_protected());
        assert_eq!(robot.descriptors(), descriptors, "the injected descriptor is closed");
        assert!(matches!(tracker.start(), Err(TrackingError::Refused(_))));
        robot.ask("write 3");
        tracker.stop().unwrap();
        tracker.stop().unwrap();
        assert!(!robot.is_protected());
        assert!(matches!(tracker.collect_stopped(&mut Vec::new()), Err(TrackingError::Refused(_))));
    }
    tracker.start().unwrap();
    assert!(collect(&mut tracker).is_empty(), "nothing is left over from before");
    drop(tracker);
    assert!(!robot.is_protected());
    robot.ask("write 3");
}

fn a_second_tracker_is_refused() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(4096);
    let mut first = tracker_of(&robot, 1);
    first.start().unwrap();
    let mut second = tracker_of(&robot, 1);
    let Err(TrackingError::Refused(why)) = second.start() else { panic!("two trackers") };
    assert!(why.contains("already watched"), "{why}");
    robot.ask("write 9");
    assert_eq!(collect(&mut first), [extent(9, 1)]);
}

fn memory_that_is_not_shared_or_not_there_is_refused() {
    let private = vec![0u8; 1 << 20];
    let page = (private.as_ptr() as u64).next_multiple_of(4096);
    for (address, word) in [(page, "private"), (4096, "nothing is mapped")] {
        let range = tracking::DirtyRange { address, pages: 4, first: PageIndex(0) };
        let result = WriteProtectTracker::new(std::process::id(), &[range], &TrackingOptions::default());
        let Err(TrackingError::Refused(why)) = result else { panic!("accepted") };
        assert!(why.contains(word), "{why}");
    }
}

fn the_end_of_the_process_is_an_error_and_not_a_clean_scan() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(200_000);
    robot.ask("hammer 2");
    let mut tracker = tracker_of(&robot, 2);
    tracker.start().unwrap();
    let pid = robot.pid();
    let killer = std::thread::spawn(move || {
        robot.process.kill();
    });
    let error = loop {
        let mut dirty = Vec::new();
        if let Err(error) = tracker.collect_running(&mut dirty) {
            break error;
        }
    };
    assert!(matches!(error, TrackingError::Gone { pid: gone } if gone == pid), "{error}");
    killer.join().unwrap();
    assert!(matches!(tracker.collect_stopped(&mut Vec::new()), Err(TrackingError::Gone { .. })));
    tracker.stop().unwrap();
    assert!(matches!(tracker.start(), Err(TrackingError::Gone { .. })));
    let again = WriteProtectTracker::new(pid, &[], &TrackingOptions::default());
    assert!(matches!(again, Err(TrackingError::Gone { .. })));
}
