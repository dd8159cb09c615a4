//! A network of its own: a bridge, a tap that plays the guest's card, and one that plays the world.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::Generation;
use romulus_checkpoint::arbiter::{Ownership, Record, SoloGrant, solo_grant};
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions, Tap, VNET_HEADER_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::gate_lab::{ETHERNET_BYTES, GUEST, TYPE, enter_namespace, plain_frame, run};

/// Limit for everything that only takes long when something is wrong.
pub const LONG: Duration = Duration::from_secs(60);

/// A bridge with two taps, in a network namespace that this thread has for itself.
pub struct World {
    pub guest: Tap,
    pub client: Tap,
}

impl World {
    /// Moves this thread into a new network namespace and sets up the bridge there.
    pub fn new() -> Self {
        enter_namespace();
        ip("link set lo up");
        ip("link add br0 type bridge");
        let guest = Tap::create("guest0").expect("a tap for the guest");
        let client = Tap::create_plain("client0").expect("a tap for the client");
        for tap in ["guest0", "client0"] {
            ip(&format!("link set {tap} addrgenmode none master br0 txqueuelen 200000 up"));
        }
        ip("link set br0 addrgenmode none up");
        // The kernel tells of its carrier a moment later.
        let deadline = Instant::now() + LONG;
        while !ip("link show br0").contains("state UP") {
            assert!(Instant::now() < deadline, "the bridge does not come up");
        }
        Self { guest, client }
    }

    pub fn spec(&self) -> NicSpec {
        NicSpec { nic: "net0".into(), tap: "guest0".into(), mac: GUEST }
    }

    pub fn gate(&self) -> RedirectGate {
        self.gate_with(&RedirectOptions::default())
    }

    pub fn gate_with(&self, options: &RedirectOptions) -> RedirectGate {
        RedirectGate::new(&[self.spec()], options).expect("a gate")
    }

    /// The guest sends a numbered frame.
    pub fn send(&self, number: u64) {
        send(&self.guest, number, 46);
    }

    /// The number of the next frame that the client receives, at most `patience` from now.
    pub fn receive(&self, patience: Duration) -> Option<u64> {
        receive(&self.client, 0, patience)
    }

    /// The client receives exactly these, in order, and then nothing that was sent before.
    pub fn expect(&self, numbers: impl IntoIterator<Item = u64>) {
        for expected in numbers {
            assert_eq!(self.receive(LONG), Some(expected));
        }
        assert_eq!(self.receive(Duration::ZERO), None, "nothing more");
    }
}

/// Waits until `condition` gives something.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `ip` in this thread's namespace.
pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Everything that is set in this namespace and a gate could leave behind.
pub fn listing() -> String {
    let links = run("ip", "-d link show");
    // Timers of bridges tick.
    let settings =
        links.split_whitespace().filter(|word| !(word.contains('.') && word.parse::<f64>().is_ok()));
    let text = settings.collect::<Vec<_>>().join(" ");
    let fdb = run("bridge", "fdb show");
    // Groups that the kernel joins and leaves on interfaces of its own accord, a moment after they come up.
    let is_group = |line: &str| line.starts_with("33:33:") || line.starts_with("01:00:5e:");
    let lasts = |line: &str| line.contains("permanent") || line.contains("static");
    let mut fdb: Vec<&str> = fdb.lines().filter(|line| lasts(line) && !is_group(line)).collect();
    fdb.sort_unstable();
    format!("{text}\n{}\n{}", run("tc", "qdisc show"), fdb.join("\n"))
}

/// All is as it was before. A program that another test starts has the gate's taps open for a moment as well.
pub fn expect_as_before(before: &str) {
    let deadline = Instant::now() + LONG;
    loop {
        let now = listing();
        if now == before {
            return;
        }
        assert!(Instant::now() < deadline, "not as before within {LONG:?}: {now}\nbefore: {before}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a numbered frame of `payload` bytes beside its header.
pub fn send(tap: &Tap, number: u64, payload: usize) {
    let mut frame = plain_frame(ETHERNET_BYTES + payload.max(8));
    frame[VNET_HEADER_BYTES + ETHERNET_BYTES..][..8].copy_from_slice(&number.to_be_bytes());
    assert!(tap.write(&frame).expect("the guest's tap takes frames"), "a tap always takes a frame");
}

/// The number of the next of the test's frames that arrives on a tap.
pub fn receive(tap: &Tap, header: usize, patience: Duration) -> Option<u64> {
    let deadline = Instant::now() + patience;
    let mut frame = [0; 66_000];
    loop {
        match tap.read(&mut frame).expect("the tap can be read") {
            Some(length) => {
                let frame = &frame[header..length];
                if frame.get(12..14) == Some(&TYPE[..]) {
                    return Some(u64::from_be_bytes(frame[14..22].try_into().expect("eight bytes")));
                }
            }
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = Timespec::try_from(left).expect("a short time");
                let mut polled = [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)];
                if rustix::event::poll(&mut polled, Some(&timeout)).expect("polling") == 0 && left.is_zero() {
                    return None;
                }
            }
        }
    }
}

/// A grant to run alone.
pub fn grant() -> SoloGrant {
    let ownership = Ownership::Solo { primary: "here".into() };
    solo_grant(&Record { ownership, generation: Generation(1), nonce: 1 }, "here").expect("a grant")
}

/// Options with a memory of this many MiB.
pub fn with_memory(mib: u64) -> RedirectOptions {
    RedirectOptions { memory_bytes: mib << 20, threads: Arc::new(|_| {}) }
}
