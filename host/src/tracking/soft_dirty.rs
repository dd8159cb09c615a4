//! Tracking by soft-dirty bits: `4` written to `/proc/PID/clear_refs` cleans all pages of the
//! process, bit 55 of a `/proc/PID/pagemap` entry says that the page was written since.
//!
//! Reading costs 8 bytes a page whether dirty or not, and cleaning walks the whole process. Two
//! limits beside those of [`super`]: the kernel forgets the bits of shared pages that it swaps
//! out (so there must be no swap, or the process must have its memory locked), and
//! looking and cleaning are two steps, so pages are cleaned only while the writers stand still.

use std::fs::File;
use std::os::unix::fs::FileExt;

use romulus_checkpoint::{Extent, PAGE_BYTES, PageIndex};

use super::target::Target;
use super::{DirtyRange, DirtyTracker, TrackingError, mappings};
use crate::memory::number_in;

/// Bytes of a pagemap entry.
pub(super) const ENTRY_BYTES: usize = 8;
/// What to write to `clear_refs`.
pub(super) const CLEAR: &str = "4";
const SOFT_DIRTY_BIT: u64 = 1 << 55;
/// Entries read with one system call: 128 MiB of memory.
const ENTRIES_PER_READ: usize = 32 << 10;

/// Whether a pagemap entry (native byte order) says that its page was written.
pub(super) fn is_dirty(entry: &[u8]) -> bool {
    entry.try_into().is_ok_and(|entry| u64::from_ne_bytes(entry) & SOFT_DIRTY_BIT != 0)
}

/// See the module.
pub struct SoftDirtyTracker {
    target: Target,
    ranges: Vec<DirtyRange>,
    pagemap: File,
    clear_refs: File,
    entries: Box<[u8]>,
    started: bool,
}

impl SoftDirtyTracker {
    /// A tracker for shared mappings of a process. The kernel must have what
    /// [`super::probe::soft_dirty`] looks for.
    pub fn new(pid: u32, ranges: &[DirtyRange]) -> Result<Self, TrackingError> {
        let target = Target::open(pid)?;
        mappings::check(&target, ranges)?;
        refuse_swap(&target)?;
        let pagemap = target.open_proc("pagemap", false)?;
        let clear_refs = target.open_proc("clear_refs", true)?;
        let entries = vec![0; ENTRIES_PER_READ * ENTRY_BYTES].into_boxed_slice();
        Ok(Self { target, ranges: ranges.to_vec(), pagemap, clear_refs, entries, started: false })
    }

    fn clear(&self) -> Result<(), TrackingError> {
        self.clear_refs.write_all_at(CLEAR.as_bytes(), 0).map_err(|error| self.explain("clear_refs", error))
    }

    fn look(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError> {
        if !self.started {
            return Err(TrackingError::Refused("tracking was not started".into()));
        }
        for index in 0..self.ranges.len() {
            let range = self.ranges[index];
            let mut page = 0;
            while page < range.pages {
                let count = (range.pages - page).min(ENTRIES_PER_READ as u64);
                let bytes = &mut self.entries[..count as usize * ENTRY_BYTES];
                let offset = (range.address / PAGE_BYTES + page) * ENTRY_BYTES as u64;
                // A process that has given up its memory reads as the end of the file.
                if let Err(error) = self.pagemap.read_exact_at(bytes, offset) {
                    return Err(self.explain("pagemap", error));
                }
                collect_entries(bytes, PageIndex(range.first.0 + page), dirty);
                page += count;
            }
        }
        Ok(())
    }

    fn explain(&self, file: &str, error: std::io::Error) -> TrackingError {
        let ended = error.kind() == std::io::ErrorKind::UnexpectedEof;
        if ended || error.raw_os_error() == Some(libc::ESRCH) {
            return self.target.gone();
        }
        TrackingError::system(format!("/proc/{}/{file}", self.target.pid()), error)
    }
}

/// Appends the dirty pages of a piece of pagemap whose first entry is that of `first`.
fn collect_entries(entries: &[u8], first: PageIndex, dirty: &mut Vec<Extent>) {
    for (index, entry) in entries.chunks_exact(ENTRY_BYTES).enumerate() {
        if !is_dirty(entry) {
            continue;
        }
        let page = first.0 + index as u64;
        match dirty.last_mut() {
            Some(last) if last.first.0 + last.pages == page => last.pages += 1,
            _ => dirty.push(Extent { first: PageIndex(page), pages: 1 }),
        }
    }
}

/// Swapped-out shared pages lose their bits.
fn refuse_swap(target: &Target) -> Result<(), TrackingError> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")
        .map_err(|error| TrackingError::system("read /proc/meminfo", error))?;
    let status = target.read_proc("status")?;
    let (swap, locked) = (number_in(&meminfo, "SwapTotal:"), number_in(&status, "VmLck:"));
    let shared = number_in(&status, "RssShmem:");
    if swap > 0 && locked < shared {
        return Err(TrackingError::Refused(format!(
            "tracking by soft-dirty bits would lose writes to pages that are swapped out: switch swap off \
             (swapoff -a), or lock the memory of process {} (QEMU: -overcommit mem-lock=on)",
            target.pid()
        )));
    }
    Ok(())
}

impl DirtyTracker for SoftDirtyTracker {
    fn method(&self) -> &'static str {
        "soft-dirty"
    }

    fn start(&mut self) -> Result<(), TrackingError> {
        if self.started {
            return Err(TrackingError::Refused("tracking is already started".into()));
        }
        self.clear()?;
        self.started = true;
        Ok(())
    }

    fn collect_stopped(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError> {
        let before = dirty.len();
        // Pages are reported again by the next call if cleaning them fails: the bits are kept.
        self.look(dirty).and_then(|()| self.clear()).inspect_err(|_| dirty.truncate(before))
    }

    /// Does not clean: a write between looking and cleaning would be lost. So each call reports
    /// all pages since the last [`collect_stopped`](Self::collect_stopped).
    fn collect_running(&mut self, dirty: &mut Vec<Extent>) -> Result<(), TrackingError> {
        let before = dirty.len();
        self.look(dirty).inspect_err(|_| dirty.truncate(before))
    }

    fn stop(&mut self) -> Result<(), TrackingError> {
        // The bits cost nothing when nobody looks; there is nothing to undo.
        self.started = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dirty: &[bool]) -> Vec<u8> {
        // Present, exclusively mapped and file bits all around bit 55 must not matter.
        let noise: u64 = 0b1_1101 << 60 | 1 << 56 | 1 << 54 | 0x1234;
        dirty.iter().flat_map(|dirty| (noise | u64::from(*dirty) << 55).to_ne_bytes()).collect()
    }

    #[test]
    fn bit_55_and_no_other_says_dirty() {
        for bit in 0..64 {
            assert_eq!(is_dirty(&(1u64 << bit).to_ne_bytes()), bit == 55);
        }
        assert!(!is_dirty(&[0xff; 7]));
    }

    #[test]
    fn entries_become_extents_joined_across_reads() {
        let mut dirty = Vec::new();
        collect_entries(&entries(&[true, false, true, true]), PageIndex(10), &mut dirty);
        collect_entries(&entries(&[true, false]), PageIndex(14), &mut dirty);
        let extent = |first, pages| Extent { first: PageIndex(first), pages };
        assert_eq!(dirty, [extent(10, 1), extent(12, 3)]);
    }
}
