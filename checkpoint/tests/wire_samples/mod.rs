//! One valid message of every kind, for the tests of the wire.

use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{
    ByeReason, ErrorCode, Hello, Homing, MachineIdentity, Message, Welcome, encode,
};
use romulus_checkpoint::{
    ArenaShape, ConnectionNumber, Epoch, FrameIndex, Generation, GuestLayout, HomingSequence, Identity,
    Incarnation, PageIndex, Region, SessionId,
};

/// The identity all samples travel under.
pub fn identity() -> Identity {
    Identity {
        session: SessionId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        generation: Generation(3),
        incarnation: Incarnation(2),
        connection: ConnectionNumber(5),
    }
}

/// A Hello of a small q35.
pub fn hello() -> Hello {
    let regions =
        vec![Region { name: "pc.ram".into(), pages: 131_072 }, Region { name: "pc.bios".into(), pages: 64 }];
    let layout = GuestLayout { regions };
    let arena = ArenaShape {
        pages: layout.pages(),
        spares: 16_384,
        slots: 3,
        slot_bytes: 2 << 20,
        copy_only_homes: false,
    };
    let configuration = vec!["machine pc-q35-7.2".into(), "device virtio-net-pci".into()];
    Hello {
        versions: (1, 1),
        identity: identity(),
        primary: "left".into(),
        guest: "demo".into(),
        layout,
        arena,
        depth: 2,
        machine: MachineIdentity { hypervisor: "QEMU 7.2.17".into(), configuration },
        suspect_after_ms: 150,
        fabric_offer: vec![1, 2, 3],
    }
}

/// One message of every kind, and some at their limits.
pub fn messages() -> Vec<Message> {
    let homing = |n| Homing { page: PageIndex(n), source: FrameIndex(200_000 + n) };
    vec![
        Message::Hello(hello()),
        Message::Welcome(Welcome {
            version: 1,
            identity: identity(),
            backup: "right".into(),
            committed: Epoch(41),
            homed_through: HomingSequence(17),
            fabric_answer: vec![9; 100],
            proof: AckProof::outgoing(),
        }),
        Message::RoundEnd { round: 1 },
        Message::RoundAck { round: 1 },
        Message::Commit { epoch: Epoch(42) },
        Message::Ack { committed: Epoch(42), homed_through: HomingSequence(18), proof: AckProof::outgoing() },
        Message::Home { first_sequence: HomingSequence(18), homings: (0..3).map(homing).collect() },
        Message::Home { first_sequence: HomingSequence(21), homings: (0..128).map(homing).collect() },
        Message::Invalidate,
        Message::Invalidated { incarnation: Incarnation(3) },
        Message::Heartbeat { sequence: 1, progress: u64::MAX },
        Message::Bye { reason: ByeReason::GuestEnded },
        Message::Bye { reason: ByeReason::Detached },
        Message::Bye { reason: ByeReason::Failover },
        Message::ByeAck { reason: ByeReason::GuestDied },
        Message::ByeAck { reason: ByeReason::BackupLeaves },
        Message::Error { code: ErrorCode::MachineMismatch, text: "the machines differ".into() },
        Message::Error { code: ErrorCode::NotGranted, text: "é".repeat(512) },
    ]
}

/// A sample's encoding.
pub fn bytes_of(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&identity(), message, &mut bytes);
    bytes
}
