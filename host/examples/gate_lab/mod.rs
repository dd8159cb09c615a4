//! What the programs that measure output gates share with each other and with the tests of the gates: a
//! network of their own, frames, acks, CPU time.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::process::Command;
use std::time::Duration;

use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{Message, decode, encode};
use romulus_checkpoint::{Epoch, GateMark, HomingSequence, Identity};
use romulus_host::gate::VNET_HEADER_BYTES;

/// The guest's address.
pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// An address that is nobody's: frames to it are flooded.
pub const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The type of plain frames.
pub const TYPE: [u8; 2] = [0x88, 0xb5];
/// The header of a frame.
pub const ETHERNET_BYTES: usize = 14;
/// The headers of a TCP segment behind it.
pub const IP_AND_TCP_BYTES: usize = 40;
const SEGMENT_MSS: u16 = 1448;
/// Between two marks.
pub const INTERVAL: Duration = Duration::from_millis(25);

/// Moves this thread, and those it starts later, into a network namespace of their own: whatever is made
/// in it goes with the process, however that ends.
pub fn enter_namespace() {
    // SAFETY: this thread, and those it starts later, have the new namespace for themselves.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "a network namespace needs root ({})", std::io::Error::last_os_error());
}

/// Runs a command in this thread's namespace; gives what it says.
pub fn try_run(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .map_err(|error| format!("{program} (Debian's iproute2 or nftables): {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let told = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {arguments}: {}", told.lines().next().unwrap_or("failed").trim()))
        }
    }
}

/// As [`try_run`], where a failure ends the program.
pub fn run(program: &str, arguments: &str) -> String {
    try_run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// A frame of the guest, its virtio header first; zero beyond the Ethernet header.
pub fn plain_frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_BYTES];
    frame.extend(NOBODY);
    frame.extend(GUEST);
    frame.extend(TYPE);
    frame.resize(VNET_HEADER_BYTES + bytes, 0);
    frame
}

/// A TCP segment over IPv4 that the guest leaves to its card to cut, its virtio header first.
pub fn segment(payload_bytes: usize) -> Vec<u8> {
    let headers = (ETHERNET_BYTES + IP_AND_TCP_BYTES) as u16;
    // virtio_net_hdr: checksum to be filled in, TCP over IPv4; length of the headers, size of the pieces,
    // where the checksum begins and where it belongs (the ABI's constants, include/uapi/linux/virtio_net.h).
    let mut frame = vec![1, 1];
    for field in [headers, SEGMENT_MSS, ETHERNET_BYTES as u16 + 20, 16] {
        frame.extend(field.to_le_bytes());
    }
    frame.extend(NOBODY);
    frame.extend(GUEST);
    frame.extend([8, 0]);
    let mut header = vec![0x45, 0];
    header.extend(((IP_AND_TCP_BYTES + payload_bytes) as u16).to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..payload_bytes).map(|byte| byte as u8));
    frame
}

/// CPU time of a thread or a process (`RUSAGE_...`), in seconds.
pub fn cpu_s(who: libc::c_int) -> f64 {
    // SAFETY: a C struct of integers, for which all zero is a value, filled by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(who, &raw mut usage), 0);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6)
        .sum::<f64>()
}

/// A token of an Ack, decoded from a message's bytes as it has to be.
pub fn acked(through: u64) -> ReleaseToken {
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
