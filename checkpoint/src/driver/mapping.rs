//! Anonymous mappings: memory that costs nothing until it is touched.

use std::ptr::NonNull;
use std::sync::Arc;

use romulus_transport::Memory;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping is owned solely by this value, which only unmaps it.
unsafe impl Send for Mapping {}
// SAFETY: no method touches the memory through a shared reference.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `anonymous_mapping` with this very base and length, unmapped once.
        // Failure could only mean wrong arguments and leaves the mapping in place.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

/// Zeroed, page-aligned private memory of `len_bytes` bytes (at least one page is mapped), populated
/// as it is touched.
pub fn anonymous_mapping(len_bytes: usize) -> std::io::Result<Memory> {
    map(len_bytes, MapFlags::PRIVATE)
}

/// As [`anonymous_mapping`], but a shared mapping, as a guest's RAM is: what dirty tracking by write
/// protection asks for.
pub fn shared_mapping(len_bytes: usize) -> std::io::Result<Memory> {
    map(len_bytes, MapFlags::SHARED)
}

fn map(len_bytes: usize, sharing: MapFlags) -> std::io::Result<Memory> {
    let mapped_bytes = len_bytes.max(1);
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
    let base = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            mapped_bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            sharing | MapFlags::NORESERVE,
        )
    }?;
    let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| std::io::Error::other("mmap returned null"))?;
    let owner = Arc::new(Mapping { base, len_bytes: mapped_bytes });
    // SAFETY: the span is mapped readable and writable until `owner` is dropped, and no Rust
    // reference into it exists.
    Ok(unsafe { Memory::new(base, len_bytes, owner) })
}

#[cfg(test)]
mod tests {
    use super::anonymous_mapping;

    #[test]
    fn a_mapping_is_zeroed_and_writable_to_its_last_byte() {
        let memory = anonymous_mapping(3 * 4096).expect("12 KiB can be mapped");
        memory.write(3 * 4096 - 1, &[7]);
        let mut bytes = [1; 2];
        memory.read(3 * 4096 - 2, &mut bytes);
        assert_eq!(bytes, [0, 7]);
    }
}
