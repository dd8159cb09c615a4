//! A network of its own: a bridge, a tap that plays the guest's card, and one that plays the world.

use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::arbiter::{Ownership, Record, SoloGrant, solo_grant};
use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::wire::message::{Message, decode, encode};
use romulus_checkpoint::{Epoch, GateMark, Generation, HomingSequence, Identity};
use romulus_host::gate::{Mac, NicSpec, RedirectGate, RedirectOptions, Tap, VNET_HEADER_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Limit for everything that only takes long when something is wrong.
pub const LONG: Duration = Duration::from_secs(60);
/// The guest's address.
pub const GUEST: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// An address that is nobody's: frames to it are flooded.
const NOBODY: Mac = [2, 0, 0, 0, 0, 9];
/// The type of the test's frames.
const TYPE: [u8; 2] = [0x88, 0xb5];
const HEADER_BYTES: usize = 14;

/// A bridge with two taps, in a network namespace that this thread has for itself.
pub struct World {
    pub guest: Tap,
    pub client: Tap,
}

impl World {
    /// Moves this thread into a new network namespace and sets up the bridge there.
    pub fn new() -> Self {
        enter_namespace();
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

/// A new network namespace for this thread.
pub fn enter_namespace() {
    // SAFETY: no other thread of this process shares the new namespace, and none needs to.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "a network namespace needs root: run as root ({})", io::Error::last_os_error());
    ip("link set lo up");
}

/// Runs `ip` in this thread's namespace.
pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs a command in this thread's namespace.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (Debian's iproute2): {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
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

/// Sends a numbered frame of `payload` bytes beside its header.
pub fn send(tap: &Tap, number: u64, payload: usize) {
    let mut frame = vec![0; VNET_HEADER_BYTES];
    frame.extend(NOBODY);
    frame.extend(GUEST);
    frame.extend(TYPE);
    frame.extend(number.to_be_bytes());
    frame.resize(VNET_HEADER_BYTES + HEADER_BYTES + payload.max(8), 0);
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

/// A token of an Ack, decoded from a message's bytes as it has to be.
pub fn acked(through: u64) -> ReleaseToken {
    let ack = Message::Ack {
        committed: Epoch(through),
        homed_through: HomingSequence(0),
        proof: romulus_checkpoint::wire::AckProof::outgoing(),
    };
    let mut bytes = Vec::new();
    encode(&Identity::default(), &ack, &mut bytes);
    let (_, message) = decode(&bytes).expect("an Ack");
    let Message::Ack { proof, .. } = message else { panic!("an Ack stays an Ack") };
    ReleaseToken::acked(GateMark(through), &proof).expect("a decoded proof")
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
