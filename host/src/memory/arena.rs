//! The memory that a backup lends to a primary. Homes are files without a name on any file system, which
//! a standby maps through `/proc/PID/fd/N` and which are gone when nobody maps them any more; spares
//! are private and populated before they are needed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread::JoinHandle;

use romulus_checkpoint::driver::backup::{ArenaError, ArenaProvider, BackupArena};
use romulus_checkpoint::standby::ImageRegion;
use romulus_checkpoint::{ArenaShape, GuestLayout, PAGE_BYTES};
use romulus_transport::Memory;
use rustix::fs::{MemfdFlags, memfd_create};

use super::available::available_bytes;
use super::mapping::{map_shared, staging_populated_later};

/// Allocates arenas from the memory of this host. The files of the latest arena stay open, and so
/// reachable by path, until the next one is allocated or this is dropped.
#[derive(Debug, Default)]
pub struct HostArenas {
    homes: Vec<File>,
    /// Touches the spares of the latest arena.
    populating: Option<JoinHandle<()>>,
}

impl HostArenas {
    /// An allocator that has allocated nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl ArenaProvider for HostArenas {
    fn allocate(&mut self, layout: &GuestLayout, shape: &ArenaShape) -> Result<BackupArena, ArenaError> {
        // What an earlier session left is freed first: it may be what makes room.
        self.homes.clear();
        // It has nothing to say.
        let _ = self.populating.take().map(JoinHandle::join);
        let wanted_bytes = arena_bytes(shape)
            .ok_or_else(|| ArenaError::NoRoom("the arena asked for is larger than any memory".into()))?;
        let available = available_bytes();
        if wanted_bytes > available {
            return Err(ArenaError::NoRoom(format!(
                "the guest's image needs {} MiB and {} MiB are available; free memory on this host, or \
                 lower the primary's --spare-mib (it asks for {} MiB of spare frames)",
                wanted_bytes >> 20,
                available >> 20,
                (shape.spares * PAGE_BYTES) >> 20
            )));
        }
        let mut homes = Vec::new();
        let mut regions = Vec::new();
        // Copy-only homes are in the standby's own memory.
        let lent = if shape.copy_only_homes { &[][..] } else { &layout.regions[..] };
        for region in lent {
            let (file, memory) = allocate(&region.name, region.pages.saturating_mul(PAGE_BYTES))?;
            let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
            homes.push(file);
            regions.push(ImageRegion { name: region.name.clone(), path, memory });
        }
        let spares_bytes = shape.spares * PAGE_BYTES;
        let (spares, populating) = usize::try_from(spares_bytes)
            .map_err(io::Error::other)
            .and_then(staging_populated_later)
            .map_err(|error| not_allocated("spares", spares_bytes, &error))?;
        let (_, slots) = allocate("slots", shape.slots * shape.slot_bytes)?;
        self.homes = homes;
        self.populating = Some(populating);
        Ok(BackupArena { regions, spares, slots })
    }
}

fn arena_bytes(shape: &ArenaShape) -> Option<u64> {
    let homes = if shape.copy_only_homes { 0 } else { shape.pages };
    let frames = homes.checked_add(shape.spares)?.checked_mul(PAGE_BYTES)?;
    frames.checked_add(shape.slots.checked_mul(shape.slot_bytes)?)
}

fn not_allocated(name: &str, len_bytes: u64, error: &io::Error) -> ArenaError {
    let text = format!("allocating {} MiB for {name}: {error}", len_bytes >> 20);
    match error.kind() {
        io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => ArenaError::NoRoom(text),
        _ => ArenaError::Failed(text),
    }
}

fn allocate(name: &str, len_bytes: u64) -> Result<(File, Memory), ArenaError> {
    let failed = |error: io::Error| not_allocated(name, len_bytes, &error);
    let file = File::from(
        memfd_create("romulus-arena", MemfdFlags::CLOEXEC).map_err(io::Error::from).map_err(failed)?,
    );
    file.set_len(len_bytes).map_err(failed)?;
    let len = usize::try_from(len_bytes).map_err(|error| failed(io::Error::other(error)))?;
    let memory = map_shared(&file, len).map_err(failed)?;
    Ok((file, memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use romulus_checkpoint::Region;

    fn shape(pages: u64) -> ArenaShape {
        ArenaShape { pages, spares: 4, slots: 3, slot_bytes: 8192, copy_only_homes: false }
    }

    fn layout(pages: u64) -> GuestLayout {
        GuestLayout { regions: vec![Region { name: "ram".into(), pages }] }
    }

    #[test]
    fn the_image_is_the_file_that_a_standby_maps() {
        let mut arenas = HostArenas::new();
        let arena = arenas.allocate(&layout(8), &shape(8)).unwrap();
        arena.regions[0].memory.write(4096, b"page one");
        let seen = std::fs::read(&arena.regions[0].path).unwrap();
        assert_eq!(seen.len(), 8 * 4096);
        assert_eq!(&seen[4096..4104], b"page one");
        assert_eq!(arena.arena().len_bytes(), shape(8).len_bytes());
    }

    #[test]
    fn more_than_there_is_gets_a_clear_refusal_and_allocates_nothing() {
        let pages = 1 << 40;
        let error = HostArenas::new().allocate(&layout(pages), &shape(pages)).unwrap_err();
        assert!(matches!(error, ArenaError::NoRoom(_)), "{error}");
        assert!(error.to_string().contains("MiB are available"), "{error}");
        let error = HostArenas::new().allocate(&layout(u64::MAX), &shape(u64::MAX)).unwrap_err();
        assert!(matches!(error, ArenaError::NoRoom(_)), "{error}");
    }

    #[test]
    fn only_what_is_for_want_of_memory_is_called_so() {
        // The system has no file of such a length, however much memory there is.
        let error = allocate("odd", u64::MAX - 4095).unwrap_err();
        assert!(matches!(error, ArenaError::Failed(_)), "{error}");
    }
}
