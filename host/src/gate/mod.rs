//! Output gates on kernel interfaces: a guest's packets are held until their epoch is acked (I1).
//!
//! The guest's tap keeps its place in its bridge, and what comes to the guest is not touched. What
//! the guest sends is redirected by traffic control, when it comes in on the tap, to a tap of the
//! gate (*inlet*); released packets are written to a second one (*outlet*), a port of the same
//! bridge. Virtio headers and offloads are kept, so that large segments stay large. The hypervisor
//! takes no part: vhost and several queues make no difference.
//!
//! **Exact boundaries.** A write to the tap, the filter and the inlet's queue are one call: when the
//! hypervisor's `stop` has been answered, all that the guest has sent is in the inlet's queue, and
//! the mark drains it. **Fail-closed.** The inlet lives as long as its process; without it the filter
//! drops. **Memory.** A ring of fixed length for each card; half of it in use ends the epoch early,
//! all of it leaves packets in the inlet's queue, and beyond that the kernel drops and counts.

mod choice;
mod filter;
mod guarded;
mod link;
mod netlink;
mod nic;
mod plumbing;
mod redirect;
mod ring;
mod set;
mod status;
mod tap;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use choice::{GateChoice, GateChoices};
pub use guarded::GuardedRedirect;
pub use link::Mac;
pub use plumbing::{INLET_QUEUE_PACKETS, NicSpec};
pub use redirect::{RedirectGate, RedirectOptions, can_redirect};
pub use set::GateSet;
pub use status::GateStatus;
pub use tap::{Tap, VNET_HEADER_BYTES, can_make_taps};

/// What these locks guard is valid whatever became of a thread that held one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
