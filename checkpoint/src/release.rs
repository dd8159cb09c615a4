//! The tokens of output commit (I1): output leaves only against a [`ReleaseToken`], and a token
//! is made only from a decoded Ack, a decoded Welcome or a won solo grant.

use crate::arbiter::SoloGrant;
use crate::ids::GateMark;
use crate::wire::AckProof;

/// Allows the gate to let all output up to a mark leave.
#[derive(Debug, PartialEq, Eq)]
pub struct ReleaseToken {
    through: GateMark,
    opens_gate: bool,
}

impl ReleaseToken {
    /// For output up to the mark of an epoch that a peer's Ack or Welcome covers; `None` if the
    /// proof was not decoded from a peer's bytes.
    pub fn acked(through: GateMark, proof: &AckProof) -> Option<Self> {
        proof.is_decoded().then_some(Self { through, opens_gate: false })
    }

    /// For all output, with the grant to run the guest alone.
    pub fn solo(_grant: &SoloGrant) -> Self {
        Self { through: GateMark(u64::MAX), opens_gate: true }
    }

    /// Output up to this mark may leave.
    pub fn through(&self) -> GateMark {
        self.through
    }

    /// All output may leave, now and until the gate is closed again by
    /// [`crate::gate::OutputGate::hold`].
    pub fn opens_gate(&self) -> bool {
        self.opens_gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_a_proof_made_for_sending_releases_nothing() {
        assert_eq!(ReleaseToken::acked(GateMark(1), &AckProof::outgoing()), None);
    }
}
