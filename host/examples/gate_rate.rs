//! Compares the packet rate of the output gate with that of a plain loop that reads one tap and
//! writes another, over the same two taps: the gate's way (its thread, its memory, its marks and
//! releases at 40 epochs a second) against nothing but the system calls.
//!
//! Needs root. `cargo run --release -p romulus-host --example gate_rate`

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use romulus_checkpoint::gate::OutputGate;
use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{Message, decode, encode};
use romulus_checkpoint::{Epoch, GateMark, HomingSequence, Identity};
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions, Tap, VNET_HEADER_BYTES};

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const RUNS: usize = 5;
const RUN_TIME: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(25);

fn main() {
    // SAFETY: this thread, and those it starts later, have the new namespace for themselves.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "a network namespace needs root");
    for bytes in [64, 1500] {
        let mut ratios = Vec::new();
        for _ in 0..RUNS {
            let plain = rate(bytes, false);
            let gate = rate(bytes, true);
            println!(
                "{bytes:>5} bytes: plain {:>7.0} packets/s, gate {:>7.0} packets/s, ratio {:.3}",
                plain,
                gate,
                gate / plain
            );
            ratios.push(gate / plain);
        }
        ratios.sort_by(f64::total_cmp);
        println!("{bytes:>5} bytes: median ratio {:.3} of {RUNS} pairs", ratios[RUNS / 2]);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (Debian's iproute2)");
    assert!(status.success(), "ip {arguments}");
}

/// Packets a second that pass from a guest's tap to the bridge and out of it.
fn rate(bytes: usize, through_gate: bool) -> f64 {
    ip("link add br0 type bridge");
    let guest = Tap::create("guest0").expect("a tap");
    ip("link set guest0 addrgenmode none master br0 up");
    ip("link set br0 addrgenmode none up");
    // The gate's own taps serve the plain loop too: made and closed by it, emptied by the loop.
    let packets = if through_gate { gated(&guest, bytes) } else { plain(&guest, bytes) };
    drop(guest);
    ip("link del br0");
    packets
}

fn gated(guest: &Tap, bytes: usize) -> f64 {
    let spec = NicSpec { nic: "net0".into(), tap: "guest0".into(), mac: GUEST };
    let gate = RedirectGate::new(&[spec], &RedirectOptions::default()).expect("a gate");
    gate.hold().expect("holding");
    let over = AtomicBool::new(false);
    let rate = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each epoch is acked when the next one ends: an interval held, at least.
            let mut mark = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(INTERVAL);
                gate.release(&acked(mark));
                mark += 1;
                gate.mark(GateMark(mark)).expect("a mark");
            }
        });
        let released = || gate.status()[0].released_packets;
        let rate = flood(guest, bytes, &released);
        over.store(true, Ordering::Relaxed);
        rate
    });
    gate.detach().expect("detaching");
    rate
}

fn plain(guest: &Tap, bytes: usize) -> f64 {
    let (inlet, outlet) = (Tap::create("inlet0").expect("a tap"), Tap::create("outlet0").expect("a tap"));
    let queue = romulus_host::gate::INLET_QUEUE_PACKETS;
    ip(&format!("link set inlet0 addrgenmode none txqueuelen {queue} up"));
    ip("link set outlet0 addrgenmode none master br0 up");
    let tc = "filter add dev guest0 ingress protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev \
              inlet0";
    for arguments in ["qdisc replace dev inlet0 root noqueue", "qdisc add dev guest0 clsact", tc] {
        assert!(Command::new("tc").args(arguments.split_whitespace()).status().expect("tc").success());
    }
    let (over, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut frame = vec![0; 66_000];
            while !over.load(Ordering::Relaxed) {
                let mut polled = [rustix::event::PollFd::new(&inlet, rustix::event::PollFlags::IN)];
                let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let _ = rustix::event::poll(&mut polled, Some(&timeout));
                while let Some(length) = inlet.read(&mut frame).expect("reading") {
                    let _ = outlet.write(&frame[..length]).expect("writing");
                    passed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let rate = flood(guest, bytes, &|| passed.load(Ordering::Relaxed));
        over.store(true, Ordering::Relaxed);
        rate
    })
}

/// Sends as fast as it can, more than can pass: what counts is how many do.
fn flood(guest: &Tap, bytes: usize, passed: &dyn Fn() -> u64) -> f64 {
    let mut frame = vec![0; VNET_HEADER_BYTES];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(GUEST);
    frame.extend([0x88, 0xb5]);
    frame.resize(VNET_HEADER_BYTES + bytes, 0);
    let begun = Instant::now();
    let first = passed();
    while begun.elapsed() < RUN_TIME {
        for _ in 0..256 {
            let _ = guest.write(&frame).expect("sending");
        }
    }
    (passed() - first) as f64 / begun.elapsed().as_secs_f64()
}

fn acked(through: u64) -> ReleaseToken {
    let proof = AckProof::outgoing();
    let ack = Message::Ack { committed: Epoch(through), homed_through: HomingSequence(0), proof };
    let mut bytes = Vec::new();
    encode(&Identity::default(), &ack, &mut bytes);
    match decode(&bytes) {
        Ok((_, Message::Ack { proof, .. })) => {
            ReleaseToken::acked(GateMark(through), &proof).expect("decoded")
        }
        other => panic!("an Ack stays an Ack: {other:?}"),
    }
}
