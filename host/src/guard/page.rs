//! The page that the protector shares with its guard: what it has done to the guest so far.
//!
//! Layout, version 1, native byte order, shared only between two processes of one program:
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic, 8 bytes `ROMGUARD` |
//! | 8 | version, u32 |
//! | 12 | phase, u32: 0 not armed, 1 armed, 2 detached |
//! | 16 | paused, u32: 1 from before the guest is paused until after it is resumed |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::machine::LastWords;

const MAGIC: u64 = u64::from_ne_bytes(*b"ROMGUARD");
const VERSION: u32 = 1;
const PAGE_BYTES: usize = 4096;

const ARMED: u32 = 1;
const DETACHED: u32 = 2;

#[repr(C)]
struct Layout {
    magic: AtomicU64,
    version: AtomicU32,
    phase: AtomicU32,
    paused: AtomicU32,
}

const _: () = {
    assert!(std::mem::offset_of!(Layout, version) == 8);
    assert!(std::mem::offset_of!(Layout, phase) == 12);
    assert!(std::mem::offset_of!(Layout, paused) == 16);
};

/// The shared page.
#[derive(Debug)]
pub struct Page {
    address: *mut Layout,
    file: OwnedFd,
}

// SAFETY: the page is mapped as long as the value lives and is only touched through atomics.
unsafe impl Send for Page {}
// SAFETY: as for `Send`.
unsafe impl Sync for Page {}

impl Page {
    /// A new page: not armed, not paused.
    pub fn create() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("romulus-guard", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, PAGE_BYTES as u64)?;
        let page = Self::map(file)?;
        page.layout().magic.store(MAGIC, Ordering::Relaxed);
        page.layout().version.store(VERSION, Ordering::Release);
        Ok(page)
    }

    /// The page of another process.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        if rustix::fs::fstat(&file)?.st_size != PAGE_BYTES as i64 {
            return Err(io::Error::other("the guard's page has another size than expected"));
        }
        let page = Self::map(file)?;
        let version = page.layout().version.load(Ordering::Acquire);
        if page.layout().magic.load(Ordering::Relaxed) != MAGIC || version != VERSION {
            return Err(io::Error::other("the guard's page is of another version of this program"));
        }
        Ok(page)
    }

    fn map(file: OwnedFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let address = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::SHARED, &file, 0)
        }?;
        Ok(Self { address: address.cast(), file })
    }

    fn layout(&self) -> &Layout {
        // SAFETY: a whole page is mapped, which is aligned and larger than the layout, until this
        // value is dropped; atomics may be shared between processes and any bytes are valid.
        unsafe { &*self.address }
    }

    /// The file behind it, to be handed to the guard.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// From now on the guard has something to do if the protector dies.
    pub fn arm(&self) {
        self.layout().phase.store(ARMED, Ordering::SeqCst);
    }

    /// The guest has been let go cleanly.
    pub fn detach(&self) {
        self.layout().phase.store(DETACHED, Ordering::SeqCst);
    }

    fn set_paused(&self, paused: bool) {
        self.layout().paused.store(u32::from(paused), Ordering::SeqCst);
    }

    /// What it says now.
    pub fn last_words(&self) -> LastWords {
        let phase = self.layout().phase.load(Ordering::SeqCst);
        LastWords {
            armed: phase == ARMED,
            detached: phase == DETACHED,
            paused: self.layout().paused.load(Ordering::SeqCst) != 0,
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, unmapped once; `layout` borrows from `self`. Failure could only
        // mean wrong arguments.
        let _ = unsafe { rustix::mm::munmap(self.address.cast(), PAGE_BYTES) };
    }
}

/// Where the one who pauses the guest notes that it is paused. Costs no system call.
#[derive(Clone, Debug, Default)]
pub struct PauseFlag(Option<Arc<Page>>);

impl PauseFlag {
    /// The flag of a guard's page.
    pub(super) fn of(page: Arc<Page>) -> Self {
        Self(Some(page))
    }

    /// A flag that nobody watches.
    pub fn unwatched() -> Self {
        Self(None)
    }

    /// Call **before** the command that pauses the guest.
    pub fn raise(&self) {
        if let Some(page) = &self.0 {
            page.set_paused(true);
        }
    }

    /// Call **after** the guest runs again.
    pub fn lower(&self) {
        if let Some(page) = &self.0 {
            page.set_paused(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_side_sees_what_was_written() {
        let page = Arc::new(Page::create().unwrap());
        let other = Page::open(page.file().try_clone_to_owned().unwrap()).unwrap();
        let nothing = LastWords { armed: false, detached: false, paused: false };
        assert_eq!(other.last_words(), nothing);
        let flag = PauseFlag::of(Arc::clone(&page));
        page.arm();
        flag.raise();
        assert_eq!(other.last_words(), LastWords { armed: true, detached: false, paused: true });
        flag.lower();
        page.detach();
        drop((flag, page));
        assert_eq!(other.last_words(), LastWords { armed: false, detached: true, paused: false });
    }

    #[test]
    fn foreign_files_are_refused() {
        let make = |bytes: u64| {
            let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, bytes).unwrap();
            file
        };
        assert!(Page::open(make(PAGE_BYTES as u64)).is_err());
        assert!(Page::open(make(0)).is_err());
    }
}
