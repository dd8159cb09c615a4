//! Maps files and anonymous memory as [`Memory`]; the mapping lives as long as any clone of it.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use memmap2::{Advice, MmapOptions, MmapRaw};
use romulus_transport::Memory;

/// Two megabytes, the usual huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Touched in one call: milliseconds, for which memory that is given up may stay.
const POPULATED_AT_ONCE_BYTES: usize = 32 << 20;

/// Maps `len_bytes` bytes of a guest's RAM file from `offset_bytes` on, readable only: what Romulus
/// wrote into guest memory by itself would escape dirty tracking.
pub fn map_guest_file(file: &File, offset_bytes: u64, len_bytes: usize) -> io::Result<Memory> {
    check_length(file, offset_bytes, len_bytes)?;
    let map = MmapOptions::new().offset(offset_bytes).len(len_bytes).map_raw_read_only(file)?;
    Ok(into_memory(Arc::new(map)))
}

/// Maps all of a file of this length, readable and writable, shared with whoever else maps it.
pub(crate) fn map_shared(file: &File, len_bytes: usize) -> io::Result<Memory> {
    check_length(file, 0, len_bytes)?;
    Ok(into_memory(Arc::new(MmapOptions::new().len(len_bytes).map_raw(file)?)))
}

/// Private memory for staging, in huge pages where the system has some to spare. It is touched once,
/// so that no epoch pays for a first fault.
pub fn staging(len_bytes: usize) -> io::Result<Memory> {
    let map = private(len_bytes)?;
    // Only advice: without it the first epochs are slower.
    let _ = map.advise(Advice::PopulateWrite);
    Ok(into_memory(Arc::new(map)).part(0, len_bytes))
}

/// As [`staging`], but usable at once: a thread touches it meanwhile, since gigabytes take seconds. It
/// ends soon after the memory is given up, which is free once it has.
pub(crate) fn staging_populated_later(len_bytes: usize) -> io::Result<(Memory, JoinHandle<()>)> {
    let map = Arc::new(private(len_bytes)?);
    let weak = Arc::downgrade(&map);
    let thread = thread::Builder::new().name("populate".into()).spawn(move || populate(&weak))?;
    Ok((into_memory(map).part(0, len_bytes), thread))
}

/// Touches memory from its begin on, for as long as somebody else has it.
fn populate(map: &Weak<MmapRaw>) {
    let mut offset = 0;
    while let Some(map) = map.upgrade().filter(|map| offset < map.len()) {
        let len_bytes = POPULATED_AT_ONCE_BYTES.min(map.len() - offset);
        if let Err(error) = map.advise_range(Advice::PopulateWrite, offset, len_bytes) {
            return tracing::debug!(%error, offset, "memory is populated as it is used");
        }
        offset += len_bytes;
    }
}

/// Zeroed memory of this process alone, which no child inherits: in reserved huge pages if there are
/// enough, in transparent ones otherwise.
fn private(len_bytes: usize) -> io::Result<MmapRaw> {
    let rounded = len_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
    let map = match MmapOptions::new().len(rounded).huge(Some(21)).map_anon() {
        Ok(map) => MmapRaw::from(map),
        Err(_) => {
            let map = MmapRaw::from(MmapOptions::new().len(rounded).map_anon()?);
            // Only advice: without it the memory is as good and a little slower.
            let _ = map.advise(Advice::HugePage);
            map
        }
    };
    // What a device writes must not land in a copy that a fork made.
    map.advise(Advice::DontFork)?;
    Ok(map)
}

/// Access beyond the end of a file would be a signal and not an error.
fn check_length(file: &File, offset_bytes: u64, len_bytes: usize) -> io::Result<()> {
    let file_bytes = file.metadata()?.len();
    match offset_bytes.checked_add(len_bytes as u64) {
        Some(end) if end <= file_bytes => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the file has {file_bytes} bytes, {len_bytes} are wanted from {offset_bytes} on"),
        )),
    }
}

fn into_memory(map: Arc<MmapRaw>) -> Memory {
    let len_bytes = map.len();
    let base = NonNull::new(map.as_mut_ptr()).expect("a mapping is not at address 0");
    // SAFETY: the span is mapped until `map`, the owner, is dropped, and `MmapRaw` hands out no
    // references into it. A read-only mapping is documented as such by the function that makes it.
    unsafe { Memory::new(base, len_bytes, map) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_guest_file_is_seen_live_and_never_beyond_its_end() {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(3 * 4096).unwrap();
        let guest = map_guest_file(&file, 4096, 2 * 4096).unwrap();
        let writer = map_shared(&file, 3 * 4096).unwrap();
        writer.write(4096, b"seen");
        let mut bytes = [0; 4];
        guest.read(0, &mut bytes);
        assert_eq!(&bytes, b"seen");
        assert!(map_guest_file(&file, 4096, 3 * 4096).is_err());
        assert!(map_guest_file(&file, u64::MAX, 2).is_err());
    }

    #[test]
    fn memory_is_populated_while_somebody_has_it() {
        let present = |map: &MmapRaw| {
            let mut entries = vec![0; map.len() / 4096 * 8];
            let first = map.as_ptr() as u64 / 4096 * 8;
            File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, first).unwrap();
            entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count()
        };
        let map = Arc::new(private(2 * POPULATED_AT_ONCE_BYTES + 1).unwrap());
        assert_eq!(present(&map), 0);
        populate(&Arc::downgrade(&map));
        assert_eq!(present(&map), map.len() / 4096);
        let (memory, thread) = staging_populated_later(5_000).unwrap();
        memory.write(4_999, &[1]);
        drop(memory);
        thread.join().unwrap();
        let weak = Arc::downgrade(&map);
        drop(map);
        populate(&weak);
    }

    #[test]
    fn staging_is_zeroed_and_as_long_as_asked() {
        let memory = staging(5_000).unwrap();
        assert_eq!(memory.len_bytes(), 5_000);
        let mut bytes = [1; 5_000];
        memory.read(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
        memory.write(4_999, &[1]);
    }
}
