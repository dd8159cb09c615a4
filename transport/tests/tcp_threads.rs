//! The tcp fabric's threads: named, announced to the hook, and gone after close.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Arena, Endpoint, Fabric, Memory};

const PATIENCE: Duration = Duration::from_secs(120);

/// The names of this process's threads that belong to the fabric.
fn running() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let mut names: Vec<String> = names.map(|name| name.trim().to_string()).collect();
    names.retain(|name| name.starts_with("rom-"));
    names.sort();
    names
}

#[test]
fn threads_are_announced_by_name_and_gone_after_close() {
    let announced = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let in_hook = Arc::clone(&announced);
    let hook = move |name: &str| {
        assert_eq!(std::thread::current().name(), Some(name), "called in the thread itself");
        *in_hook.lock().unwrap().entry(name.to_string()).or_default() += 1;
    };
    let silent_after = Duration::from_secs(60);
    let on_thread_start = Some(Arc::new(hook) as romulus_transport::tcp::ThreadHook);
    let fabric =
        TcpFabric::new(TcpConfig { streams: 3, silent_after, on_thread_start, ..TcpConfig::default() });

    let mut listener = fabric.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).unwrap();
    let mut responder = listener.accept(PATIENCE).unwrap().unwrap();
    let arena = Arena::new([Memory::anonymous(4096)]);
    let answer = responder.answer(&initiator.offer().unwrap(), arena).unwrap();
    let initiator = initiator.establish(Some(&answer), PATIENCE).unwrap();
    let responder: Arc<dyn Endpoint> = responder.establish(None, PATIENCE).unwrap();
    initiator.mark(1).unwrap();
    responder.next_event(&mut Default::default(), PATIENCE).unwrap();

    responder.close();
    initiator.close();
    drop(listener);
    // A thread that was joined may be listed for a moment more.
    let start = Instant::now();
    while !running().is_empty() {
        assert!(start.elapsed() < PATIENCE, "still running: {:?}", running());
        std::thread::yield_now();
    }
    let expected =
        [("rom-accept", 1), ("rom-data-0", 1), ("rom-data-1", 1), ("rom-data-2", 1), ("rom-heartbeat", 2)];
    let expected = expected.map(|(name, count)| (name.to_string(), count));
    assert_eq!(*announced.lock().unwrap(), BTreeMap::from(expected));
}
