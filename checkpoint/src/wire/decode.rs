//! Bytes to messages. Nothing here panics, and nothing read sizes an allocation before it was
//! held against its limit.

use arrayvec::ArrayVec;

use super::AckProof;
use super::bytes::{Reader, malformed, printable};
use super::header::{self, Kind};
use super::limits::{
    MAX_CONFIGURATION_LINES, MAX_DEPTH, MAX_FABRIC_BYTES, MAX_FRAMES, MAX_LINE_BYTES, MAX_NAME_BYTES,
    MAX_NUMBER, MAX_PAGES, MAX_REGIONS, MAX_SLOT_BYTES, MAX_SLOTS, MAX_TEXT_BYTES,
};
use super::message::{
    ByeReason, DecodeError, ErrorCode, Hello, Homing, MAX_HOMINGS, MachineIdentity, Message, Welcome,
};
use crate::PAGE_BYTES;
use crate::ids::{Epoch, FrameIndex, HomingSequence, Identity, Incarnation, PageIndex};
use crate::layout::{ArenaShape, GuestLayout, Region};

/// Reads exactly one message. Never panics, never allocates more than the limits say.
pub fn decode(bytes: &[u8]) -> Result<(Identity, Message), DecodeError> {
    let (kind, identity, body) = header::open(bytes)?;
    let mut reader = Reader::new(body);
    let message = read_body(kind, identity, &mut reader)?;
    reader.end()?;
    Ok((identity, message))
}

fn read_body(kind: Kind, identity: Identity, body: &mut Reader<'_>) -> Result<Message, DecodeError> {
    Ok(match kind {
        Kind::Hello => Message::Hello(read_hello(identity, body)?),
        Kind::Welcome => Message::Welcome(read_welcome(identity, body)?),
        Kind::RoundEnd => Message::RoundEnd { round: body.number("round", 1)? },
        Kind::RoundAck => Message::RoundAck { round: body.number("round", 1)? },
        Kind::Commit => Message::Commit { epoch: Epoch(body.number("epoch", 1)?) },
        Kind::Ack => Message::Ack {
            committed: Epoch(body.number("committed epoch", 0)?),
            homed_through: HomingSequence(body.number("homing sequence", 0)?),
            proof: AckProof::from_peer(),
        },
        Kind::Home => read_home(body)?,
        Kind::Invalidate => Message::Invalidate,
        Kind::Invalidated => {
            Message::Invalidated { incarnation: Incarnation(body.number("incarnation", 1)?) }
        }
        Kind::Heartbeat => Message::Heartbeat {
            sequence: body.u64("heartbeat sequence")?,
            progress: body.u64("heartbeat progress")?,
        },
        Kind::Bye => Message::Bye { reason: read_reason(body)? },
        Kind::ByeAck => Message::ByeAck { reason: read_reason(body)? },
        Kind::Error => Message::Error {
            code: read_code(body)?,
            text: printable(body.text("error text", MAX_TEXT_BYTES)?),
        },
    })
}

fn read_hello(identity: Identity, body: &mut Reader<'_>) -> Result<Hello, DecodeError> {
    let versions = (body.u16("lowest version")?, body.u16("highest version")?);
    if versions.0 == 0 || versions.0 > versions.1 {
        return Err(malformed(format!("versions {}..={} are no range", versions.0, versions.1)));
    }
    let suspect_after_ms = body.u32("suspicion timer")?;
    let depth = body.within("depth", 1, MAX_DEPTH)?;
    let arena = read_shape(depth, body)?;
    let regions = body.count("region", 1, MAX_REGIONS)?;
    let lines = body.count("configuration line", 0, MAX_CONFIGURATION_LINES)?;
    let fabric_offer = read_fabric(body)?;
    let primary = body.name("primary's name", MAX_NAME_BYTES)?;
    let guest = body.name("guest's name", MAX_NAME_BYTES)?;
    let hypervisor = body.name("hypervisor", MAX_NAME_BYTES)?;
    let layout = read_layout(regions, body)?;
    if layout.pages() != arena.pages {
        return Err(malformed(format!(
            "the regions have {} pages, the arena {}",
            layout.pages(),
            arena.pages
        )));
    }
    let mut configuration = Vec::new();
    for _ in 0..lines {
        configuration.push(body.text("configuration line", MAX_LINE_BYTES)?.to_owned());
    }
    let machine = MachineIdentity { hypervisor, configuration };
    Ok(Hello {
        versions,
        identity,
        primary,
        guest,
        layout,
        arena,
        depth,
        machine,
        suspect_after_ms,
        fabric_offer,
    })
}

