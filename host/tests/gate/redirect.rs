//! What a gate does while it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;
use romulus_checkpoint::release::ReleaseToken;
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions, Tap, VNET_HEADER_BYTES};

use crate::gate_lab::{GUEST, acked, run, segment};
use crate::world::{
    LONG, World, eventually, expect_as_before, grant, ip, listing, receive, send, with_memory,
};

/// Long enough that a frame which is not held would have come.
pub const MOMENT: Duration = Duration::from_millis(100);

pub fn opened() -> ReleaseToken {
    ReleaseToken::solo(&grant())
}

pub fn order() {
    let world = World::new();
    world.send(0);
    world.expect([0]);
    let gate = world.gate();
    world.send(1);
    world.expect([1]);
    gate.hold().unwrap();
    (10..20).for_each(|number| world.send(number));
    gate.mark(GateMark(1)).unwrap();
    (20..30).for_each(|number| world.send(number));
    gate.mark(GateMark(2)).unwrap();
    (30..40).for_each(|number| world.send(number));
    assert_eq!(world.receive(MOMENT), None, "all is held");
    gate.release(&acked(1));
    world.expect(10..20);
    assert_eq!(world.receive(MOMENT), None, "the rest is held");
    gate.release(&acked(1));
    assert_eq!(world.receive(MOMENT), None, "a mark releases once what is its own");
    gate.release(&acked(2));
    world.expect(20..30);
    gate.release(&opened());
    world.expect(30..40);
    world.send(40);
    world.expect([40]);
    gate.detach().unwrap();
}

pub fn hold_again() {
    let world = World::new();
    let gate = world.gate();
    for round in 0..20 {
        gate.hold().unwrap();
        world.send(round * 10);
        gate.mark(GateMark(round + 1)).unwrap();
        world.send(round * 10 + 1);
        assert_eq!(world.receive(Duration::from_millis(10)), None, "round {round}");
        // The grant comes instead of the ack, and then a new backup.
        gate.release(&opened());
        world.expect([round * 10, round * 10 + 1]);
    }
    gate.hold().unwrap();
    world.send(7);
    gate.release(&acked(20));
    assert_eq!(world.receive(MOMENT), None, "marks before a hold release nothing of it");
    gate.release(&opened());
    world.expect([7]);
    gate.detach().unwrap();
}

/// A writer that sends as fast as it can, and stands still while the lock is held: a guest.
struct Writer {
    running: Arc<Mutex<()>>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Tap>,
}

impl Writer {
    /// It is never more than this ahead of what was received: the kernel's queues have room for all.
    const MOST_AHEAD: u64 = 8_000;

    fn start(guest: Tap) -> Self {
        let running = Arc::<Mutex<()>>::default();
        let (sent, received) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let over = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let (running, sent, over) = (running.clone(), sent.clone(), over.clone());
            let received = received.clone();
            move || {
                while !over.load(Ordering::SeqCst) {
                    let ahead = sent.load(Ordering::SeqCst) - received.load(Ordering::SeqCst);
                    if ahead >= Self::MOST_AHEAD {
                        std::thread::yield_now();
                        continue;
                    }
                    let runs = running.lock().unwrap_or_else(PoisonError::into_inner);
                    for _ in 0..32 {
                        let number = sent.load(Ordering::SeqCst);
                        send(&guest, number, 46 + (number % 1400) as usize);
                        sent.store(number + 1, Ordering::SeqCst);
                    }
                    drop(runs);
                }
                guest
            }
        });
        Self { running, sent, received, over, thread }
    }

    fn end(self) -> (Tap, u64) {
        self.over.store(true, Ordering::SeqCst);
        (self.thread.join().expect("the writer"), self.sent.load(Ordering::SeqCst))
    }
}

pub fn boundaries() {
    let world = World::new();
    let gate = world.gate();
    gate.hold().unwrap();
    let World { guest, client } = world;
    let writer = Writer::start(guest);
    let mut received = 0;
    for epoch in 1..=200 {
        eventually("the guest makes progress", || {
            (writer.sent.load(Ordering::SeqCst) > received + 64 * (epoch % 3)).then_some(())
        });
        // The guest stands still for this long alone.
        let pause = writer.running.lock().unwrap();
        let boundary = writer.sent.load(Ordering::SeqCst);
        gate.mark(GateMark(epoch)).unwrap();
        drop(pause);
        if epoch % 4 == 0 {
            // Some marks are acked together.
            continue;
        }
        gate.release(&acked(epoch));
        while received < boundary {
            assert_eq!(receive(&client, 0, LONG), Some(received), "epoch {epoch}");
            received += 1;
            writer.received.store(received, Ordering::SeqCst);
        }
        assert_eq!(
            receive(&client, 0, Duration::ZERO),
            None,
            "epoch {epoch}: {boundary} were sent before its mark"
        );
    }
    let (guest, sent) = writer.end();
    gate.release(&opened());
    for expected in received..sent {
        assert_eq!(receive(&client, 0, LONG), Some(expected));
    }
    let status = eventually("the counts follow", || {
        Some(gate.status().remove(0)).filter(|status| status.released_packets == sent)
    });
    assert_eq!((status.dropped_packets, status.full_hits), (0, 0));
    assert!(status.held_us.max > 0);
    gate.detach().unwrap();
    drop(guest);
}

