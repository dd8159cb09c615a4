//! What the guest sends: numbered frames of one size.

use romulus_host::gate::VNET_HEADER_BYTES;

use crate::gate_lab::{GUEST, NOBODY, plain_frame};

const ETHERNET_BYTES: usize = 14;
const IP_AND_TCP_BYTES: usize = 40;
const SEGMENT_PAYLOAD_BYTES: usize = 32_000;
const SEGMENT_MSS: u16 = 1448;

/// A size of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// 64 bytes.
    Small,
    /// 1,500 bytes.
    Full,
    /// A large TCP segment that the guest leaves to its card to cut.
    Segment,
}

impl Load {
    pub const ALL: [Self; 3] = [Self::Small, Self::Full, Self::Segment];

    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "64 B",
            Self::Full => "1,500 B",
            Self::Segment => "GSO, 32 kB",
        }
    }

    /// A frame, its virtio header first, without a number.
    pub fn frame(self) -> Vec<u8> {
        match self {
            Self::Small => plain_frame(64),
            Self::Full => plain_frame(1500),
            Self::Segment => segment(),
        }
    }

    /// Where the number lies.
    fn number_at(self) -> usize {
        let headers = VNET_HEADER_BYTES + ETHERNET_BYTES;
        match self {
            Self::Small | Self::Full => headers,
            Self::Segment => headers + IP_AND_TCP_BYTES,
        }
    }

    pub fn set_number(self, frame: &mut [u8], number: u64) {
        let at = self.number_at();
        frame[at..at + 8].copy_from_slice(&number.to_be_bytes());
    }

    /// The number of a frame of this load; `None` if it is none of the guest's.
    pub fn number(self, frame: &[u8]) -> Option<u64> {
        let addresses = frame.get(VNET_HEADER_BYTES..VNET_HEADER_BYTES + 12)?;
        if addresses[..6] != NOBODY || addresses[6..] != GUEST {
            return None;
        }
        let at = self.number_at();
        Some(u64::from_be_bytes(frame.get(at..at + 8)?.try_into().expect("eight bytes")))
    }
}

/// A TCP segment over IPv4, to be cut at [`SEGMENT_MSS`].
fn segment() -> Vec<u8> {
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
    header.extend(((IP_AND_TCP_BYTES + SEGMENT_PAYLOAD_BYTES) as u16).to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(frame.len() + SEGMENT_PAYLOAD_BYTES, 0);
    frame
}
