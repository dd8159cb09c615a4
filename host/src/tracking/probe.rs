//! What this kernel can do, tried out on this process's own memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use romulus_checkpoint::PAGE_BYTES;

use super::kernel::{self, PageRegion, Protect};
use super::soft_dirty;

const PAGES: usize = 4;

/// Whether writes can be tracked by write protection here; if not, why.
pub fn write_protect() -> Result<(), String> {
    let uffd = own_userfaultfd()?;
    kernel::handshake(uffd.as_fd()).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => "userfaultfd lacks asynchronous write protection".to_owned(),
        _ => format!("userfaultfd's handshake: {error}"),
    })?;
    let pages = Pages::new().map_err(|error| format!("map test pages: {error}"))?;
    let start = pages.address();
    let len_bytes = PAGES as u64 * PAGE_BYTES;
    kernel::register(uffd.as_fd(), start, len_bytes).map_err(|error| format!("register: {error}"))?;
    kernel::write_protect(uffd.as_fd(), start, len_bytes).map_err(|error| format!("protect: {error}"))?;
    let pagemap = File::open("/proc/self/pagemap").map_err(|error| format!("open pagemap: {error}"))?;
    pages.write(2);
    let mut regions = [PageRegion::default(); PAGES];
    let mut written = || {
        let scanned =
            kernel::scan(pagemap.as_fd(), start, start + len_bytes, Protect::Matching, &mut regions);
        let (filled, _) = scanned.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTTY) => "the kernel has no PAGEMAP_SCAN".to_owned(),
            _ => format!("PAGEMAP_SCAN: {error}"),
        })?;
        Ok::<_, String>(regions[..filled].iter().map(|region| (region.start, region.end)).collect::<Vec<_>>())
    };
    let expected = (start + 2 * PAGE_BYTES, start + 3 * PAGE_BYTES);
    let (first, second) = (written()?, written()?);
    if first != [expected] || !second.is_empty() {
        return Err("PAGEMAP_SCAN does not report what was written".into());
    }
    Ok(())
}

/// Whether writes can be tracked by soft-dirty bits here; if not, why.
pub fn soft_dirty() -> Result<(), String> {
    let pages = Pages::new().map_err(|error| format!("map test pages: {error}"))?;
    let pagemap = File::open("/proc/self/pagemap").map_err(|error| format!("open pagemap: {error}"))?;
    pages.write(0);
    pages.write(1);
    let bits = || -> Result<[bool; 2], String> {
        let mut entries = [0; 2 * soft_dirty::ENTRY_BYTES];
        let offset = pages.address() / PAGE_BYTES * soft_dirty::ENTRY_BYTES as u64;
        pagemap.read_exact_at(&mut entries, offset).map_err(|error| format!("read pagemap: {error}"))?;
        let (first, second) = entries.split_at(soft_dirty::ENTRY_BYTES);
        Ok([soft_dirty::is_dirty(first), soft_dirty::is_dirty(second)])
    };
    // Without the feature the kernel accepts the write and the bit stays zero.
    std::fs::write("/proc/self/clear_refs", soft_dirty::CLEAR)
        .map_err(|error| format!("write clear_refs: {error}"))?;
    let cleared = bits()?;
    pages.write(1);
    match (cleared, bits()?) {
        ([false, false], [false, true]) => Ok(()),
        ([false, false], [false, false]) => Err("the kernel does not keep them".into()),
        _ => Err("they do not follow what was written".into()),
    }
}

/// A userfaultfd of this process's memory.
pub(super) fn own_userfaultfd() -> Result<OwnedFd, String> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | kernel::UFFD_USER_MODE_ONLY as i32;
    // SAFETY: a plain number in, a new descriptor or -1 out.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS) => "the kernel has no userfaultfd".to_owned(),
            _ => format!("userfaultfd: {error}"),
        });
    }
    // SAFETY: the call returned this new descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A few shared pages, as guest memory is.
struct Pages(*mut u8);

impl Pages {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping; touches no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * PAGE_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(address.cast())) }
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }

    fn write(&self, page: usize) {
        assert!(page < PAGES);
        // SAFETY: inside the mapping; volatile, so that the write really happens.
        unsafe { self.0.add(page * PAGE_BYTES as usize).write_volatile(1) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once; no reference into it exists.
        unsafe { libc::munmap(self.0.cast(), PAGES * PAGE_BYTES as usize) };
    }
}
