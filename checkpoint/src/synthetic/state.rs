//! The device state of a synthetic guest.

use romulus_transport::Memory;

use super::page::mix;

const MAGIC: u64 = 0x526f_6d75_6c75_7353;
const HEAD_BYTES: usize = 48;

/// What a synthetic guest was at a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyntheticState {
    /// Number of the pause, from 1.
    pub pause: u64,
    /// Pages written so far: the guest's counter.
    pub writes: u64,
    /// Sum of [`super::digest_of`] over all pages.
    pub digest: u64,
    /// Length of the state in bytes, the filler included.
    pub len_bytes: u64,
}

impl SyntheticState {
    fn words(&self) -> [u64; 6] {
        let sum = mix(self.pause ^ mix(self.writes ^ mix(self.digest ^ mix(self.len_bytes))));
        [MAGIC, self.pause, self.writes, self.digest, self.len_bytes, sum]
    }

    fn filler(&self, at: usize) -> u8 {
        (self.pause as usize).wrapping_mul(31).wrapping_add(at / 64) as u8
    }

    /// Writes the state; returns its length, or `None` when it does not fit.
    pub(super) fn save(&self, into: &Memory) -> Option<u64> {
        let len_bytes = self.len_bytes as usize;
        if len_bytes < HEAD_BYTES || len_bytes > into.len_bytes() {
            return None;
        }
        for (index, word) in self.words().iter().enumerate() {
            into.write(index * 8, &word.to_le_bytes());
        }
        let mut at = HEAD_BYTES;
        while at < len_bytes {
            let end = (at / 64 * 64 + 64).min(len_bytes);
            into.write(at, &[self.filler(at); 64][..end - at]);
            at = end;
        }
        Some(self.len_bytes)
    }

    /// Reads and checks a state.
    pub fn load(bytes: &[u8]) -> Result<Self, String> {
        let word = |index: usize| {
            let bytes = bytes.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let [Some(pause), Some(writes), Some(digest), Some(len_bytes)] = [word(1), word(2), word(3), word(4)]
        else {
            return Err(format!("a state of {} bytes is too short", bytes.len()));
        };
        let state = Self { pause, writes, digest, len_bytes };
        let sound = state.words().iter().enumerate().all(|(index, expected)| word(index) == Some(*expected));
        if !sound || len_bytes != bytes.len() as u64 {
            return Err("the state's head is damaged".into());
        }
        let bad = (HEAD_BYTES..bytes.len()).find(|at| bytes[*at] != state.filler(*at));
        bad.map_or(Ok(state), |at| Err(format!("the state is damaged at byte {at}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_damage_shows() {
        let memory = Memory::anonymous(4096);
        for len_bytes in [48, 49, 300, 4096] {
            let state = SyntheticState { pause: 9, writes: 70, digest: 5, len_bytes };
            assert_eq!(state.save(&memory), Some(len_bytes));
            let mut bytes = vec![0; len_bytes as usize];
            memory.read(0, &mut bytes);
            assert_eq!(SyntheticState::load(&bytes), Ok(state));
            for at in 0..bytes.len() {
                bytes[at] ^= 1;
                assert!(SyntheticState::load(&bytes).is_err(), "byte {at}");
                bytes[at] ^= 1;
            }
            assert!(SyntheticState::load(&bytes[..bytes.len() - 1]).is_err());
        }
        let state = SyntheticState { len_bytes: 4097, ..SyntheticState::default() };
        assert_eq!(state.save(&memory), None);
    }
}