/// A shape whose every derived offset fits 64 bits.
fn read_shape(depth: u64, body: &mut Reader<'_>) -> Result<ArenaShape, DecodeError> {
    let pages = body.within("pages", 1, MAX_PAGES)?;
    let spares = body.within("spares", 0, MAX_PAGES)?;
    if pages + spares > MAX_FRAMES {
        return Err(malformed(format!("{pages} pages and {spares} spares exceed {MAX_FRAMES} frames")));
    }
    let slots = body.within("slots", depth + 1, MAX_SLOTS)?;
    let slot_bytes = body.within("slot length", PAGE_BYTES, MAX_SLOT_BYTES)?;
    if slot_bytes % PAGE_BYTES != 0 {
        return Err(malformed(format!("slot length {slot_bytes} is no multiple of a page")));
    }
    let flags = body.u32("arena flags")?;
    if flags > 1 {
        return Err(malformed(format!("arena flags {flags:#x} are unknown")));
    }
    Ok(ArenaShape { pages, spares, slots, slot_bytes, copy_only_homes: flags == 1 })
}

fn read_layout(regions: usize, body: &mut Reader<'_>) -> Result<GuestLayout, DecodeError> {
    let mut layout = GuestLayout::default();
    let mut pages_left = MAX_PAGES;
    for _ in 0..regions {
        let pages = body.within("region's pages", 1, pages_left)?;
        pages_left -= pages;
        let name = body.name("region's name", MAX_NAME_BYTES)?;
        if layout.regions.iter().any(|other| other.name == name) {
            return Err(malformed(format!("region {name:?} twice")));
        }
        layout.regions.push(Region { name, pages });
    }
    Ok(layout)
}

fn read_welcome(identity: Identity, body: &mut Reader<'_>) -> Result<Welcome, DecodeError> {
    let version = body.u16("version")?;
    body.reserved(6)?;
    let committed = Epoch(body.number("committed epoch", 0)?);
    let homed_through = HomingSequence(body.number("homing sequence", 0)?);
    let fabric_answer = read_fabric(body)?;
    let backup = body.name("backup's name", MAX_NAME_BYTES)?;
    let proof = AckProof::from_peer();
    Ok(Welcome { version, identity, backup, committed, homed_through, fabric_answer, proof })
}

fn read_fabric(body: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    let len_bytes = body.u32("fabric's parameters")? as usize;
    if len_bytes > MAX_FABRIC_BYTES {
        return Err(malformed(format!("{len_bytes} bytes of fabric's parameters exceed {MAX_FABRIC_BYTES}")));
    }
    Ok(body.take("fabric's parameters", len_bytes)?.to_vec())
}

fn read_home(body: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let first = body.number("homing sequence", 1)?;
    let count = body.count("homing", 1, MAX_HOMINGS)?;
    body.reserved(6)?;
    if first > MAX_NUMBER - count as u64 {
        return Err(malformed(format!("homing sequence {first} leaves no room for {count}")));
    }
    let mut homings = ArrayVec::new();
    for _ in 0..count {
        let page = PageIndex(body.within("page", 0, MAX_PAGES - 1)?);
        let source = FrameIndex(body.within("source frame", 0, MAX_FRAMES - 1)?);
        homings.push(Homing { page, source });
    }
    Ok(Message::Home { first_sequence: HomingSequence(first), homings })
}

fn read_reason(body: &mut Reader<'_>) -> Result<ByeReason, DecodeError> {
    let reason = match body.u16("reason")? {
        1 => ByeReason::GuestEnded,
        2 => ByeReason::Detached,
        3 => ByeReason::Failover,
        4 => ByeReason::GuestDied,
        5 => ByeReason::BackupLeaves,
        other => return Err(malformed(format!("reason {other} is unknown"))),
    };
    body.reserved(6)?;
    Ok(reason)
}

fn read_code(body: &mut Reader<'_>) -> Result<ErrorCode, DecodeError> {
    Ok(match body.u16("error code")? {
        1 => ErrorCode::Version,
        2 => ErrorCode::Malformed,
        3 => ErrorCode::Stale,
        4 => ErrorCode::Violation,
        5 => ErrorCode::MachineMismatch,
        6 => ErrorCode::NoRoom,
        7 => ErrorCode::Busy,
        8 => ErrorCode::StandbyFailed,
        9 => ErrorCode::NotGranted,
        other => return Err(malformed(format!("error code {other} is unknown"))),
    })
}
