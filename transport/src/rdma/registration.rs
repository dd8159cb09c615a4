//! Registers memory in slices, several at a time: pinning pages is what takes the time.

use std::io;
use std::sync::Arc;

use super::verbs::{Access, MemoryRegion, ProtectionDomain};
use crate::error::TransportError;
use crate::memory::Memory;

/// A slice is at least so long, except for the last; shorter ones are not worth a thread.
const SLICE_BYTES_MIN: u64 = 256 << 20;
/// Slices begin at multiples of this, so that none divides a huge page of an aligned mapping.
const SLICE_BYTES_UNIT: u64 = 1 << 30;
/// Slices registered at a time, at most.
const THREADS_MAX: u64 = 8;

/// A registered span of memory: slices of equal length, the last one perhaps shorter.
#[derive(Debug)]
pub(super) struct Registered {
    slices: Vec<MemoryRegion>,
    slice_bytes: u64,
    len_bytes: u64,
}

impl Registered {
    /// Registers all of `memory`.
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        memory: &Memory,
        access: Access,
    ) -> Result<Self, TransportError> {
        let limit = domain.context().limits().map_err(|source| TransportError::Io {
            what: "asking the RDMA device for its limits".into(),
            source,
        })?;
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
        let len_bytes = memory.len_bytes() as u64;
        let slice_bytes = slice_bytes(len_bytes, threads.min(THREADS_MAX), limit.max_region_bytes);
        let parts: Vec<Memory> = (0..len_bytes.div_ceil(slice_bytes))
            .map(|index| {
                let offset = index * slice_bytes;
                memory.part(offset as usize, slice_bytes.min(len_bytes - offset) as usize)
            })
            .collect();
        let mut slices = Vec::with_capacity(parts.len());
        for group in parts.chunks(THREADS_MAX as usize) {
            for slice in register_group(domain, group, access) {
                slices.push(slice.map_err(|error| explain(&error, len_bytes))?);
            }
        }
        Ok(Registered { slices, slice_bytes, len_bytes })
    }

    /// Length in bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The slices in order.
    pub(super) fn slices(&self) -> &[MemoryRegion] {
        &self.slices
    }

    /// The slice that holds byte `offset`, where in it, and how many bytes of it follow.
    ///
    /// # Panics
    /// If the offset is not below the length.
    pub(super) fn locate(&self, offset: u64) -> (&MemoryRegion, u64, u64) {
        let slice = &self.slices[(offset / self.slice_bytes) as usize];
        let inside = offset % self.slice_bytes;
        (slice, inside, slice.memory().len_bytes() as u64 - inside)
    }
}

fn slice_bytes(len_bytes: u64, threads: u64, most: u64) -> u64 {
    let fair = len_bytes.div_ceil(threads.max(1)).max(SLICE_BYTES_MIN);
    let unit = if fair >= SLICE_BYTES_UNIT { SLICE_BYTES_UNIT } else { SLICE_BYTES_MIN };
    let wanted = fair.next_multiple_of(unit);
    // A device whose limit is odd gets slices of whole pages.
    let most = if most == 0 { u64::MAX } else { most };
    if wanted > most { (most & !4095).max(4096) } else { wanted }
}

fn register_group(
    domain: &Arc<ProtectionDomain>,
    parts: &[Memory],
    access: Access,
) -> Vec<io::Result<MemoryRegion>> {
    let register = |part: &Memory| MemoryRegion::register(domain, part.clone(), access);
    if let [part] = parts {
        return vec![register(part)];
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(|| register(part))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|_| Err(io::Error::other("the registering thread panicked"))))
            .collect()
    })
}

pub(super) fn explain(error: &io::Error, len_bytes: u64) -> TransportError {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let why = match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN) => match limit {
            Some(limit) => format!(
                "the locked-memory limit of this process is {limit} bytes (RLIMIT_MEMLOCK), too little \
                 with what is registered already; raise it with `ulimit -l unlimited`, with \
                 LimitMEMLOCK=infinity in the systemd unit, or in /etc/security/limits.conf"
            ),
            None => "the kernel could not pin so much memory, though the locked-memory limit allows \
                     it; the device may be out of memory regions"
                .into(),
        },
        Some(libc::EFAULT) => "its pages cannot be pinned: it is mapped from another machine's or \
                               domain's memory (Xen), from a device, or without the access needed; use \
                               staged capture, which copies"
            .into(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => "the device or the kernel does not offer it".into(),
        Some(libc::EINVAL) => "the device refuses this memory or its length".into(),
        _ => "the kernel refuses".into(),
    };
    TransportError::Registration(format!("{len_bytes} bytes: {error}; {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_suit_threads_huge_pages_and_the_device() {
        const GIB: u64 = 1 << 30;
        assert_eq!(slice_bytes(4096, 8, u64::MAX), SLICE_BYTES_MIN);
        assert_eq!(slice_bytes(64 * GIB, 8, u64::MAX), 8 * GIB);
        assert_eq!(slice_bytes(63 * GIB, 8, u64::MAX), 8 * GIB);
        assert_eq!(slice_bytes(GIB, 2, u64::MAX), GIB / 2);
        assert_eq!(slice_bytes(64 * GIB, 8, 2 * GIB), 2 * GIB);
        assert_eq!(slice_bytes(64 * GIB, 8, 0), 8 * GIB);
        assert_eq!(slice_bytes(GIB, 1, 5000), 4096);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let text = |number| explain(&io::Error::from_raw_os_error(number), 4096).to_string();
        assert!(text(libc::EFAULT).contains("staged capture"));
        let no_memory = text(libc::ENOMEM);
        assert!(no_memory.contains("LimitMEMLOCK") || no_memory.contains("could not pin"), "{no_memory}");
    }
}