pub fn many() {
    const PACKETS: u64 = 100_000;
    let world = World::new();
    let gate = world.gate();
    gate.hold().unwrap();
    // As fast as the gate reads: what is beyond its queue's length would be the kernel's to drop.
    for number in 0..PACKETS {
        send(&world.guest, number, 1486);
        if number % 8192 == 8191 {
            eventually("the gate reads", || (gate.level().packets > number).then_some(()));
        }
    }
    eventually("the gate reads", || (gate.level().packets == PACKETS).then_some(()));
    assert_eq!(gate.level().bytes, PACKETS * (1500 + VNET_HEADER_BYTES as u64));
    gate.mark(GateMark(1)).unwrap();
    gate.release(&acked(1));
    world.expect(0..PACKETS);
    eventually("the level falls", || (gate.level().packets == 0).then_some(()));
    assert_eq!(gate.status()[0].dropped_packets, 0);
    gate.detach().unwrap();
}

pub fn two_cards() {
    let world = World::new();
    let second = Tap::create("guest1").unwrap();
    ip("link set guest1 addrgenmode none master br0 up");
    let other = NicSpec { nic: "net1".into(), tap: "guest1".into(), mac: [2, 0, 0, 0, 0, 0x11] };
    let gate = RedirectGate::new(&[world.spec(), other], &RedirectOptions::default()).unwrap();
    gate.hold().unwrap();
    world.send(1);
    send(&second, 2, 46);
    gate.mark(GateMark(1)).unwrap();
    send(&second, 3, 46);
    assert_eq!(world.receive(MOMENT), None);
    gate.release(&acked(1));
    let mut first: Vec<u64> = (0..2).filter_map(|_| world.receive(LONG)).collect();
    first.sort_unstable();
    assert_eq!(first, [1, 2]);
    assert_eq!(world.receive(MOMENT), None);
    gate.release(&opened());
    world.expect([3]);
    assert_eq!(gate.status().len(), 2);
    gate.detach().unwrap();
}

pub fn queues() {
    const QUEUES: u64 = 4;
    const EACH: u64 = 500;
    let world = World::new();
    let queues: Vec<Tap> = (0..QUEUES).map(|_| Tap::create_queue("wide0").unwrap()).collect();
    ip("link set wide0 addrgenmode none master br0 up");
    ip("link set guest0 nomaster");
    let spec = NicSpec { tap: "wide0".into(), ..world.spec() };
    let gate = RedirectGate::new(&[spec], &RedirectOptions::default()).unwrap();
    gate.hold().unwrap();
    for epoch in 0..20 {
        // Each queue has a thread, as under vhost; they stand still at the mark.
        std::thread::scope(|scope| {
            for (queue, tap) in (0..).zip(&queues) {
                let first = (epoch * QUEUES + queue) * EACH;
                scope.spawn(move || (first..first + EACH).for_each(|number| send(tap, number, 46)));
            }
        });
        gate.mark(GateMark(epoch + 1)).unwrap();
        send(&queues[0], u64::MAX, 46);
        gate.release(&acked(epoch + 1));
        let expected: u64 = QUEUES * EACH + u64::from(epoch > 0);
        let mut next = vec![0; QUEUES as usize];
        for _ in 0..expected {
            let number = world.receive(LONG).expect("all of the epoch");
            if number == u64::MAX {
                continue;
            }
            assert_eq!(number / EACH / QUEUES, epoch);
            let queue = (number / EACH % QUEUES) as usize;
            assert_eq!(number % EACH, next[queue], "each queue in order");
            next[queue] += 1;
        }
        assert_eq!(world.receive(Duration::ZERO), None, "what was sent after the mark");
    }
    gate.release(&opened());
    world.expect([u64::MAX]);
    gate.detach().unwrap();
}

pub fn incoming() {
    let world = World::new();
    let gate = world.gate();
    gate.hold().unwrap();
    // To the guest's address, and to all.
    for destination in [GUEST, [0xff; 6]] {
        let mut frame = destination.to_vec();
        frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        frame.extend(5_u64.to_be_bytes());
        frame.resize(60, 0);
        assert!(world.client.write(&frame).unwrap());
        assert_eq!(receive(&world.guest, VNET_HEADER_BYTES, LONG), Some(5));
    }
    // The bridge knows where the guest is: others do not see what is for it.
    assert_eq!(gate.level().packets, 0);
    gate.release(&opened());
    gate.detach().unwrap();
}

pub fn no_echo() {
    let world = World::new();
    let gate = world.gate();
    gate.hold().unwrap();
    let mut frame = vec![0; VNET_HEADER_BYTES];
    frame.extend([0xff; 6]);
    frame.extend(GUEST);
    frame.extend([0x88, 0xb5]);
    frame.extend(1_u64.to_be_bytes());
    frame.resize(VNET_HEADER_BYTES + 60, 0);
    for mark in 1..=50 {
        assert!(world.guest.write(&frame).unwrap());
        gate.mark(GateMark(mark)).unwrap();
        gate.release(&acked(mark));
        world.expect([1]);
    }
    assert_eq!(receive(&world.guest, VNET_HEADER_BYTES, MOMENT), None, "its own broadcast came back");
    gate.release(&opened());
    gate.detach().unwrap();
}

