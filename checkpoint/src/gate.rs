//! The seam of output commit: what holds the guest's output until its epoch is acked.

use crate::arbiter::SoloGrant;
use crate::ids::GateMark;
use crate::release::ReleaseToken;

/// What a gate holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateLevel {
    /// Packets held.
    pub packets: u64,
    /// Bytes held.
    pub bytes: u64,
}

/// Holds output. Its reader never waits for anything; a byte bound (see
/// [`level`](Self::level)) ends the epoch early and never drops silently.
pub trait OutputGate: Send + Sync {
    /// The record was claimed for this host, before protection begins: output that a predecessor
    /// which died has left closed is let go. What it held is lost. `Ok` if there is nothing.
    fn claimed(&self, _grant: &SoloGrant) -> Result<(), GateError> {
        Ok(())
    }
    /// From now on output is held (protection begins). After failure nothing is held.
    fn hold(&self) -> Result<(), GateError>;
    /// All output so far belongs to `mark`. Called while the guest is stopped, marks grow.
    fn mark(&self, mark: GateMark) -> Result<(), GateError>;
    /// Lets output up to the token's mark leave, in order. Returns at once.
    fn release(&self, token: &ReleaseToken);
    /// What is held now.
    fn level(&self) -> GateLevel;
    /// Bytes at which the epoch should end early.
    fn bound_bytes(&self) -> u64;
    /// Waits a short time until what was released has left. Called before the backup is told to go
    /// on with the guest, so that nothing the guest sent there overtakes it.
    fn flush(&self) {}
    /// Takes the gate out of the guest's path. Held output that was released leaves; the rest
    /// stays held if the grant is missing, so callers release first.
    fn detach(&self) -> Result<(), GateError>;
}

/// A gate could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("output gate: {0}")]
pub struct GateError(pub String);

/// The gate of a guest that has no output to hold.
#[derive(Debug, Default)]
pub struct NoOutput;

impl OutputGate for NoOutput {
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
