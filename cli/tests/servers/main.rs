//! Servers that know nothing of Romulus, in a guest whose host dies: an HTTP download, an
//! interactive shell, and redis with a checking client and its own benchmark. All connections go
//! on, with correct results.

mod benchmark;
mod download;
mod redis;
mod shell;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

/// Long enough for everything on a busy machine.
const LONG: Duration = Duration::from_secs(90);
/// How long the clients are at work before the kill.
const BEFORE_KILL: Duration = Duration::from_secs(2);
/// How long they go on after the takeover, at least.
const AFTER_TAKEOVER: Duration = Duration::from_secs(2);

#[test]
fn downloads_shells_and_databases_outlive_their_host() {
    let mut stage = support::networked_stage();
    stage.machine.servers = true;
    stage.standby = stage.machine.clone();
    stage.start_guest().unwrap_or_else(|e| panic!("{e}"));
    support::protect(&mut stage, 25.0);
    let network = stage.network.as_ref().expect("a network");
    let (download, shell, redis, benchmark) = network
        .world()
        .run(|| {
            (
                download::Download::start(LONG),
                shell::Shell::start(LONG),
                redis::Redis::start(LONG),
                benchmark::Benchmark::start(),
            )
        })
        .unwrap_or_else(|e| panic!("{e}"));
    let mut benchmark = benchmark;
    std::thread::sleep(BEFORE_KILL);
    assert!(!download.has_ended(), "the download ended before the kill: nothing is shown");
    assert!(!benchmark.has_ended(), "the benchmark ended before the kill: nothing is shown");
    let (typed, counted) = (shell.answers(), redis.answers());
    assert!(typed > 0 && counted > 0, "{typed} lines typed, {counted} commands");

    support::kill_host(&mut stage);
    support::takes_over(&mut stage);
    let network = stage.network.as_ref().expect("a network");
    network.world().run(|| redis.knows_what_it_said(LONG)).unwrap_or_else(|e| panic!("{e}"));
    std::thread::sleep(AFTER_TAKEOVER);
    let typed_after = shell.finish(LONG);
    let counted_after = redis.finish(LONG);
    let rate = download.finish(LONG);
    let requests = benchmark.finish(LONG);
    network.world().run(|| redis::counts(benchmark::KEY, requests, LONG)).unwrap_or_else(|e| panic!("{e}"));
    assert!(typed_after > typed && counted_after > counted, "no answer after the takeover");
    println!(
        "download intact at {rate:.1} MB/s; {typed} + {} shell lines; {counted} + {} redis commands; \
         redis-benchmark {requests} requests",
        typed_after - typed,
        counted_after - counted
    );
}
