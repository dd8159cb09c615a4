//! Tracking by write protection: userfaultfd in asynchronous mode and `PAGEMAP_SCAN`.
//!
//! A userfaultfd is made inside the tracked process (see `inject`; the own process makes its own)
//! and lives only here:
//! when this process ends, however it ends, the kernel removes all protection. The first write to
//! a protected page costs its writer about a microsecond; nobody waits for anybody.
//!
//! Transparent huge pages: protection maps them by 4 KiB pages while tracking lasts, so that one
//! write dirties 4 KiB and not 2 MiB. On hugetlbfs a write dirties the whole huge page.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use romulus_checkpoint::Extent;

use super::pool::Pool;
use super::slice::{Mode, Slice};
use super::target::Target;
use super::{
    DirtyRange, DirtyTracker, TrackingError, TrackingOptions, inject, kernel, mappings, probe, slice,
};

/// Below so many bytes a thread of its own costs more than it gives.
const BYTES_PER_THREAD: u64 = 256 << 20;
/// Slices a thread: so many that a thread which is done early finds more to do.
const SLICES_PER_THREAD: usize = 4;
/// The initial protection goes in steps of this, so that the process's own changes to its
/// mappings need not wait for all of it.
const PROTECT_STEP_BYTES: u64 = 1 << 30;

/// How long a range may be busy before it is refused.
const OTHER_WATCHER_LIMIT: Duration = Duration::from_secs(1);

/// See the module.
pub struct WriteProtectTracker {
    target: Target,
    scan: Arc<Scan>,
    pool: Pool,
    uffd: Option<OwnedFd>,
    /// An address that is not registered, to ask whether the process still has its memory.
    probe_address: u64,
}

/// What the scan threads share.
struct Scan {
    pagemap: File,
    mode: Mutex<Mode>,
    slices: Vec<Mutex<Slice>>,
}

impl Scan {
    fn collect(&self, index: usize) {
        let mode = *self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_slice(index, |slice| slice.collect(self.pagemap.as_fd(), mode));
    }

