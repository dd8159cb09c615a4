//! The verbs that this fabric uses, with owners instead of pointers.
//!
//! All unsafe code of the fabric is here. Each object holds its parents, so none outlives them:
//! context <- protection domain <- memory region; context <- completion queue <- queue pair.
//! Destroying never panics: what fails then is logged.
//!
//! libibverbs' objects may be used by several threads at once; each wrapper says so where it
//! claims `Send` and `Sync`.

mod completion;
mod context;
mod memory;
mod queue_pair;
mod send_list;

use std::io;

pub(super) use completion::{Completion, CompletionQueue};
pub(super) use context::{AsyncEvent, Context, DeviceLimits, LinkLayer, OpenError, PortAttributes, prepare};
pub(super) use memory::{Access, MemoryRegion, ProtectionDomain};
pub(super) use queue_pair::{Address, Capacity, Path, QueuePair};
pub(super) use send_list::SendList;

/// The result of a call that returns 0, an error number, or -1 and leaves the number in `errno`.
fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        ..0 => Err(io::Error::last_os_error()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Logs that destroying an object failed.
fn log_destroyed(what: &str, result: i32) {
    if let Err(error) = check(result) {
        tracing::error!(what, %error, "an RDMA object could not be destroyed");
    }
}
