//! Messages to bytes.

use super::bytes::{put_count, put_text, put_u16, put_u32, put_u64, put_zeros};
use super::header::{self, HEADER_BYTES, Kind};
use super::limits::{MAX_FABRIC_BYTES, MAX_TEXT_BYTES};
use super::message::{ByeReason, ErrorCode, Hello, Message, Welcome};
use crate::ids::Identity;

/// Appends the message's bytes to `out`. Does not allocate when `out` has room.
///
/// The header carries `identity`, which for Hello and Welcome is the message's own. The text of
/// an Error is cut to its limit; anything else beyond the limits is encoded so that every decoder
/// refuses it.
pub fn encode(identity: &Identity, message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    put_zeros(out, HEADER_BYTES);
    let kind = put_body(identity, message, out);
    header::seal(&mut out[start..], kind, identity);
}

fn put_body(identity: &Identity, message: &Message, out: &mut Vec<u8>) -> Kind {
    match message {
        Message::Hello(hello) => {
            debug_assert_eq!(identity, &hello.identity, "a Hello travels under its own identity");
            put_hello(hello, out);
            Kind::Hello
        }
        Message::Welcome(welcome) => {
            debug_assert_eq!(identity, &welcome.identity, "a Welcome travels under its own identity");
            put_welcome(welcome, out);
            Kind::Welcome
        }
        Message::RoundEnd { round } => {
            put_u64(out, *round);
            Kind::RoundEnd
        }
        Message::RoundAck { round } => {
            put_u64(out, *round);
            Kind::RoundAck
        }
        Message::Commit { epoch } => {
            put_u64(out, epoch.0);
            Kind::Commit
        }
        Message::Ack { committed, homed_through, proof: _ } => {
            put_u64(out, committed.0);
            put_u64(out, homed_through.0);
            Kind::Ack
        }
        Message::Home { first_sequence, homings } => {
            put_u64(out, first_sequence.0);
            put_count(out, homings.len());
            put_zeros(out, 6);
            for homing in homings {
                put_u64(out, homing.page.0);
                put_u64(out, homing.source.0);
            }
            Kind::Home
        }
        Message::Invalidate => Kind::Invalidate,
        Message::Invalidated { incarnation } => {
            put_u64(out, incarnation.0);
            Kind::Invalidated
        }
        Message::Heartbeat { sequence, progress } => {
            put_u64(out, *sequence);
            put_u64(out, *progress);
            Kind::Heartbeat
        }
        Message::Bye { reason } => {
            put_reason(*reason, out);
            Kind::Bye
        }
        Message::ByeAck { reason } => {
            put_reason(*reason, out);
            Kind::ByeAck
        }
        Message::Error { code, text } => {
            put_u16(out, code_number(*code));
            put_text(out, cut(text, MAX_TEXT_BYTES));
            Kind::Error
        }
    }
}

fn put_hello(hello: &Hello, out: &mut Vec<u8>) {
    put_u16(out, hello.versions.0);
    put_u16(out, hello.versions.1);
    put_u32(out, hello.suspect_after_ms);
    put_u64(out, hello.depth);
    put_u64(out, hello.arena.pages);
    put_u64(out, hello.arena.spares);
    put_u64(out, hello.arena.slots);
    put_u64(out, hello.arena.slot_bytes);
    put_u32(out, u32::from(hello.arena.copy_only_homes));
    put_count(out, hello.layout.regions.len());
    put_count(out, hello.machine.configuration.len());
    put_fabric(&hello.fabric_offer, out);
    put_text(out, &hello.primary);
    put_text(out, &hello.guest);
    put_text(out, &hello.machine.hypervisor);
    for region in &hello.layout.regions {
        put_u64(out, region.pages);
        put_text(out, &region.name);
    }
    for line in &hello.machine.configuration {
        put_text(out, line);
    }
}

fn put_welcome(welcome: &Welcome, out: &mut Vec<u8>) {
    put_u16(out, welcome.version);
    put_zeros(out, 6);
    put_u64(out, welcome.committed.0);
    put_u64(out, welcome.homed_through.0);
    put_fabric(&welcome.fabric_answer, out);
    put_text(out, &welcome.backup);
}

/// Bytes of the fabric behind a 32-bit length.
fn put_fabric(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(bytes.len() <= MAX_FABRIC_BYTES, "a fabric's parameters fit the handshake");
    put_u32(out, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(bytes);
}

fn put_reason(reason: ByeReason, out: &mut Vec<u8>) {
    let number = match reason {
        ByeReason::GuestEnded => 1,
        ByeReason::Detached => 2,
        ByeReason::Failover => 3,
        ByeReason::GuestDied => 4,
        ByeReason::BackupLeaves => 5,
    };
    put_u16(out, number);
    put_zeros(out, 6);
}

fn code_number(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Version => 1,
        ErrorCode::Malformed => 2,
        ErrorCode::Stale => 3,
        ErrorCode::Violation => 4,
        ErrorCode::MachineMismatch => 5,
        ErrorCode::NoRoom => 6,
        ErrorCode::Busy => 7,
        ErrorCode::StandbyFailed => 8,
        ErrorCode::NotGranted => 9,
    }
}

/// The longest beginning of `text` of at most `max_bytes` bytes.
fn cut(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
