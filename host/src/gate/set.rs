//! Several gates as one.

use std::sync::Arc;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::arbiter::SoloGrant;
use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::release::ReleaseToken;

/// The gates of a guest whose cards need different kinds.
pub struct GateSet {
    gates: Vec<Arc<dyn OutputGate>>,
}

impl GateSet {
    /// These gates, in no order.
    pub fn new(gates: Vec<Arc<dyn OutputGate>>) -> Self {
        Self { gates }
    }

    fn each(&self, what: impl Fn(&dyn OutputGate) -> Result<(), GateError>) -> Result<(), GateError> {
        self.gates.iter().map(|gate| what(&**gate)).fold(Ok(()), Result::and)
    }
}

impl OutputGate for GateSet {
    fn claimed(&self, grant: &SoloGrant) -> Result<(), GateError> {
        self.each(|gate| gate.claimed(grant))
    }

    /// After failure of one the others hold; what they hold is let go by the next grant.
    fn hold(&self) -> Result<(), GateError> {
        self.each(|gate| gate.hold())
    }

    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        self.each(|gate| gate.mark(mark))
    }

    fn release(&self, token: &ReleaseToken) {
        for gate in &self.gates {
            gate.release(token);
        }
    }

    fn level(&self) -> GateLevel {
        self.gates.iter().map(|gate| gate.level()).fold(GateLevel::default(), |sum, level| GateLevel {
            packets: sum.packets + level.packets,
            bytes: sum.bytes + level.bytes,
        })
    }

    fn bound_bytes(&self) -> u64 {
        self.gates.iter().map(|gate| gate.bound_bytes()).min().unwrap_or(u64::MAX)
    }

    fn flush(&self) {
        for gate in &self.gates {
            gate.flush();
        }
    }

    fn detach(&self) -> Result<(), GateError> {
        self.each(|gate| gate.detach())
    }
}
