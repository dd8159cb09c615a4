//! The fabric's threads, and ways to wait.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use romulus_transport::rdma::RdmaConfig;

use super::pair::{PATIENCE, Pair, Place, patient};

/// The names of this process's threads that belong to the fabric.
fn running() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the list of threads");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let names = names.map(|name| name.trim().to_string());
    names.filter(|name| name.starts_with("rom-")).collect()
}

pub fn threads_are_announced_and_gone_after_close(place: &Place) {
    let announced = Arc::new(Mutex::new(Vec::<String>::new()));
    let in_hook = Arc::clone(&announced);
    let hook = move |name: &str| {
        assert_eq!(std::thread::current().name(), Some(name), "called in the thread itself");
        in_hook.lock().expect("the list").push(name.to_string());
    };
    let on_thread_start = Some(Arc::new(hook) as romulus_transport::rdma::ThreadHook);
    let config = || RdmaConfig { on_thread_start: on_thread_start.clone(), ..patient() };
    let pair = Pair::of(place.socket(), config(), config(), |_| {}).expect("a connection");
    pair.works();
    pair.responder.close();
    pair.initiator.close();
    // A thread that was joined may be listed for a moment more.
    let start = Instant::now();
    while !running().is_empty() {
        assert!(start.elapsed() < PATIENCE, "still running: {:?}", running());
        std::thread::yield_now();
    }
    let mut announced = announced.lock().expect("the list").clone();
    announced.sort();
    assert_eq!(announced, ["rom-accept", "rom-heartbeat", "rom-heartbeat"]);
}

pub fn spinning_and_blocking_both_work(place: &Place) {
    for spin in [None, Some(Duration::ZERO), Some(Duration::from_micros(50)), Some(Duration::from_millis(2))]
    {
        let config = || RdmaConfig { spin, ..patient() };
        Pair::of(place.socket(), config(), config(), |_| {}).expect("a connection").works();
    }
}