pub fn full() {
    let world = World::new();
    let gate = world.gate_with(&with_memory(1));
    gate.hold().unwrap();
    const PACKETS: u64 = 4_000;
    for number in 0..PACKETS {
        send(&world.guest, number, 1486);
    }
    eventually("the bound is reached", || (gate.level().bytes >= gate.bound_bytes()).then_some(()));
    eventually("the memory is full", || (gate.status()[0].full_hits > 0).then_some(()));
    assert!(gate.level().packets < PACKETS, "1 MiB does not hold all");
    // What the memory has no room for counts as sent after the mark, and leaves later.
    gate.mark(GateMark(1)).unwrap();
    gate.release(&acked(1));
    let mut received = 0;
    let mut mark = 1;
    while received < PACKETS {
        match world.receive(MOMENT) {
            Some(number) => {
                assert_eq!(number, received);
                received += 1;
            }
            None => {
                mark += 1;
                gate.mark(GateMark(mark)).unwrap();
                gate.release(&acked(mark));
            }
        }
    }
    let status = &gate.status()[0];
    assert!(mark > 1 && status.bound_hits >= 1);
    assert_eq!(status.dropped_packets, 0, "the kernel's queue had room for the rest");
    gate.detach().unwrap();
}

pub fn own_packets() {
    let world = World::new();
    let gate = world.gate();
    gate.hold().unwrap();
    // A host that thinks it can talk over the inlet.
    let inlet = side_of(&gate, "inlet");
    ip(&format!("link set {inlet} arp on"));
    ip(&format!("addr add 10.77.0.1/24 dev {inlet}"));
    let ping = std::net::UdpSocket::bind("10.77.0.1:0").unwrap();
    for _ in 0..10 {
        ping.send_to(b"hello", "10.77.0.255:9").ok();
        ping.send_to(b"hello", "10.77.0.7:9").ok();
    }
    world.send(1);
    gate.mark(GateMark(1)).unwrap();
    assert_eq!(gate.level().packets, 1, "only the guest's packet is held");
    gate.release(&acked(1));
    world.expect([1]);
    gate.release(&opened());
    gate.detach().unwrap();
}

/// The name of one of the gate's taps.
pub fn side_of(gate: &RedirectGate, side: &str) -> String {
    let tap = gate.status()[0].interface.clone();
    let links = ip("link show");
    let mut name = String::new();
    for line in links.lines() {
        if let Some((_, rest)) = line.split_once(": ").filter(|_| !line.starts_with(' ')) {
            name = rest.split(':').next().unwrap_or_default().to_owned();
        }
        if line.contains(&format!("romulus gate of {tap}, {side}")) {
            return name;
        }
    }
    panic!("no {side} in {links}");
}

pub fn segments() {
    let world = World::new();
    // A client that takes large segments as the guest's card gives them.
    let client = Tap::create("large0").unwrap();
    ip("link set large0 addrgenmode none master br0 up");
    ip("link set client0 nomaster");
    let gate = world.gate();
    gate.hold().unwrap();
    let sent = segment(20_000);
    assert!(world.guest.write(&sent).unwrap());
    gate.mark(GateMark(1)).unwrap();
    assert_eq!(gate.level().packets, 1);
    gate.release(&acked(1));
    let mut frame = vec![0; 66_000];
    let received = eventually("the segment arrives", || match client.read(&mut frame).unwrap() {
        Some(length) if length > 20_000 => Some(length),
        _ => None,
    });
    assert_eq!(received, sent.len(), "in one piece");
    assert_eq!(frame[VNET_HEADER_BYTES..received], sent[VNET_HEADER_BYTES..]);
    assert_eq!(frame[1], 1, "to be segmented for TCP over IPv4, as it was");
    gate.release(&opened());
    gate.detach().unwrap();
}

pub fn detached() {
    let world = World::new();
    let before = listing();
    let gate = world.gate_with(&with_memory(8));
    gate.hold().unwrap();
    assert_ne!(listing(), before);
    gate.release(&opened());
    gate.detach().unwrap();
    drop(gate);
    expect_as_before(&before);
    world.send(1);
    world.expect([1]);
    // Also where no grant came: what was held is gone then.
    let gate = world.gate_with(&with_memory(8));
    gate.hold().unwrap();
    world.send(2);
    gate.detach().unwrap();
    drop(gate);
    expect_as_before(&before);
    world.send(3);
    world.expect([3]);
}

pub fn put_back() {
    let world = World::new();
    ip("link set guest0 type bridge_slave mcast_router 0");
    run("bridge", "fdb add 52:54:00:12:34:56 dev guest0 master static");
    let before = listing();
    let gate = world.gate_with(&with_memory(8));
    gate.hold().unwrap();
    gate.release(&opened());
    gate.detach().unwrap();
    drop(gate);
    expect_as_before(&before);
}
