//! What is done with a gate whose process has died: by its guard, or by the next protector.

use romulus_checkpoint::GateMark;
use romulus_checkpoint::arbiter::SoloGrant;
use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::release::ReleaseToken;

use super::netlink::Netlink;
use super::plumbing::{self, NicSpec};
use crate::guard::GateHandle;

/// The `redirect` gates of a dead protector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedRedirect {
    specs: Vec<NicSpec>,
}

impl GuardedRedirect {
    /// The gates of these cards.
    pub fn new(specs: Vec<NicSpec>) -> Self {
        Self { specs }
    }

    fn remove(&self) -> Result<(), GateError> {
        let netlink =
            Netlink::open().map_err(|error| GateError(format!("opening a netlink socket: {error}")))?;
        self.specs.iter().map(|spec| plumbing::remove(&netlink, spec)).fold(Ok(()), Result::and)
    }
}

impl GateHandle for GuardedRedirect {
    /// Lets the guest's packets go straight to the bridge. What the dead process held is lost, as on
    /// a wire.
    fn open(&mut self, _grant: &SoloGrant) -> Result<(), String> {
        self.remove().map_err(|error| error.to_string())
    }

    fn clear(&mut self) -> Result<(), String> {
        self.remove().map_err(|error| error.to_string())
    }
}

/// The cards that have no `redirect` gate now and may have had one before.
impl OutputGate for GuardedRedirect {
    fn claimed(&self, _grant: &SoloGrant) -> Result<(), GateError> {
        self.remove()
    }
    fn hold(&self) -> Result<(), GateError> {
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
