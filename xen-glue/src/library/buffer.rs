//! Memory that a hypercall may write.

use std::sync::Arc;

use super::{Control, bindings, last_error};
use crate::error::XenError;

type RawBuffer = bindings::control::xc_hypercall_buffer;

/// A bitmap of a domain's frames in memory that is safe to hand to the hypervisor.
pub struct Bitmap {
    control: Arc<Control>,
    raw: RawBuffer,
    pages: i32,
    bits: u64,
}

// SAFETY: the buffer is plain memory of this process, owned by this value alone.
unsafe impl Send for Bitmap {}

impl Bitmap {
    /// A bitmap of `bits` bits, all zero.
    pub fn new(control: &Arc<Control>, bits: u64) -> Result<Self, XenError> {
        let bytes = bits.div_ceil(64) * 8;
        let pages = i32::try_from(bytes.div_ceil(4096).max(1))
            .map_err(|error| XenError::failed(format!("a bitmap of {bits} frames"), error))?;
        let mut raw = RawBuffer {
            hbuf: std::ptr::null_mut(),
            param_shadow: std::ptr::null_mut(),
            dir: 0,
            ubuf: std::ptr::without_provenance_mut(usize::MAX),
            sz: 0,
        };
        let (library, handle) = control.parts();
        // SAFETY: the handle is open, the buffer's description lives through the call.
        let base = unsafe { library.control.xc__hypercall_buffer_alloc_pages(handle, &raw mut raw, pages) };
        if base.is_null() {
            return Err(last_error(format!("memory for a bitmap of {bits} frames")));
        }
        // SAFETY: that many pages were just allocated.
        unsafe { std::ptr::write_bytes(base.cast::<u8>(), 0, pages as usize * 4096) };
        Ok(Self { control: Arc::clone(control), raw, pages, bits })
    }

    pub(super) fn raw(&mut self) -> *mut RawBuffer {
        &raw mut self.raw
    }

    /// Its length in bits.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Its words, the lowest frame in the lowest bit of the first.
    pub fn words(&self) -> &[u64] {
        let words = usize::try_from(self.bits.div_ceil(64)).unwrap_or(0);
        // SAFETY: the buffer is that long and page-aligned; the hypervisor writes it only within calls
        // that take `&mut self`.
        unsafe { std::slice::from_raw_parts(self.raw.hbuf.cast::<u64>(), words) }
    }
}

impl Drop for Bitmap {
    fn drop(&mut self) {
        let (library, handle) = self.control.parts();
        // SAFETY: allocated through the same handle with that many pages; freed once.
        unsafe { library.control.xc__hypercall_buffer_free_pages(handle, &raw mut self.raw, self.pages) };
    }
}
