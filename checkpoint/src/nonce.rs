//! The nonces of the machines' records. Machines are deterministic: nonces are derived, not drawn.
//!
//! The nonce of a `Protected` record is [`pairing`]: it names the one image that the record lets
//! take over. Both sides derive it, so a backup needs no message to know the record it may swap
//! from, and a backup with another image (an older session, an earlier incarnation, another
//! process under the same host name) can never take a record for its own.
//!
//! A guard that hands a record back after its guest died writes the nonce of the `Protected`
//! record that it displaced: the image is the same.

use crate::ids::{Incarnation, SessionId};

/// The nonce of a `Protected` record: names the session and the incarnation of the backup's arena.
pub fn pairing(session: SessionId, incarnation: Incarnation) -> u64 {
    let high = mix(session.0 as u64 ^ mix((session.0 >> 64) as u64));
    mix(high ^ mix(incarnation.0 ^ 0x5041_4952))
}

/// Nonces of the records that one machine writes beside those of pairings.
#[derive(Clone, Debug)]
pub(crate) struct Nonces {
    state: u64,
}

impl Nonces {
    /// `seed` is random for each machine; `session` adds what makes two machines differ.
    pub(crate) fn new(seed: u64, session: SessionId) -> Self {
        Self { state: mix(seed ^ pairing(session, Incarnation(0))) }
    }

    /// The next nonce.
    pub(crate) fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }
}

/// A bijection that spreads every bit (the finalizer of SplitMix64).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pairing_differs_by_session_and_incarnation() {
        let base = pairing(SessionId(7 << 64 | 9), Incarnation(256));
        assert_eq!(base, pairing(SessionId(7 << 64 | 9), Incarnation(256)));
        assert_ne!(base, pairing(SessionId(7 << 64 | 9), Incarnation(257)));
        assert_ne!(base, pairing(SessionId(7 << 64 | 8), Incarnation(256)));
        assert_ne!(base, pairing(SessionId(8 << 64 | 9), Incarnation(256)));
    }

    #[test]
    fn nonces_of_one_machine_differ() {
        let mut nonces = Nonces::new(1, SessionId(2));
        let mut drawn: Vec<u64> = (0..1000).map(|_| nonces.draw()).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 1000);
    }
}
