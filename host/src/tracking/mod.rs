//! Dirty tracking of another process's memory: which pages has it written since the last look?
//!
//! Two ways, one trait: [`write_protect`] (userfaultfd and `PAGEMAP_SCAN`, Linux 6.7 and later)
//! and [`soft_dirty`] (kernels with `CONFIG_MEM_SOFT_DIRTY`). [`open`] takes the first that the
//! kernel has.
//!
//! Blind spots of both: writes that do not go through the page tables of the tracked process.
//! Another mapping of the same file, `pwrite` to the file, DMA of a passed-through device, and
//! hole punching (`fallocate`, `MADV_REMOVE`: balloon, virtio-mem, free-page reporting), which
//! changes content without a write. Guests that use these must not be protected.

mod error;
mod inject;
mod kernel;
mod mappings;
mod pool;
pub mod probe;
mod slice;
pub mod soft_dirty;
mod target;
mod windows;
pub mod write_protect;

use romulus_checkpoint::{Extent, PageIndex};

pub use error::TrackingError;
pub use soft_dirty::SoftDirtyTracker;
pub use write_protect::WriteProtectTracker;

use crate::ThreadSetup;

/// A piece of a process's memory to track: a mapping or part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRange {
    /// Where it begins in the process, page-aligned.
    pub address: u64,
    /// Its length in pages of 4 KiB.
    pub pages: u64,
    /// What its first page is called in the extents that are reported.
    pub first: PageIndex,
}

impl DirtyRange {
    /// First address after it. Saturates, so that nonsense stays nonsense and is refused later.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.pages.saturating_mul(romulus_checkpoint::PAGE_BYTES))
    }
}

/// How to track.
#[derive(Clone)]
pub struct TrackingOptions {
    /// Threads that scan, the calling one included; at least 1. Small guests are scanned by the
    /// calling thread alone. Default 1.
    pub threads: usize,
    /// Called at the start of each scan thread with its name (`scan-1`, `scan-2`, ...).
    pub thread_setup: ThreadSetup,
}

impl Default for TrackingOptions {
    fn default() -> Self {
        Self { threads: 1, thread_setup: crate::no_thread_setup() }
    }
}

impl std::fmt::Debug for TrackingOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackingOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// Tracks the writes to the ranges it was made for. Dropping it stops it.
pub trait DirtyTracker: Send {
    /// The way it works, for logs and reports: `write-protect` or `soft-dirty`.
    fn method(&self) -> &'static str;

    /// Begins. After success all pages count as clean and every write from now on is found. After
    /// failure nothing is tracked and the process is as it was. Calling it again while tracking
    /// is an error.
    fn start(&mut self) -> Result<(), TrackingError>;

    /// Appends the pages written since the last collection, sorted and without overlap among
    /// themselves if the ranges are in order, and makes them clean again. For a process whose
    /// writers stand still: the cheapest way, which disturbs only what was written.
    ///
    /// After failure no page is lost: what was found is reported by the next call.
    fn collect_stopped(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError>;

    /// As [`collect_stopped`](Self::collect_stopped) while the process writes on. A write during
    /// the call is reported by this call or the next. Pages may be reported again that an earlier
    /// call has reported (soft-dirty does; write protection does not).
    fn collect_running(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError>;

    /// Ends tracking and leaves the process as it was found. Idempotent.
    fn stop(&mut self) -> Result<(), TrackingError>;
}

/// A tracker for `ranges` of process `pid`, by the best way this kernel has. Nothing is tracked
/// before [`DirtyTracker::start`].
pub fn open(
    pid: u32,
    ranges: &[DirtyRange],
    options: &TrackingOptions,
) -> Result<Box<dyn DirtyTracker>, TrackingError> {
    match method()? {
        Method::WriteProtect => Ok(Box::new(WriteProtectTracker::new(pid, ranges, options)?)),
        Method::SoftDirty => Ok(Box::new(SoftDirtyTracker::new(pid, ranges)?)),
    }
}

/// Whether the kernel has a way of tracking, and this process the privilege to track process `pid`,
/// of which nothing is touched. What the process itself forbids shows at the start.
pub fn check(pid: u32) -> Result<(), TrackingError> {
    let method = method()?;
    let target = target::Target::open(pid)?;
    target.open_proc("pagemap", false)?;
    match method {
        Method::WriteProtect => inject::check(&target),
        Method::SoftDirty => target.open_proc("clear_refs", true).map(drop),
    }
}

enum Method {
    WriteProtect,
    SoftDirty,
}

/// The best way that this kernel has.
fn method() -> Result<Method, TrackingError> {
    let write_protect = match probe::write_protect() {
        Ok(()) => return Ok(Method::WriteProtect),
        Err(why) => why,
    };
    match probe::soft_dirty() {
        Ok(()) => Ok(Method::SoftDirty),
        Err(soft_dirty) => Err(TrackingError::Unsupported { write_protect, soft_dirty }),
    }
}
