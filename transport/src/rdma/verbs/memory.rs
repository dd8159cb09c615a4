//! Protection domains and registered memory.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as ffi;

use super::{Context, log_destroyed};
use crate::memory::Memory;

/// Keeps what belongs together: a key works only with queue pairs of its own domain.
#[derive(Debug)]
pub(in crate::rdma) struct ProtectionDomain {
    raw: NonNull<ffi::ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs allows the use of a protection domain from several threads at once.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(in crate::rdma) fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: an open context.
        let raw = unsafe { ffi::ibv_alloc_pd(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(ProtectionDomain { raw, context: Arc::clone(context) }))
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_pd {
        self.raw.as_ptr()
    }

    /// The context it belongs to.
    pub(in crate::rdma) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; what was made in it held an `Arc` of it.
        log_destroyed("protection domain", unsafe { ffi::ibv_dealloc_pd(self.raw()) });
    }
}

/// What a device may do with registered memory, beside reading it for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum Access {
    /// Nothing more.
    Send,
    /// Put received messages there.
    Receive,
    /// Let the peer write there.
    RemoteWrite,
}

/// Registered memory; keeps it mapped.
#[derive(Debug)]
pub(in crate::rdma) struct MemoryRegion {
    raw: NonNull<ffi::ibv_mr>,
    memory: Memory,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: a memory region is only named in work requests, which may be posted by any thread.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers all of `memory`, which pins its pages.
    pub(in crate::rdma) fn register(
        domain: &Arc<ProtectionDomain>,
        memory: Memory,
        access: Access,
    ) -> io::Result<Self> {
        let flags = match access {
            Access::Send => ffi::ibv_access_flags(0),
            Access::Receive => ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Access::RemoteWrite => {
                ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            }
        };
        let address = memory.pointer(0, memory.len_bytes());
        // SAFETY: the span is mapped as long as `memory` lives, which this value holds until
        // after the deregistration; no Rust reference into it exists (`Memory::new`).
        let raw =
            unsafe { ffi::ibv_reg_mr(domain.raw(), address.cast(), memory.len_bytes(), flags.0 as i32) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(MemoryRegion { raw, memory, _domain: Arc::clone(domain) })
    }

    /// The memory registered.
    pub(in crate::rdma) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The address of its first byte, as work requests name it.
    pub(in crate::rdma) fn address(&self) -> u64 {
        self.memory.pointer(0, 0) as u64
    }

    /// Names it in this host's work requests.
    pub(in crate::rdma) fn local_key(&self) -> u32 {
        // SAFETY: a live memory region.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    /// Names it in the peer's work requests.
    pub(in crate::rdma) fn remote_key(&self) -> u32 {
        // SAFETY: a live memory region.
        unsafe { (*self.raw.as_ptr()).rkey }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: registered in `register`, deregistered once.
        let result = unsafe { ffi::ibv_dereg_mr(self.raw.as_ptr()) };
        if result != 0 {
            // The device may still write there: the memory must never be used for anything else.
            std::mem::forget(self.memory.clone());
        }
        log_destroyed("memory region", result);
    }
}
