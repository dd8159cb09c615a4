//! The injection leaves no trace in the process, whatever it was doing, and Romulus may be killed
//! at any moment of it.

use std::io::Write;
use std::os::fd::AsRawFd;

use romulus_checkpoint::PageIndex;
use romulus_host::tracking::{DirtyRange, DirtyTracker, TrackingError, TrackingOptions, WriteProtectTracker};

use super::robot::{self, Robot};
use super::{available, collect, extent, tracker_of};

fn start_and_stop(robot: &Robot, times: usize) {
    let mut tracker = tracker_of(robot, 1);
    for _ in 0..times {
        tracker.start().unwrap();
        tracker.stop().unwrap();
    }
}

pub fn an_interrupted_sleep_goes_on() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(16);
    robot.process.send("sleep 200");
    robot.process.wait_for_syscall(libc::SYS_clock_nanosleep);
    start_and_stop(&robot, 3);
    assert_eq!(robot.process.receive(), "slept 0");
}

pub fn an_interrupted_poll_goes_on() {
    if !available() {
        return;
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: clears close-on-exec of a descriptor of this test, so that the robot inherits it.
    unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFD, 0) };
    let mut robot = Robot::start(16);
    robot.process.send(&format!("poll {}", reader.as_raw_fd()));
    robot.process.wait_for_syscall(libc::SYS_ppoll);
    start_and_stop(&robot, 10);
    robot.process.wait_for_syscall(libc::SYS_ppoll);
    writer.write_all(b"x").unwrap();
    assert_eq!(robot.process.receive(), "polled 1");
}

pub fn a_computation_is_not_disturbed() {
    if !available() {
        return;
    }
    const ROUNDS: u64 = 3_000_000;
    let mut robot = Robot::start(16);
    robot.process.send(&format!("compute {ROUNDS}"));
    assert_eq!(robot.process.receive(), "computing");
    start_and_stop(&robot, 10);
    assert_eq!(robot.process.receive(), format!("computed {}", robot::compute(ROUNDS)));
}

pub fn a_storm_of_signals_does_no_harm() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(64);
    robot.ask("signals");
    for page in 0..20 {
        let mut tracker = tracker_of(&robot, 1);
        tracker.start().unwrap();
        robot.ask(&format!("write {page}"));
        assert_eq!(collect(&mut tracker), [extent(page, 1)]);
    }
    robot.process.send("compute 100000");
    start_and_stop(&robot, 5);
    assert_eq!(robot.process.receive(), "computing");
    assert_eq!(robot.process.receive(), format!("computed {}", robot::compute(100_000)));
    robot.ask("halt");
}

pub fn a_stopped_process_stays_stopped() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(64);
    let state = |letter: &str| {
        let path = format!("/proc/{}/stat", robot.pid());
        let wanted = format!(") {letter} ");
        while !std::fs::read_to_string(&path).unwrap().contains(&wanted) {
            std::thread::yield_now();
        }
    };
    let signal = |signal| {
        // SAFETY: signals the robot, a child of this test.
        unsafe { libc::kill(robot.pid() as i32, signal) };
    };
    signal(libc::SIGSTOP);
    state("T");
    let mut tracker = tracker_of(&robot, 1);
    tracker.start().unwrap();
    state("T");
    signal(libc::SIGCONT);
    robot.ask("write 4");
    assert_eq!(collect(&mut tracker), [extent(4, 1)]);
}

pub fn a_seccomp_filter_is_respected_or_suspended_but_never_fatal() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(64);
    robot.ask("seccomp");
    let mut tracker = tracker_of(&robot, 1);
    match tracker.start() {
        Ok(()) => {
            robot.ask("write 4");
            assert_eq!(collect(&mut tracker), [extent(4, 1)]);
        }
        Err(TrackingError::Refused(why)) => assert!(why.contains("seccomp"), "{why}"),
        Err(other) => panic!("{other}"),
    }
    robot.ask("write 4");
}

pub fn a_process_that_is_traced_by_another_is_refused() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(64);
    // SAFETY: traces a child of this test; dropped below from the same thread.
    unsafe { assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, robot.pid() as i32, 0, 0), 0) };
    let Err(TrackingError::Refused(why)) = tracker_of(&robot, 1).start() else { panic!("started") };
    assert!(why.contains("already traced"), "{why}");
    // The robot is still traced by this thread, which ends with the test and so lets it go.
    robot.ask("write 4");
}

/// A tracker that is to be killed, as a role of this program.
pub fn track(arguments: &str) {
    let numbers: Vec<u64> = arguments.split(' ').map(|number| number.parse().unwrap()).collect();
    let [pid, address, pages, starts] = numbers[..] else { panic!("arguments") };
    let range = DirtyRange { address, pages, first: PageIndex(0) };
    let options = TrackingOptions::default();
    let mut tracker = WriteProtectTracker::new(pid as u32, &[range], &options).unwrap();
    tracker.start().unwrap();
    robot::answer("tracking");
    for _ in 1..starts {
        tracker.stop().unwrap();
        tracker.start().unwrap();
    }
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn start_tracker(robot: &Robot, starts: u64) -> robot::Process {
    let arguments = format!("{} {} {} {starts}", robot.pid(), robot.address, robot.pages);
    let mut tracker = robot::start_role("tracker", &arguments);
    assert_eq!(tracker.receive(), "tracking");
    tracker
}

pub fn a_killed_tracker_leaves_no_protection() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(4096);
    robot.ask("hammer 2");
    let mut tracker = start_tracker(&robot, 1);
    assert!(robot.is_protected());
    tracker.kill();
    assert!(!robot.is_protected());
    robot.ask("halt");
    robot.ask("write 1 2 3");
}

pub fn a_tracker_may_be_killed_in_the_middle_of_an_injection() {
    if !available() {
        return;
    }
    let mut robot = Robot::start(64);
    for wait in 0..20u64 {
        let mut tracker = start_tracker(&robot, u64::MAX);
        // Different moments; which ones does not matter for the result.
        for _ in 0..wait * wait * 500 {
            std::hint::spin_loop();
        }
        tracker.kill();
        assert_eq!(robot.ask("write 1 2 3"), "done");
    }
    let mut tracker = tracker_of(&robot, 1);
    tracker.start().unwrap();
    robot.ask("write 7");
    assert_eq!(collect(&mut tracker), [extent(7, 1)]);
}
