//! Memory that somebody else may write while we look at it: guest RAM, the arena, staging.
//!
//! Such memory is never a `&[u8]`: the compiler may assume that a shared slice does not change.
//! [`Memory`] hands bytes out by copying only, or as raw pointers for the kernel or a NIC.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::streaming;

/// A span of mapped memory and what keeps it mapped. Cloning shares the span.
#[derive(Clone)]
pub struct Memory {
    base: NonNull<u8>,
    len_bytes: usize,
    owner: Arc<dyn Send + Sync>,
}

// SAFETY: `Memory` is an address, a length and a shared owner that keeps the span mapped. All
// access through it copies bytes by raw pointers and never forms references into the span, so
// concurrent use from several threads can tear data but cannot break memory safety.
unsafe impl Send for Memory {}
// SAFETY: as for `Send` above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Describes `len_bytes` bytes at `base`, kept mapped by `owner`.
    ///
    /// # Safety
    /// The span must stay mapped and readable as long as `owner` lives, and writable if any of
    /// the writing methods is used on it. No Rust reference into the span may exist.
    pub unsafe fn new(base: NonNull<u8>, len_bytes: usize, owner: Arc<dyn Send + Sync>) -> Self {
        Self { base, len_bytes, owner }
    }

    /// Zeroed page-aligned anonymous memory on the heap, for tests and small staging.
    pub fn anonymous(len_bytes: usize) -> Self {
        struct Block(NonNull<u8>, std::alloc::Layout);
        // SAFETY: the block is owned solely by this value and only freed in `drop`.
        unsafe impl Send for Block {}
        // SAFETY: no method of `Block` touches the memory.
        unsafe impl Sync for Block {}
        impl Drop for Block {
            fn drop(&mut self) {
                // SAFETY: allocated below with this very layout, freed once.
                unsafe { std::alloc::dealloc(self.0.as_ptr(), self.1) }
            }
        }
        // Whole pages: an RDMA library may keep pages with registered bytes out of child processes.
        let whole_pages = len_bytes.max(1).checked_next_multiple_of(4096).unwrap_or(usize::MAX);
        let layout = std::alloc::Layout::from_size_align(whole_pages, 4096)
            .expect("a length below isize::MAX rounded up to a page");
        // SAFETY: the layout has a non-zero size.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(pointer) else { std::alloc::handle_alloc_error(layout) };
        Self { base, len_bytes, owner: Arc::new(Block(base, layout)) }
    }

    /// Length of the span in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The address of byte `offset`, for system calls and work requests.
    ///
    /// # Panics
    /// If `offset + len_bytes` exceeds the span: offsets from a peer are checked before.
    pub fn pointer(&self, offset: usize, len_bytes: usize) -> *mut u8 {
        self.check(offset, len_bytes);
        // SAFETY: `check` holds the offset inside the span.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The part of the span from `offset` on, `len_bytes` long.
    ///
    /// # Panics
    /// If the part exceeds the span.
    pub fn part(&self, offset: usize, len_bytes: usize) -> Memory {
        self.check(offset, len_bytes);
        // SAFETY: `check` holds the part inside the span, and the owner is shared.
        let base = unsafe { self.base.add(offset) };
        Memory { base, len_bytes, owner: Arc::clone(&self.owner) }
    }

    /// Copies out of the span.
    ///
    /// # Panics
    /// If the range exceeds the span.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.pointer(offset, into.len());
        // SAFETY: `pointer` checked the range; `into` is a distinct Rust buffer.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies into the span.
    ///
    /// # Panics
    /// If the range exceeds the span.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let into = self.pointer(offset, from.len());
        // SAFETY: `pointer` checked the range; `from` is a distinct Rust buffer.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) }
    }

    /// Copies `len_bytes` from this span at `offset` to `target` at `target_offset`.
    ///
    /// # Panics
    /// If either range exceeds its span.
    pub fn copy_to(&self, offset: usize, target: &Memory, target_offset: usize, len_bytes: usize) {
        let from = self.pointer(offset, len_bytes);
        let into = target.pointer(target_offset, len_bytes);
        // SAFETY: both ranges were checked; `copy` allows overlap.
        unsafe { std::ptr::copy(from, into, len_bytes) }
    }

    /// As [`copy_to`](Self::copy_to), for a target that is not read soon: it is written past the
    /// caches where addresses and length are whole cache lines. Where the ranges overlap it is not
    /// said what arrives.
    ///
    /// # Panics
    /// If either range exceeds its span.
    pub fn copy_streaming(&self, offset: usize, target: &Memory, target_offset: usize, len_bytes: usize) {
        let from = self.pointer(offset, len_bytes);
        let into = target.pointer(target_offset, len_bytes);
        // SAFETY: both ranges were checked, and stay mapped as long as the spans.
        unsafe { streaming::copy(from, into, len_bytes) }
    }

    /// Begins to fetch the bytes at `offset` into the caches, without waiting for them.
    ///
    /// # Panics
    /// If the offset is beyond the span.
    pub fn prefetch(&self, offset: usize) {
        streaming::prefetch(self.pointer(offset, 0));
    }

    fn check(&self, offset: usize, len_bytes: usize) {
        assert!(
            offset.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes),
            "memory range {offset}+{len_bytes} exceeds the span of {} bytes",
            self.len_bytes
        );
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:p}, {} bytes)", self.base, self.len_bytes)
    }
}
