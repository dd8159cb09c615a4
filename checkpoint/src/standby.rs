//! The seam to the virtual machine that stands ready on the backup.

use romulus_transport::Memory;

use crate::layout::GuestLayout;
use crate::wire::message::MachineIdentity;

/// A standby operation failed; the shadow image is unharmed.
#[derive(Debug, thiserror::Error)]
#[error("standby: {what}: {why}")]
pub struct StandbyError {
    /// What was tried.
    pub what: String,
    /// What came of it, and what to do.
    pub why: String,
}

/// The home frames of one region, as a file that a standby can map as its RAM.
#[derive(Clone, Debug)]
pub struct ImageRegion {
    /// The region's name in the guest's layout.
    pub name: String,
    /// A path that opens the file (`/dev/shm/...` or `/proc/PID/fd/N`).
    pub path: std::path::PathBuf,
    /// The same memory, mapped here.
    pub memory: Memory,
}

/// A virtual machine prepared over a shadow image and not yet running.
pub trait Standby: Send {
    /// Starts a machine over the image, not running, its output not connected to the world.
    /// Returns what it is, for the comparison with the guest.
    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError>;
    /// Loads `state` into a throw-away copy over a private copy-on-write view of the image. The
    /// image and the prepared machine stay as they are.
    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError>;
    /// Whether the prepared machine still stands ready; after an error call
    /// [`prepare`](Self::prepare) again.
    fn check(&mut self) -> Result<(), StandbyError>;
    /// Loads `state` and runs the machine. The image holds the memory of that state. Called once,
    /// after the fence and with the grant. After failure no guest runs here, and
    /// [`may_have_run`](Self::may_have_run) tells whether one did.
    fn activate(&mut self, state: &[u8]) -> Result<(), StandbyError>;
    /// Whether the machine may have run between the beginning of the last
    /// [`activate`](Self::activate) and its failure. The image is spoiled then: nothing is started
    /// over it again.
    fn may_have_run(&self) -> bool {
        false
    }
    /// Ends a machine that was prepared and not activated. Idempotent.
    fn abandon(&mut self);
}
