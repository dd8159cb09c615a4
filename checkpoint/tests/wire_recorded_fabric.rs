//! The recording fabric: what passes through it is what the independent reader finds good.

mod verifier;
#[allow(dead_code)] // shared with tests that use all of it
mod wire_samples;

use std::sync::Arc;
use std::time::Duration;

use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{Hello, Message, ROUND_MARKER, Welcome, decode, encode};
use romulus_checkpoint::wire::record::{Reader, RecordKind, Recorder, Role};
use romulus_checkpoint::wire::recorded::RecordedFabric;
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{
    ArenaShape, ConnectionNumber, Epoch, FrameIndex, GuestLayout, HomingSequence, Identity, Incarnation,
    PageIndex, Region, Transfer,
};
use romulus_transport::sim::{SimConfig, SimNetwork};
use romulus_transport::{Arena, Endpoint, Event, Fabric, Memory, MessageBuffer, Write};

const SHAPE: ArenaShape =
    ArenaShape { pages: 8, spares: 8, slots: 3, slot_bytes: 8192, copy_only_homes: false };
const PATIENCE: Duration = Duration::from_secs(30);
const STATE_BYTES: usize = 500;

fn identity() -> Identity {
    let (connection, incarnation) = (ConnectionNumber(1), Incarnation(256));
    Identity { connection, incarnation, ..wire_samples::identity() }
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&identity(), message, &mut out);
    out
}

fn hello() -> Hello {
    let regions = vec![Region { name: "ram".into(), pages: SHAPE.pages }];
    let layout = GuestLayout { regions };
    Hello { identity: identity(), layout, arena: SHAPE, ..wire_samples::hello() }
}

/// The next message or fence, whichever comes.
fn next(endpoint: &dyn Endpoint, buffer: &mut MessageBuffer) -> Event {
    loop {
        match endpoint.next_event(buffer, PATIENCE).expect("the network lives") {
            Event::Idle => {}
            event => return event,
        }
    }
}

/// Plays the backup: acks a round, then `epochs` epochs, as soon as both Commit and fence are in.
fn back_up(endpoint: &dyn Endpoint, epochs: u64) {
    let mut buffer = MessageBuffer::default();
    let mut halves = 0;
    let mut acked = 0;
    while acked < epochs {
        match next(endpoint, &mut buffer) {
            Event::Closed(why) => panic!("closed: {why}"),
            _ => halves += 1,
        }
        if halves == 2 {
            let ack = Message::RoundAck { round: 1 };
            endpoint.send(&bytes(&ack)).expect("the network lives");
        } else if halves > 2 && halves % 2 == 0 {
            acked += 1;
            let (committed, homed_through) = (Epoch(acked), HomingSequence(0));
            let ack = Message::Ack { committed, homed_through, proof: AckProof::outgoing() };
            endpoint.send(&bytes(&ack)).expect("the network lives");
        }
    }
}

/// Plays the primary: one round, then one epoch after the other, each of one page in a spare.
fn protect(endpoint: &dyn Endpoint, epochs: u64) {
    let mut buffer = MessageBuffer::default();
    let head = Memory::anonymous(SHAPE.slot_bytes as usize);
    let state = Memory::anonymous(STATE_BYTES);
    state.write(0, &[0x5a; STATE_BYTES]);
    let head_region = endpoint.register(head.clone()).expect("registers");
    let state_region = endpoint.register(state.clone()).expect("registers");
    endpoint.mark(ROUND_MARKER | 1).expect("the network lives");
    endpoint.send(&bytes(&Message::RoundEnd { round: 1 })).expect("the network lives");
    assert_eq!(next(endpoint, &mut buffer), Event::Message);
    for epoch in (1..=epochs).map(Epoch) {
        let transfers =
            [Transfer { first_page: PageIndex(epoch.0), first_frame: FrameIndex(8 + epoch.0), pages: 1 }];
        let checksum = slot::checksum(&state, 0, STATE_BYTES);
        slot::encode(&identity(), epoch, &transfers, STATE_BYTES as u64, checksum, &head).expect("fits");
        // The state lies elsewhere than the head, as it does where it is saved in place.
        let head_bytes = slot::state_offset_bytes(1);
        let remote_offset = SHAPE.slot_offset_bytes(epoch);
        let writes = [
            Write { region: head_region, local_offset: 0, remote_offset, len_bytes: head_bytes },
            Write {
                region: state_region,
                local_offset: 0,
                remote_offset: remote_offset + head_bytes,
                len_bytes: STATE_BYTES as u64,
            },
        ];
        endpoint.write(&writes).expect("the network lives");
        endpoint.mark(epoch.0).expect("the network lives");
        endpoint.send(&bytes(&Message::Commit { epoch })).expect("the network lives");
        assert_eq!(next(endpoint, &mut buffer), Event::Message);
        let Ok((_, Message::Ack { committed, .. })) = decode(buffer.message()) else { panic!("an Ack") };
        assert_eq!(committed, epoch);
    }
}

#[test]
fn what_passes_the_recording_fabric_obeys_the_protocol_on_both_hosts() {
    const EPOCHS: u64 = 6;
    let directory = tempfile::tempdir().unwrap();
    let recordings = ["primary.rec", "backup.rec"].map(|name| directory.path().join(name));
    let recorder =
        |index: usize, role| Arc::new(Recorder::create(&recordings[index], role, 1 << 24).unwrap());
    let network = SimNetwork::auto(11, SimConfig::default());
    let primary = RecordedFabric::new(Arc::new(network.fabric()), recorder(0, Role::Primary));
    let backup = RecordedFabric::new(Arc::new(network.fabric()), recorder(1, Role::Backup));

    let mut listener = backup.listen("10.0.0.1:7000".parse().unwrap()).unwrap();
    let mut left = primary.connect(listener.local_address(), PATIENCE).unwrap();
    let mut right = listener.accept(PATIENCE).unwrap().expect("a connection");
    let arena = Arena::new([Memory::anonymous(SHAPE.len_bytes() as usize)]);
    let fabric_offer = left.offer().unwrap();
    left.send(&bytes(&Message::Hello(Hello { fabric_offer, ..hello() }))).unwrap();
    let Ok((_, Message::Hello(asked))) = decode(&right.receive(PATIENCE).unwrap()) else { panic!("a Hello") };
    let welcome = Welcome {
        version: 1,
        identity: identity(),
        backup: "right".into(),
        committed: Epoch(0),
        homed_through: HomingSequence(0),
        fabric_answer: right.answer(&asked.fabric_offer, arena).unwrap(),
        proof: AckProof::outgoing(),
    };
    right.send(&bytes(&Message::Welcome(welcome))).unwrap();
    let Ok((_, Message::Welcome(answer))) = decode(&left.receive(PATIENCE).unwrap()) else {
        panic!("a Welcome")
    };
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| {
            let endpoint = right.establish(None, PATIENCE).unwrap();
            back_up(&*endpoint, EPOCHS);
            endpoint
        });
        let endpoint = left.establish(Some(&answer.fabric_answer), PATIENCE).unwrap();
        protect(&*endpoint, EPOCHS);
        endpoint.close();
        backup.join().expect("the backup played its part").close();
    });

    for (good, report) in verifier::verify(&recordings) {
        assert!(good, "{report}");
    }
    for path in &recordings {
        let mut reader = Reader::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut slots = 0;
        let mut last = None;
        while let Some(record) = reader.next_record().unwrap() {
            slots += u64::from(record.kind == RecordKind::Slot);
            last = Some(record.kind);
        }
        assert_eq!((slots, last), (EPOCHS, Some(RecordKind::Disconnected)), "{}", path.display());
    }
}
