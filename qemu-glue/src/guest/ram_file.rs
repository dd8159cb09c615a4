//! The file behind a RAM block, as far as it has content.

use std::fs::File;

use romulus_checkpoint::{Extent, PAGE_BYTES, PageIndex};
use romulus_transport::Memory;
use rustix::fs::{SeekFrom, seek};

/// A RAM block's part of its file, and the same part mapped here.
pub(super) struct RamFile {
    pub(super) file: File,
    pub(super) offset_bytes: u64,
    pub(super) memory: Memory,
}

impl RamFile {
    /// Appends the pages that the file has content for, the block's first page being `first`.
    /// Found without touching memory: reading a page that was never written would allocate it. A
    /// file system that knows nothing of holes has content everywhere.
    pub(super) fn populated(&self, first: PageIndex, pages: &mut Vec<Extent>) {
        let end = self.offset_bytes + self.memory.len_bytes() as u64;
        let mut at = self.offset_bytes;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) if data < end => data.max(at),
                Ok(_) | Err(rustix::io::Errno::NXIO) => return,
                Err(_) => at,
            };
            let hole = match seek(&self.file, SeekFrom::Hole(data)) {
                Ok(hole) if hole > data => hole.min(end),
                _ => end,
            };
            let from = (data - self.offset_bytes) / PAGE_BYTES;
            let to = (hole - self.offset_bytes).div_ceil(PAGE_BYTES);
            pages.push(Extent { first: PageIndex(first.0 + from), pages: to - from });
            at = hole;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_what_was_written_is_populated() {
        let memfd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(64 * PAGE_BYTES).unwrap();
        for page in [9, 10, 30, 63] {
            file.write_all_at(b"x", page * PAGE_BYTES + 7).unwrap();
        }
        let memory = Memory::anonymous(56 * 4096);
        let mut pages = Vec::new();
        // The block begins at page 8 of the file and is called 100.
        RamFile { file, offset_bytes: 8 * PAGE_BYTES, memory }.populated(PageIndex(100), &mut pages);
        let expected = [(101, 2), (122, 1), (155, 1)];
        let found: Vec<_> = pages.iter().map(|extent| (extent.first.0, extent.pages)).collect();
        assert_eq!(found, expected);
    }
}
