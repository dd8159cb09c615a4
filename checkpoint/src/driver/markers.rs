//! Markers of a fabric grow along a connection, but rounds and epochs are numbered apart and may
//! alternate (synchronization, epochs, invalidation, synchronization ...). So a marker on the
//! fabric carries a phase above the number: it grows by one with each change between the kinds,
//! and its low bits name the kind.

use crate::wire::message::ROUND_MARKER;

/// Bits of the number: 34 years of a thousand epochs a second.
const NUMBER_BITS: u32 = 40;
const NUMBERS: u64 = 1 << NUMBER_BITS;
/// Phases of one kind are apart by this.
const KINDS: u64 = 4;

/// What a marker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// A part of a round or epoch, only so that the sender learns that its memory is free.
    Part,
    /// A synchronization round.
    Round(u64),
    /// An epoch.
    Epoch(u64),
}

impl Marked {
    fn kind(self) -> u64 {
        match self {
            Marked::Part => 0,
            Marked::Round(_) => 1,
            Marked::Epoch(_) => 2,
        }
    }

    /// The number that [`crate::backup::Backup::handle_fence`] takes; a part has none.
    pub fn machine_number(self) -> Option<u64> {
        match self {
            Marked::Part => None,
            Marked::Round(number) => Some(ROUND_MARKER | number),
            Marked::Epoch(number) => Some(number),
        }
    }

    /// What a marker received from the fabric ends; `None` for a kind that does not exist.
    pub fn from_marker(marker: u64) -> Option<Self> {
        let number = marker % NUMBERS;
        match (marker >> NUMBER_BITS) % KINDS {
            0 => Some(Marked::Part),
            1 => Some(Marked::Round(number)),
            2 => Some(Marked::Epoch(number)),
            _ => None,
        }
    }
}

/// Numbers the markers of one connection.
#[derive(Debug, Default)]
pub(crate) struct Markers {
    last: u64,
}

impl Markers {
    /// The next marker; `None` once the connection has used up its numbers and must be replaced.
    pub fn next(&mut self, marked: Marked) -> Option<u64> {
        let number = match marked {
            Marked::Part => self.last % NUMBERS + 1,
            Marked::Round(number) | Marked::Epoch(number) => number,
        };
        if number >= NUMBERS {
            return None;
        }
        let last_phase = self.last >> NUMBER_BITS;
        let mut phase = last_phase - last_phase % KINDS + marked.kind();
        if (phase << NUMBER_BITS) + number <= self.last {
            phase += KINDS;
        }
        if phase >= 1 << (64 - NUMBER_BITS - 1) {
            return None;
        }
        self.last = (phase << NUMBER_BITS) + number;
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_grow_and_name_what_they_end() {
        let mut markers = Markers::default();
        let sequence = [
            Marked::Part,
            Marked::Part,
            Marked::Round(1),
            Marked::Part,
            Marked::Round(2),
            Marked::Epoch(1),
            Marked::Epoch(2),
            Marked::Part,
            Marked::Epoch(3),
            Marked::Round(1),
            Marked::Epoch(1),
            Marked::Epoch(2),
        ];
        let mut last = 0;
        for marked in sequence {
            let marker = markers.next(marked).expect("numbers are left");
            assert!(marker > last);
            assert_eq!(Marked::from_marker(marker), Some(marked));
            last = marker;
        }
    }

    #[test]
    fn numbers_run_out_before_they_wrap() {
        let mut markers = Markers::default();
        assert_eq!(markers.next(Marked::Epoch(NUMBERS)), None);
        markers.last = u64::MAX >> 1;
        assert_eq!(markers.next(Marked::Round(1)), None);
    }
}
