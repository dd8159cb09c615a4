//! The kernel interfaces of write-protect tracking: userfaultfd's ioctls and `PAGEMAP_SCAN`.
//! Layouts and numbers are those of `linux/userfaultfd.h` and `linux/fs.h`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const UFFD_API: u64 = 0xAA;
/// Write faults in user mode only: needs no privilege; with `WP_ASYNC` nothing is ever reported
/// to a reader, so writes by the kernel are tracked all the same.
pub const UFFD_USER_MODE_ONLY: u64 = 1;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// What tracking asks of userfaultfd; `WP_ASYNC` came with Linux 6.7.
pub const FEATURES: u64 = FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const PAGEMAP_SCAN: u64 = 0xc060_6610;

const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;

const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteprotect {
    start: u64,
    len: u64,
    mode: u64,
}

/// One run of pages that a scan found: addresses in the scanned process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PageRegion {
    /// First byte.
    pub start: u64,
    /// First byte after the run.
    pub end: u64,
    /// `PAGE_IS_*` bits.
    pub categories: u64,
}

#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = {
    assert!(size_of::<UffdioApi>() == 24);
    assert!(size_of::<UffdioRegister>() == 32);
    assert!(size_of::<UffdioWriteprotect>() == 24);
    assert!(size_of::<PageRegion>() == 24);
    assert!(size_of::<ScanArgument>() == 96);
};

/// Whether a scan write-protects what it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protect {
    /// Looks only; raises no MMU notification.
    No,
    /// Reports and write-protects each page in one step, so that no write is lost in between.
    /// Raises one MMU notification for the whole range.
    Matching,
}

/// Calls an ioctl that reads and writes `argument`.
fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: every request of this module takes a pointer to the struct it is called with, whose
    // size is part of the request's number; the kernel writes nothing beyond it except into the
    // vector of a scan, which `scan` passes with its true length.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument as *mut T) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The handshake of a new userfaultfd. `EINVAL`: the kernel lacks one of [`FEATURES`].
pub fn handshake(uffd: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(uffd, UFFDIO_API, &mut UffdioApi { api: UFFD_API, features: FEATURES, ioctls: 0 })?;
    Ok(())
}

/// Registers a mapping of the descriptor's process for write protection. Nothing is protected
/// yet. `EBUSY`: another userfaultfd has it.
pub fn register(uffd: BorrowedFd<'_>, start: u64, len_bytes: u64) -> io::Result<()> {
    let mut argument = UffdioRegister { start, len: len_bytes, mode: REGISTER_MODE_WP, ioctls: 0 };
    ioctl(uffd, UFFDIO_REGISTER, &mut argument)?;
    Ok(())
}

/// Write-protects pages, unpopulated ones included.
pub fn write_protect(uffd: BorrowedFd<'_>, start: u64, len_bytes: u64) -> io::Result<()> {
    let mut argument = UffdioWriteprotect { start, len: len_bytes, mode: WRITEPROTECT_MODE_WP };
    loop {
        match ioctl(uffd, UFFDIO_WRITEPROTECT, &mut argument) {
            Ok(_) => return Ok(()),
            // The process is changing its mappings at this moment.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
}

/// Scans `start..end` of the process behind a pagemap descriptor for pages written since they
/// were protected. Returns how many entries of `regions` were filled and the address where the
/// scan stopped: `end`, or less when `regions` is full. `EPERM`: part of the range is mapped and
/// not registered. An address that is not mapped at all counts as unwritten.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    protect: Protect,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let flags = match protect {
        Protect::No => SCAN_CHECK_WPASYNC,
        Protect::Matching => SCAN_CHECK_WPASYNC | SCAN_WP_MATCHING,
    };
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags,
        start,
        end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    let filled = (ioctl(pagemap, PAGEMAP_SCAN, &mut argument)? as usize).min(regions.len());
    if filled < regions.len() {
        // Not to be taken from `walk_end`: when the kernel's own buffer was full in between, it
        // keeps the address of that moment although the scan went on to the end.
        return Ok((filled, end));
    }
    let last_end = regions.last().map_or(start, |region| region.end);
    let stopped_at = argument.walk_end.max(last_end).min(end);
    if stopped_at <= start {
        return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
    }
    Ok((filled, stopped_at))
}
