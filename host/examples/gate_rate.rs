//! Compares the packet rate of the output gate with that of a plain loop that reads one tap and
//! writes another, over the same two taps: the gate's way (its thread, its memory, its marks and
//! releases at 40 epochs a second) against nothing but the system calls. On a busy machine the packets
//! a CPU second are the better measure.
//!
//! Needs root. `cargo run --release -p romulus-host --example gate_rate`

mod gate_lab;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gate_lab::{GUEST, INTERVAL, acked, cpu_s, plain_frame, run};
use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions, Tap};

const RUNS: usize = 5;
const PACKETS: u64 = 200_000;

fn main() {
    gate_lab::enter_namespace();
    for bytes in [64, 1500] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let (plain, gate) = (rate(bytes, false), rate(bytes, true));
            rates.push(gate.a_second / plain.a_second);
            costs.push(gate.a_cpu_second / plain.a_cpu_second);
            println!(
                "{bytes:>5} bytes: plain {:>6.0} packets/s, {:>6.0} a CPU second; gate {:>6.0}, {:>6.0}; ratio {:.3}, \
                 {:.3}",
                plain.a_second,
                plain.a_cpu_second,
                gate.a_second,
                gate.a_cpu_second,
                gate.a_second / plain.a_second,
                gate.a_cpu_second / plain.a_cpu_second
            );
        }
        for (what, mut ratios) in [("packets a second", rates), ("packets a CPU second", costs)] {
            ratios.sort_by(f64::total_cmp);
            println!("{bytes:>5} bytes: median ratio of {what}: {:.3} ({RUNS} pairs)", ratios[RUNS / 2]);
        }
    }
}

/// What came of a run.
struct Rate {
    a_second: f64,
    /// Of the forwarder, the sender's own left out.
    a_cpu_second: f64,
}

/// Packets a second that pass from a guest's tap to the bridge and out of it.
fn rate(bytes: usize, through_gate: bool) -> Rate {
    run("ip", "link add br0 type bridge");
    let guest = Tap::create("guest0").expect("a tap");
    run("ip", "link set guest0 addrgenmode none master br0 up");
    run("ip", "link set br0 addrgenmode none up");
    // The gate's own taps serve the plain loop too: made and closed by it, emptied by the loop.
    let packets = if through_gate { gated(&guest, bytes) } else { plain(&guest, bytes) };
    drop(guest);
    run("ip", "link del br0");
    packets
}

fn gated(guest: &Tap, bytes: usize) -> Rate {
    let spec = NicSpec { nic: "net0".into(), tap: "guest0".into(), mac: GUEST };
    let gate = RedirectGate::new(&[spec], &RedirectOptions::default()).expect("a gate");
    gate.hold().expect("holding");
    let (over, runs) = (AtomicBool::new(false), Mutex::new(()));
    let rate = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each epoch is acked when the next one ends: everything is held for an interval at least.
            let mut mark = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(INTERVAL);
                gate.release(&acked(mark));
                mark += 1;
                // The guest stands still.
                let _paused = runs.lock();
                gate.mark(GateMark(mark)).expect("a mark");
            }
        });
        let rate = flood(guest, bytes, &runs, &|| gate.passed().0, &|| gate.passed().1);
        over.store(true, Ordering::Relaxed);
        rate
    });
    gate.detach().expect("detaching");
    rate
}

fn plain(guest: &Tap, bytes: usize) -> Rate {
    let (inlet, outlet) = (Tap::create("inlet0").expect("a tap"), Tap::create("outlet0").expect("a tap"));
    let queue = romulus_host::gate::INLET_QUEUE_PACKETS;
    run("ip", &format!("link set inlet0 addrgenmode none txqueuelen {queue} up"));
    run("ip", "link set outlet0 addrgenmode none master br0 up");
    let tc = "filter add dev guest0 ingress protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev \
              inlet0";
    for arguments in ["qdisc replace dev inlet0 root noqueue", "qdisc add dev guest0 clsact", tc] {
        run("tc", arguments);
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
        let passed = || passed.load(Ordering::Relaxed);
        let rate = flood(guest, bytes, &Mutex::new(()), &passed, &passed);
        over.store(true, Ordering::Relaxed);
        rate
    })
}

/// Sends a number of frames as fast as they are read: never more than half a queue ahead, so that
/// none is dropped. Packets a second until the last of them has passed.
fn flood(
    guest: &Tap,
    bytes: usize,
    runs: &Mutex<()>,
    read: &dyn Fn() -> u64,
    passed: &dyn Fn() -> u64,
) -> Rate {
    let frame = plain_frame(bytes);
    let (begun, cpu_begun) = (Instant::now(), cpu_of_others());
    let mut sent = 0;
    while sent < PACKETS {
        if sent.saturating_sub(read()) > u64::from(romulus_host::gate::INLET_QUEUE_PACKETS) / 2 {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        let _runs = runs.lock();
        for _ in 0..256 {
            let _ = guest.write(&frame).expect("sending");
        }
        sent += 256;
    }
    while passed() < sent {
        std::thread::sleep(Duration::from_micros(500));
    }
    let packets = sent as f64;
    Rate {
        a_second: packets / begun.elapsed().as_secs_f64(),
        a_cpu_second: packets / (cpu_of_others() - cpu_begun),
    }
}

/// CPU time of all threads but this one, which plays the guest, in seconds.
fn cpu_of_others() -> f64 {
    cpu_s(libc::RUSAGE_SELF) - cpu_s(libc::RUSAGE_THREAD)
}
