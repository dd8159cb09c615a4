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
    /// These gates, one after the other. Only the first may fail to hold.
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

    /// Those after one that fails are not asked: they would hold what nobody releases.
    fn hold(&self) -> Result<(), GateError> {
        self.gates.iter().try_for_each(|gate| gate.hold())
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A gate that can hold, or not.
    struct Half {
        can_hold: bool,
        holds: AtomicBool,
    }

    impl OutputGate for Half {
        fn hold(&self) -> Result<(), GateError> {
            if !self.can_hold {
                return Err(GateError("no".into()));
            }
            self.holds.store(true, Ordering::SeqCst);
            Ok(())
        }
        fn mark(&self, _mark: GateMark) -> Result<(), GateError> {
            Ok(())
        }
        fn release(&self, _token: &ReleaseToken) {}
        fn level(&self) -> GateLevel {
            GateLevel::default()
        }
        fn bound_bytes(&self) -> u64 {
            u64::MAX
        }
        fn detach(&self) -> Result<(), GateError> {
            Ok(())
        }
    }

    #[test]
    fn after_a_hold_that_failed_nothing_is_held() {
        let half = |can_hold| Arc::new(Half { can_hold, holds: AtomicBool::new(false) });
        let (first, second) = (half(false), half(true));
        let set = GateSet::new(vec![first, second.clone()]);
        assert!(set.hold().is_err() && !second.holds.load(Ordering::SeqCst));
        let (first, second) = (half(true), half(true));
        GateSet::new(vec![first.clone(), second.clone()]).hold().unwrap();
        assert!([first, second].iter().all(|gate| gate.holds.load(Ordering::SeqCst)));
    }
}
