//! The seam to the virtual machine that stands ready on the backup.

use romulus_transport::Memory;

use crate::extent::Extent;
use crate::ids::PageIndex;
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

/// The memory of a standby that cannot be registered with a NIC: its home frames are no part of
/// the arena, and pages reach them by homing alone (*copy-only homes*).
#[derive(Clone, Debug)]
pub struct CopyOnlyHomes {
    /// The home frames, one span a region, all zero when the standby was prepared. Valid as long as
    /// the value lives, also when the standby is gone.
    pub regions: Vec<Memory>,
    /// Pages that the standby keeps as they are (those that it shares with the host's own
    /// services), sorted, without overlap: what is committed for them is not copied.
    pub kept: Vec<Extent>,
}

impl CopyOnlyHomes {
    /// Whether the standby keeps a page as it is.
    pub fn keeps(&self, page: PageIndex) -> bool {
        let behind = self.kept.partition_point(|extent| extent.first <= page);
        behind.checked_sub(1).is_some_and(|at| page.0 < self.kept[at].first.0 + self.kept[at].pages)
    }
}

/// A virtual machine prepared over a shadow image and not yet running.
pub trait Standby: Send {
    /// What the guest says that it is, told before each [`prepare`](Self::prepare): for standbys that
    /// are built from the guest's own description. An error: it cannot be built from this.
    fn meet(&mut self, guest: &MachineIdentity) -> Result<(), StandbyError> {
        let _ = guest;
        Ok(())
    }
    /// Starts a machine over the image, not running, its output not connected to the world.
    /// Returns what it is, for the comparison with the guest. With copy-only homes `image` is empty:
    /// the memory is the standby's own, all zero now, and told by
    /// [`copy_only_homes`](Self::copy_only_homes).
    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError>;
    /// The prepared machine's own memory, when it was prepared over an empty image. `None`, which
    /// standbys over registered memory say: a primary that asks for copy-only homes is refused.
    fn copy_only_homes(&self) -> Option<CopyOnlyHomes> {
        None
    }
    /// Loads `state` into a throw-away copy over a private copy-on-write view of the image. The
    /// image and the prepared machine stay as they are. With copy-only homes some pages may not be
    /// home yet, so that the state cannot run: what can be checked without that is checked.
    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError>;
    /// Whether the prepared machine still stands ready; after an error call
    /// [`prepare`](Self::prepare) again. With copy-only homes the image is lost with the machine.
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
