//! The program itself, both roles as processes of their own: what is verified, and that what is
//! wrong is found.

mod pair;
mod wrong_use;

use pair::{Pair, Process};
use rustix::process::{Pid, Signal, kill_process};

const EXACT: i32 = 0;
const NOT_EXACT: i32 = 3;
const MOVED: i32 = 5;

#[test]
fn a_guest_whose_host_is_killed_goes_on_exact() {
    for capture in ["staged", "direct"] {
        let mut pair = Pair::start_watchful(false, &[], &["--seconds", "0", "--capture", capture]);
        pair.backup.expect_line("protected");
        pair.primary.kill();
        assert_eq!(pair.backup.wait(), Some(EXACT), "{capture}");
        let result = pair.backup.result();
        assert_eq!(result["outcome"], "taken_over");
        assert_eq!(result["verified"]["exact"], true);
        assert_eq!(result["output_right"], true);
        assert!(result["epoch"].as_u64().unwrap() >= 1);
        assert!(result["takeover"]["detection_ms"].as_f64().unwrap() >= 0.0);
    }
}

#[test]
fn a_run_that_ends_with_a_planned_failover_is_measured_and_verified() {
    let mut pair = Pair::start(true, &[], &["--seconds", "1"]);
    assert_eq!(pair.primary.wait(), Some(EXACT));
    assert_eq!(pair.backup.wait(), Some(EXACT));
    let (primary, backup) = (pair.primary.result(), pair.backup.result());
    assert_eq!(primary["outcome"], "taken_over");
    assert_eq!(primary["guest_destroyed"], true);
    let measured = &primary["measured"];
    assert!(measured["epochs"].as_u64().unwrap() > 0 && measured["seconds"].as_f64().unwrap() >= 1.0);
    assert!(measured["guest_writes"].as_u64().unwrap() > 0);
    assert_eq!(backup["verified"]["exact"], true);
    assert_eq!(backup["epoch"], primary["status"]["epoch"]);
    // What is released is what is committed, and all of it was heard here.
    assert_eq!(backup["verified"]["pause"], primary["released_pause"]);
}

#[test]
fn a_stopped_run_leaves_the_backup_without_a_verdict() {
    let mut pair = Pair::start(true, &[], &["--seconds", "1", "--end", "stop"]);
    assert_eq!(pair.primary.wait(), Some(0));
    assert_eq!(pair.backup.wait(), Some(0));
    assert_eq!(pair.primary.result()["outcome"], "stopped");
    let backup = pair.backup.result();
    assert_eq!((&backup["outcome"], &backup["verified"]), (&"left_alone".into(), &serde_json::Value::Null));
}

#[test]
fn a_damaged_page_is_found_and_named() {
    let mut pair = Pair::start(true, &["--damage-page", "77"], &["--seconds", "1"]);
    assert_eq!(pair.backup.wait(), Some(NOT_EXACT));
    let result = pair.backup.result();
    assert_eq!(result["verified"]["corrupt_pages"], 1);
    assert!(result["verified"]["first_fault"].as_str().unwrap().starts_with("page 77:"), "{result}");
}

