//! I1, output commit, as clients see it: the guest's host is killed at random moments while a
//! client outside checks every answer against what the resumed guest knows.
//!
//! `ROMULUS_KILLS` says how many moments (default 4). The hosts change roles after each, so that
//! one guest and one connection go through all of them.

mod support;

use std::time::{Duration, Instant};

use romulus::demo::stage::Stage;

const LONG: Duration = Duration::from_secs(30);

#[test]
fn i1_kills_at_random_moments_take_no_answer_back() {
    let moments: u64 = std::env::var("ROMULUS_KILLS").map_or(4, |text| text.parse().expect("a number"));
    let mut stage = support::networked_stage();
    stage.start_guest().expect("a guest");
    let client = support::client(&stage, Duration::from_millis(2));
    for moment in 0..moments {
        support::protect(&mut stage, 25.0);
        std::thread::sleep(Duration::from_millis(support::random(400)));
        // Some hosts vanish without a word, of others the kernel lives on to close connections.
        if let (1, Some(network)) = (moment % 2, &stage.network) {
            network.set_wires(stage.side(), false).expect("wires that can be pulled");
        }
        support::kill_host(&mut stage);
        support::takes_over(&mut stage);
        println!("moment {moment}: taken over");
        support::audit(&stage, &client);
        assert_eq!(client.taken_back(), 0, "moment {moment}; logs in {}", stage.dir().display());
        assert!(client.hears(LONG), "moment {moment}: the connection does not go on");
        stage.change_roles().expect("the hosts change roles");
    }
    let (report, complaints) = client.finish(LONG);
    assert_eq!(complaints, Vec::<String>::new());
    println!("{moments} kills: {report:?}");
}

/// The check above must be able to fail: without a gate, with long epochs, what was answered since
/// the last of them is lost.
#[test]
fn without_a_gate_the_same_client_finds_answers_taken_back() {
    let mut found = Vec::new();
    for _ in 0..3 {
        let mut stage = support::networked_stage();
        stage.ungated = true;
        stage.start_guest().expect("a guest");
        let client = support::client(&stage, Duration::from_millis(2));
        support::protect(&mut stage, 500.0);
        just_after_a_checkpoint(&mut stage);
        let answered = client.answered();
        let deadline = Instant::now() + LONG;
        while client.answered() < answered + 20 {
            assert!(Instant::now() < deadline, "the guest does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        support::kill_host(&mut stage);
        support::takes_over(&mut stage);
        support::audit(&stage, &client);
        found.push(client.taken_back());
        if client.taken_back() > 0 {
            return;
        }
    }
    panic!("no answer was taken back in {} kills without a gate: the check is blind", found.len());
}

/// Waits until an epoch is acknowledged.
fn just_after_a_checkpoint(stage: &mut Stage) {
    let epoch = |status: &serde_json::Value| status.pointer("/epoch").and_then(serde_json::Value::as_u64);
    let protect = stage.protect.as_mut().expect("protect runs");
    let now = protect.wait_for("epoch", LONG, epoch).expect("an epoch");
    let next = protect.wait_for("next epoch", LONG, |status| epoch(status).filter(|epoch| *epoch > now));
    next.expect("another epoch");
}
