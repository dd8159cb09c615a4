//! The seam to a running guest on the primary.

use std::time::Duration;

use romulus_transport::Memory;

use crate::extent::Extent;
use crate::layout::GuestLayout;
use crate::wire::message::MachineIdentity;

/// A guest operation failed. Unless the method says otherwise the guest runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The guest's process is gone.
    #[error("the guest's process is gone: {0}")]
    Gone(String),
    /// The guest cannot be protected as it is; says why and what to change.
    #[error("{0}")]
    Refused(String),
    /// Anything else, with what was tried.
    #[error("{what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// What came of it.
        why: String,
    },
}

/// What happened to the guest by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// It powered off: an end, and output too.
    Ended,
    /// It rebooted; it goes on and stays protected.
    Reset,
    /// Its process died without a power-off.
    Died(String),
    /// Somebody else paused or resumed it; the epoch clock stands still while it is paused.
    PausedByOthers(bool),
}

/// A running virtual machine that can be paused, read and resumed.
pub trait Guest: Send {
    /// Its name: the key of its record and of its reports.
    fn name(&self) -> &str;
    /// The shape of its memory; constant for the life of this value.
    fn layout(&self) -> &GuestLayout;
    /// What the standby must equal.
    fn machine(&self) -> &MachineIdentity;
    /// Its memory, one span a region, readable only.
    fn memory(&self) -> &[Memory];
    /// Whether [`memory`](Self::memory) may be registered with a NIC (direct capture).
    fn memory_registrable(&self) -> bool;
    /// Begins dirty tracking. After success every write from now on is found by
    /// [`collect`](Self::collect). After failure nothing is tracked.
    fn start_tracking(&mut self) -> Result<(), GuestError>;
    /// Ends dirty tracking and leaves the guest as it was found. Idempotent.
    fn stop_tracking(&mut self) -> Result<(), GuestError>;
    /// Stops the vCPUs and drains device I/O. After success the guest's memory changes only by
    /// [`save_state`](Self::save_state). After failure it may be paused or not, until
    /// [`resume`](Self::resume) has succeeded, or the guest is gone.
    fn pause(&mut self) -> Result<(), GuestError>;
    /// While paused: saves CPU and device state into `into`; returns its length in bytes. May
    /// write guest memory. After failure the guest is still paused and no dirty page is lost.
    fn save_state(&mut self, into: &Memory) -> Result<u64, GuestError>;
    /// Appends the pages written since the last call, sorted, without overlap, and protects them
    /// again. Paused or running. After failure the pages are reported by the next call.
    fn collect(&mut self, dirty: &mut Vec<Extent>) -> Result<(), GuestError>;
    /// Appends the pages that may hold anything but zeros, sorted, without overlap; known without
    /// reading memory, which would populate it. Called with tracking on: a page populated during
    /// or after the call is found by [`collect`](Self::collect). By default all pages.
    fn populated(&self, pages: &mut Vec<Extent>) {
        let all = self.layout().pages();
        if all > 0 {
            pages.push(Extent { first: crate::PageIndex(0), pages: all });
        }
    }
    /// Lets the guest run on; also undoes what a failed pause or start of tracking may have left
    /// behind. After success it is known not to be paused by this value. After failure the guest
    /// is paused and the error says what to do.
    fn resume(&mut self) -> Result<(), GuestError>;
    /// While paused: until the next [`resume`](Self::resume) the guest stays paused even when this
    /// value is dropped, since another host may come to run it. For guests that are resumed then.
    fn leave_paused(&mut self) {}
    /// What happened since the last call; never waits.
    fn poll_event(&mut self) -> Option<GuestEvent>;
    /// Destroys the guest: another host owns it. Idempotent.
    fn destroy(&mut self) -> Result<(), GuestError>;
    /// Durations of the last pause's inner steps that the caller cannot see, for reports.
    fn last_pause_detail(&self) -> &[(&'static str, Duration)] {
        &[]
    }
}
