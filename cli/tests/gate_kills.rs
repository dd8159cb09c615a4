//! Kill -9 of `romulus protect` alone, at random moments: nothing leaves before the guard has the
//! grant, then the guest's network works again, and in the end nothing is left behind.
//!
//! `ROMULUS_KILLS` says how many moments (default 4). With it, the network must be back within two
//! seconds each time; without it the machine may be busy, and only the times are told.

mod support;

use std::time::{Duration, Instant};

use romulus::demo::client::Client;
use romulus::demo::instance::{kill, state};
use romulus::demo::stage::Stage;
use rustix::fs::{FlockOperation, flock};

const LONG: Duration = Duration::from_secs(30);
/// How soon the guest's network must work again.
const PROMISED: Duration = Duration::from_secs(2);

fn kill_protect(stage: &mut Stage) -> Instant {
    let mut protect = stage.protect.take().expect("protect runs");
    let killed = Instant::now();
    kill(&mut protect.child);
    killed
}

/// The guest's host comes to have no tap, queueing discipline or filter of Romulus.
fn nothing_is_left(stage: &Stage) {
    let network = stage.network.as_ref().expect("a network");
    let deadline = Instant::now() + LONG;
    loop {
        let left = network.leftovers(stage.side()).expect("a look at the host's network");
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the backup won the grant, as it may where the guard is kept from running for long; else
/// the guard has it, and the host's network is as it was.
fn backup_has_taken_over(stage: &mut Stage, context: &str) -> bool {
    let deadline = Instant::now() + LONG;
    loop {
        let status = stage.backup.as_ref().and_then(|backup| backup.status()).unwrap_or_default();
        if state(&status) == "active" {
            return true;
        }
        let lives = stage.guest_lives();
        let network = stage.network.as_ref().expect("a network");
        let left = network.leftovers(stage.side()).expect("a look at the host's network");
        if lives && left.is_empty() {
            return false;
        }
        assert!(
            Instant::now() < deadline,
            "{context}: guest lives: {lives}; left behind: {left:?}; {status}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn finish(client: Client) {
    let (report, complaints) = client.finish(LONG);
    assert_eq!(complaints, Vec::<String>::new(), "{report:?}");
    println!("{report:?}");
}

#[test]
fn i1_i8_the_network_works_again_after_each_kill_and_nothing_is_left() {
    let asked = std::env::var("ROMULUS_KILLS").ok();
    let moments: u64 = asked.as_ref().map_or(4, |text| text.parse().expect("a number"));
    let mut stage = support::networked_stage();
    stage.start_guest().unwrap_or_else(|e| panic!("{e}"));
    let client = support::client(&stage, Duration::from_millis(2));
    let mut address = stage.start_backup(stage.listen_address()).expect("a backup");
    let mut takeovers = 0;
    let mut times = Vec::new();
    for moment in 0..moments {
        stage.start_protect(&address, 25.0).expect("protection");
        stage.wait_protected().unwrap_or_else(|e| panic!("moment {moment}: {e}"));
        let left = stage.network.as_ref().map(|network| network.leftovers(stage.side()).expect("a look"));
        assert_ne!(left, Some(Vec::new()), "a gate that leaves no trace in the host is no gate");
        std::thread::sleep(Duration::from_millis(support::random(400)));
        let killed = kill_protect(&mut stage);
        assert!(client.hears(LONG), "moment {moment}: the guest's network does not come back");
        times.push(killed.elapsed());
        support::audit(&stage, &client);
        assert_eq!(client.taken_back(), 0, "moment {moment}");
        if backup_has_taken_over(&mut stage, &format!("moment {moment}")) {
            takeovers += 1;
            stage.change_roles().expect("the hosts change roles");
            address = stage.start_backup(stage.listen_address()).expect("a backup");
        }
    }
    times.sort();
    println!("{moments} kills, the backup was faster than the guard in {takeovers}");
    println!("network back after {:?} at the median, {:?} at most", times[times.len() / 2], times.last());
    assert!(asked.is_none() || times.iter().all(|time| *time <= PROMISED), "{times:?}");

    stage.start_protect(&address, 25.0).expect("protection");
    stage.wait_protected().unwrap_or_else(|e| panic!("{e}"));
    let control = stage.protect.as_ref().expect("protect runs").control.clone();
    let stopped =
        std::process::Command::new(support::program()).arg("stop").arg("--control").arg(&control).output();
    assert!(stopped.expect("romulus stop runs").status.success());
    let ended = stage.protect.take().expect("protect runs").child.wait().expect("protect ends");
    assert_eq!(ended.code(), Some(0));
    nothing_is_left(&stage);
    assert!(client.hears(LONG), "no answer after romulus stop");
    finish(client);
}

/// The arbiter is kept from answering, so nobody gets a grant: all that while nothing may leave.
/// Afterwards guard and backup both ask; whoever wins, clients go on and nothing was taken back.
#[test]
fn i1_without_a_grant_nothing_leaves_after_a_kill() {
    let mut stage = support::networked_stage();
    stage.start_guest().unwrap_or_else(|e| panic!("{e}"));
    let client = support::client(&stage, Duration::from_millis(2));
    support::protect(&mut stage, 25.0);
    assert!(client.hears(LONG), "the protected guest does not answer");
    let lock = std::fs::File::options().write(true).open(stage.dir().join("arbiter.lock")).expect("the lock");
    flock(&lock, FlockOperation::LockExclusive).expect("the arbiter is kept from answering");
    kill_protect(&mut stage);
    // What was acknowledged before the kill and is on its way may still arrive.
    std::thread::sleep(Duration::from_millis(200));
    let answered = client.answered();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(client.answered(), answered, "answers left without a grant");
    drop(lock);
    assert!(client.hears(LONG), "the guest's network does not come back with the grant");
    support::audit(&stage, &client);
    finish(client);
}
