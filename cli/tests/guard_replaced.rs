//! A guard that dies alone: `romulus protect` starts another.

mod support;

use std::time::Duration;

use romulus::demo::instance::pid;
use rustix::process::{Signal, kill_process};

const LONG: Duration = Duration::from_secs(30);

#[test]
fn i8_a_guard_that_dies_is_replaced() {
    let mut stage = support::stage();
    stage.start_guest().expect("a guest");
    support::protect(&mut stage, 25.0);
    let protect = stage.protect.as_mut().expect("protect runs");
    let first = protect.status().and_then(|status| pid(&status, "/guard_pid")).expect("a guard");
    kill_process(first, Signal::KILL).expect("the guard lives");
    let another = |status: &serde_json::Value| pid(status, "/guard_pid").filter(|pid| *pid != first);
    let second = protect.wait_for("another guard", LONG, another).unwrap_or_else(|e| panic!("{e}"));
    rustix::process::test_kill_process(second).expect("it lives");
    stage.wait_protected().expect("nothing else has changed");
}
