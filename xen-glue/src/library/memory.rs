//! Mappings of another domain's memory.

use std::ptr::NonNull;
use std::sync::Arc;

use romulus_checkpoint::PAGE_BYTES;
use romulus_transport::Memory;

use super::bindings::memory as raw;
use super::{Library, last_error};
use crate::error::XenError;

/// An open way to other domains' memory.
pub struct ForeignMemory {
    library: Arc<Library>,
    handle: NonNull<raw::xenforeignmemory_handle>,
}

// SAFETY: the library's handle is a file descriptor and numbers that do not change.
unsafe impl Send for ForeignMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for ForeignMemory {}

/// Frames of a domain, mapped in a row.
pub struct Mapping {
    memory: Arc<ForeignMemory>,
    base: NonNull<u8>,
    frames: usize,
}

// SAFETY: an address and a length; the memory behind it is only reached through `Memory`.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl ForeignMemory {
    /// Opens the way.
    pub fn open(library: &Arc<Library>) -> Result<Arc<Self>, XenError> {
        // SAFETY: without a logger the library uses its own.
        let handle = unsafe { library.memory.xenforeignmemory_open(std::ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| last_error("opening the way to domains' memory"))?;
        Ok(Arc::new(Self { library: Arc::clone(library), handle }))
    }

    /// Maps frames of a domain in a row; all of them, or none.
    pub fn map(self: &Arc<Self>, domid: u32, frames: &[u64], writable: bool) -> Result<Mapping, XenError> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let mut errors = vec![0; frames.len()];
        // SAFETY: as many numbers are read, and as many errors written, as are given.
        let base = unsafe {
            self.library.memory.xenforeignmemory_map(
                self.handle.as_ptr(),
                domid,
                protection,
                frames.len(),
                frames.as_ptr(),
                errors.as_mut_ptr(),
            )
        };
        let what = || {
            let first = frames.first().copied().unwrap_or(0);
            format!("mapping {} frames of domain {domid} from {first:#x}", frames.len())
        };
        let Some(base) = NonNull::new(base.cast::<u8>()) else { return Err(last_error(what())) };
        let mapping = Mapping { memory: Arc::clone(self), base, frames: frames.len() };
        let failed = |index: &usize| errors[*index] != 0;
        let Some(first) = (0..frames.len()).find(failed) else { return Ok(mapping) };
        let count = (0..frames.len()).filter(failed).count();
        let error = std::io::Error::from_raw_os_error(errors[first].abs());
        Err(XenError::failed(
            what(),
            format!("{count} of them cannot be mapped, the first is {:#x}: {error}", frames[first]),
        ))
    }
}

impl Drop for ForeignMemory {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; no mapping is left, since each holds this value.
        unsafe { self.library.memory.xenforeignmemory_close(self.handle.as_ptr()) };
    }
}

impl Mapping {
    /// As memory, which keeps it mapped.
    pub fn into_memory(self) -> Memory {
        let (base, len_bytes) = (self.base, self.frames * PAGE_BYTES as usize);
        // SAFETY: mapped for that length until the owner is dropped. Who asked for a mapping that is not
        // writable does not write.
        unsafe { Memory::new(base, len_bytes, Arc::new(self)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let memory = &self.memory;
        // SAFETY: mapped once with that many pages, unmapped once.
        unsafe {
            memory.library.memory.xenforeignmemory_unmap(
                memory.handle.as_ptr(),
                self.base.as_ptr().cast(),
                self.frames,
            )
        };
    }
}