    fn with_slice<T>(&self, index: usize, work: impl FnOnce(&mut Slice) -> T) -> T {
        // A slice is valid at every point: a panic elsewhere does not spoil it.
        work(&mut self.slices[index].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl WriteProtectTracker {
    /// A tracker for shared mappings of a process. The kernel must have what
    /// [`super::probe::write_protect`] looks for.
    pub fn new(pid: u32, ranges: &[DirtyRange], options: &TrackingOptions) -> Result<Self, TrackingError> {
        let target = Target::open(pid)?;
        mappings::check(&target, ranges)?;
        let pagemap = target.open_proc("pagemap", false)?;
        let total_bytes: u64 = ranges.iter().map(|range| range.end() - range.address).sum();
        let useful = total_bytes.div_ceil(BYTES_PER_THREAD).max(1);
        let threads = options.threads.max(1).min(usize::try_from(useful).unwrap_or(usize::MAX));
        let parts = if threads == 1 { 1 } else { threads * SLICES_PER_THREAD };
        let sized: Vec<_> =
            ranges.iter().map(|range| (*range, mappings::page_bytes_at(&target, range.address))).collect();
        let slices: Vec<_> = slice::cut(&sized, parts).into_iter().map(Mutex::new).collect();
        let count = slices.len();
        let scan = Arc::new(Scan { pagemap, mode: Mutex::new(Mode::Stopped), slices });
        let shared = Arc::clone(&scan);
        let pool =
            Pool::new(threads, count, &options.thread_setup, Arc::new(move |index| shared.collect(index)))
                .map_err(|error| TrackingError::system("start a scan thread", error))?;
        let probe_address = unregistered_address(ranges);
        Ok(Self { target, scan, pool, uffd: None, probe_address })
    }

    fn register(&self, uffd: &OwnedFd) -> Result<(), TrackingError> {
        let pid = self.target.pid();
        for index in 0..self.scan.slices.len() {
            let (start, end) = self.scan.with_slice(index, |slice| slice.span());
            register_when_free(uffd, start, end - start).map_err(|error| {
                if error.raw_os_error() == Some(libc::EBUSY) {
                    return TrackingError::Refused(format!(
                        "the memory of process {pid} is already watched by another userfaultfd: is \
                         another romulus protecting it, or does it migrate by postcopy?"
                    ));
                }
                self.explain(format!("register {start:#x}..{end:#x} of process {pid}"), error)
            })?;
            let mut at = start;
            while at < end {
                let step = PROTECT_STEP_BYTES.min(end - at);
                kernel::write_protect(uffd.as_fd(), at, step).map_err(|error| {
                    self.explain(format!("write-protect {at:#x}+{step:#x} of process {pid}"), error)
                })?;
                at += step;
            }
        }
        Ok(())
    }

    fn collect(&mut self, mode: Mode, dirty: &mut Vec<Extent>) -> Result<(), TrackingError> {
        let Some(uffd) = &self.uffd else {
            return Err(TrackingError::Refused("tracking was not started".into()));
        };
        *self.scan.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
        self.pool.run();
        let mut failed = None;
        for index in 0..self.scan.slices.len() {
            failed = self.scan.with_slice(index, Slice::take_error).or(failed);
        }
        if let Some(error) = failed {
            let what = format!("scan the memory of process {}", self.target.pid());
            return Err(self.explain(what, error));
        }
        // The memory of a process that ended reads as unwritten: ask after the scan, not before.
        // Asked of an unregistered address, this is ENOENT while the process has its memory and
        // ESRCH from the moment it gives it up, which is well before the process can be waited
        // for.
        match kernel::write_protect(uffd.as_fd(), self.probe_address, romulus_checkpoint::PAGE_BYTES) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(self.target.gone()),
            _ => {}
        }
        for index in 0..self.scan.slices.len() {
            self.scan.with_slice(index, |slice| slice.take(dirty));
        }
        Ok(())
    }

    fn explain(&self, what: String, error: std::io::Error) -> TrackingError {
        match error.raw_os_error() {
            Some(libc::ESRCH | libc::ENOMEM) if !self.target.is_alive() => self.target.gone(),
            Some(libc::ESRCH) => self.target.gone(),
            Some(libc::EPERM) => TrackingError::Refused(format!(
                "{what}: part of it is no longer the memory that tracking was started for (remapped?)"
            )),
            _ => TrackingError::system(what, error),
        }
    }
}

/// Registers a range; waits a moment for another descriptor to let go of it: that of a
/// predecessor which was killed outlives it by a few milliseconds.
fn register_when_free(uffd: &OwnedFd, start: u64, len_bytes: u64) -> std::io::Result<()> {
    let deadline = Instant::now() + OTHER_WATCHER_LIMIT;
    loop {
        match kernel::register(uffd.as_fd(), start, len_bytes) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// A page that user memory may have and none of the ranges has.
fn unregistered_address(ranges: &[DirtyRange]) -> u64 {
    let lowest = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0)
        .clamp(64 << 10, 1 << 30)
        .next_multiple_of(romulus_checkpoint::PAGE_BYTES);
    let mut address = lowest;
    while let Some(range) = ranges.iter().find(|range| range.address <= address && address < range.end()) {
        address = range.end();
    }
    address
}

impl DirtyTracker for WriteProtectTracker {
    fn method(&self) -> &'static str {
        "write-protect"
    }

    fn start(&mut self) -> Result<(), TrackingError> {
        if self.uffd.is_some() {
            return Err(TrackingError::Refused("tracking is already started".into()));
        }
        // No process can trace itself, and none needs to for a descriptor of its own memory.
        let uffd = match self.target.pid() == std::process::id() {
            true => probe::own_userfaultfd().map_err(TrackingError::Refused)?,
            false => inject::userfaultfd(&self.target)?,
        };
        kernel::handshake(uffd.as_fd()).map_err(|error| {
            TrackingError::system("userfaultfd's handshake for asynchronous write protection", error)
        })?;
        // On failure the descriptor is closed on return, and with it everything is undone.
        self.register(&uffd)?;
        self.uffd = Some(uffd);
        Ok(())
    }

    fn collect_stopped(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError> {
        self.collect(Mode::Stopped, dirty)
    }

    fn collect_running(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError> {
        self.collect(Mode::Running, dirty)
    }

    fn stop(&mut self) -> Result<(), TrackingError> {
        // Closing the only descriptor unregisters all ranges and removes all protection.
        self.uffd = None;
        let mut forgotten = Vec::new();
        for index in 0..self.scan.slices.len() {
            self.scan.with_slice(index, |slice| slice.take(&mut forgotten));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use romulus_checkpoint::PageIndex;

    #[test]
    fn the_probe_address_is_outside_all_ranges() {
        let lowest = unregistered_address(&[]);
        let ranges = [
            DirtyRange { address: lowest + 4096, pages: 3, first: PageIndex(0) },
            DirtyRange { address: lowest, pages: 1, first: PageIndex(3) },
        ];
        assert_eq!(unregistered_address(&ranges), lowest + 4 * 4096);
    }
}