/// I6: a primary that was stopped in the middle of an epoch wakes as a zombie.
fn zombie(file: bool, capture: &str) -> (serde_json::Value, Option<i32>) {
    // With an arbiter the zombie learns what happened; without one it only waits.
    let patience = if file { "60" } else { "3" };
    let arguments = ["--seconds", "0", "--capture", capture, "--stop-in-epoch", "20", "--patience", patience];
    let mut pair = Pair::start_watchful(file, &["--hold-until", "HOLD"], &arguments);
    pair.primary.expect_line("stopping in epoch 20");
    let hash = pair.backup.expect_line("holding until");
    kill_process(Pid::from_raw(pair.primary.pid()).unwrap(), Signal::CONT).unwrap();
    let status = pair.primary.wait();
    std::fs::write(pair.folder.path().join("go"), "").unwrap();
    assert_eq!(pair.backup.wait(), Some(EXACT));

    let (primary, backup) = (pair.primary.result(), pair.backup.result());
    assert_eq!(backup["held"]["unchanged"], true);
    assert!(hash.ends_with(backup["held"]["hash_after"].as_str().unwrap()));
    assert_eq!(backup["held"]["verified_again"]["exact"], true);
    assert_eq!(backup["output_right"], true);
    assert!(backup["epoch"].as_u64().unwrap() < 20, "the half-sent epoch is not committed");
    let zombie = &primary["zombie"];
    // Half of 200 pages and of their commit slot, which leave together.
    for half in ["bytes_before", "bytes_after"] {
        assert!(zombie[half].as_u64().unwrap() >= 100 * 4096, "{zombie}");
    }
    let errors = zombie["errors"].as_array().unwrap();
    // What its sender meets and what its control thread meets, in either order.
    assert!(errors.iter().any(|error| error.as_str().unwrap().contains("connection ended")), "{zombie}");
    assert!(primary["released_pause"].as_u64() <= backup["verified"]["pause"].as_u64());
    assert_eq!(primary["ran_alone"], false);
    (primary, status)
}

#[test]
fn i6_a_zombie_changes_nothing_and_is_destroyed() {
    for capture in ["staged", "direct"] {
        let (primary, status) = zombie(true, capture);
        assert_eq!(status, Some(MOVED));
        assert_eq!(primary["outcome"], "taken_over");
        assert_eq!(primary["guest_destroyed"], true);
    }
}

#[test]
fn i6_a_zombie_without_an_arbiter_changes_nothing_and_holds_its_output() {
    let (primary, status) = zombie(false, "staged");
    assert_eq!(status, Some(1));
    assert_eq!(primary["outcome"], "unreachable");
}

#[test]
fn threads_are_where_the_plan_wants_them() {
    let core = *romulus_host::pinning::usable_cores().last().unwrap();
    let plan = format!("capture={core},sender={core},committer={core},rom-data={core}");
    let mut pair =
        Pair::start(true, &["--pin", &plan], &["--pin", &plan, "--seconds", "1", "--spin-us", "20"]);
    assert_eq!(pair.primary.wait(), Some(EXACT));
    assert_eq!(pair.backup.wait(), Some(EXACT));
    for (process, names) in
        [(&pair.primary, ["capture", "sender"]), (&pair.backup, ["committer", "rom-data-0"])]
    {
        let result = process.result();
        let threads = result["threads"].as_array().unwrap();
        for name in names {
            let thread = threads.iter().find(|thread| thread["name"] == name);
            let thread = thread.unwrap_or_else(|| panic!("no thread {name} in {threads:?}"));
            assert_eq!(thread["cores"], core.to_string());
        }
    }
}

#[test]
fn a_fabric_is_measured_beside_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["fabric", "--sizes", "4k,1m", "--seconds", "0.05", "--rounds", "2"];
    let mut process = Process::start(&folder, "fabric", &arguments);
    assert_eq!(process.wait(), Some(0));
    let result = process.result();
    let sizes = result["bandwidth"].as_array().unwrap();
    assert_eq!(sizes.len(), 2);
    for size in sizes {
        assert_eq!(size["pairs"].as_array().unwrap().len(), 2);
        assert!(size["ratio"]["median"].as_f64().unwrap() > 0.0);
    }
    for latency in ["fence_4k", "message"] {
        assert!(result["latency"][latency]["count"].as_u64().unwrap() > 0);
        assert!(!result["latency"][latency]["buckets"].as_array().unwrap().is_empty());
    }
}

#[test]
fn a_client_measures_with_a_server_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    // Its port is not known before: the first client that finds it free takes it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let server = ["fabric", "--role", "server", "--listen", &port, "--once"];
    let mut server = Process::start(&folder, "server", &server);
    let client = ["fabric", "--role", "client", "--peer", &port, "--sizes", "64k", "--seconds", "0.05"];
    let mut client = Process::start(&folder, "client", &client);
    assert_eq!(client.wait(), Some(0));
    assert_eq!(server.wait(), Some(0));
    assert!(client.result()["server"]["kernel"].is_string());
}
