//! What the guest sends: numbered frames of one size.

use romulus_host::gate::VNET_HEADER_BYTES;

use crate::gate_lab::{ETHERNET_BYTES, GUEST, IP_AND_TCP_BYTES, NOBODY, plain_frame, segment};

const SEGMENT_PAYLOAD_BYTES: usize = 32_000;

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
            Self::Segment => segment(SEGMENT_PAYLOAD_BYTES),
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
