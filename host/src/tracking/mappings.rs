//! Whether what is to be tracked is mapped as it has to be.

use super::target::Target;
use super::{DirtyRange, TrackingError};
use crate::maps::{Mapping, parse};

/// Checks that each range is page-aligned and mapped, shared and writable, from end to end.
pub fn check(target: &Target, ranges: &[DirtyRange]) -> Result<(), TrackingError> {
    let mappings = parse(&target.read_proc("maps")?);
    for range in ranges {
        check_range(&mappings, range).map_err(|why| {
            TrackingError::Refused(format!(
                "cannot track {:#x}..{:#x} of process {}: {why}",
                range.address,
                range.end(),
                target.pid()
            ))
        })?;
    }
    Ok(())
}

fn check_range(mappings: &[Mapping], range: &DirtyRange) -> Result<(), String> {
    if range.pages == 0
        || !range.address.is_multiple_of(romulus_checkpoint::PAGE_BYTES)
        || range.end() == u64::MAX
    {
        return Err("it is empty, not page-aligned or leaves the address space".into());
    }
    let mut at = range.address;
    while at < range.end() {
        let mapping = mappings
            .iter()
            .find(|mapping| mapping.start <= at && at < mapping.end)
            .ok_or_else(|| format!("nothing is mapped at {at:#x}"))?;
        if !mapping.shared {
            return Err(format!(
                "the mapping at {at:#x} is private; guest memory must be shared (share=on), or its \
                 copy here would not be what the guest sees"
            ));
        }
        if !mapping.writable {
            return Err(format!("the mapping at {at:#x} is not writable"));
        }
        at = mapping.end;
    }
    Ok(())
}

/// The size of the pages behind an address: larger than 4 KiB on hugetlbfs. Where it cannot be
/// found out (following `map_files` needs privilege), 4 KiB.
pub fn page_bytes_at(target: &Target, address: u64) -> u64 {
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    let Ok(text) = target.read_proc("maps") else { return romulus_checkpoint::PAGE_BYTES };
    parse(&text)
        .iter()
        .find(|mapping| mapping.start <= address && address < mapping.end)
        .and_then(|mapping| {
            let path = format!("/proc/{}/map_files/{:x}-{:x}", target.pid(), mapping.start, mapping.end);
            rustix::fs::statfs(path).ok()
        })
        .filter(|filesystem| filesystem.f_type as u64 == HUGETLBFS_MAGIC)
        .map(|filesystem| filesystem.f_bsize as u64)
        .filter(|bytes| bytes.is_power_of_two() && *bytes >= romulus_checkpoint::PAGE_BYTES)
        .unwrap_or(romulus_checkpoint::PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use romulus_checkpoint::PageIndex;

    const TEXT: &str = "\
10000-12000 rw-s 00000000 00:01 1040    /memfd:guest ram (deleted)
12000-13000 rw-s 00002000 00:01 1040    /memfd:guest ram (deleted)
13000-14000 rw-p 00000000 00:00 0
14000-15000 r--s 00000000 00:01 7       /dev/shm/x
";

    fn range(address: u64, pages: u64) -> DirtyRange {
        DirtyRange { address, pages, first: PageIndex(0) }
    }

    #[test]
    fn only_shared_writable_mapped_ranges_pass() {
        let mappings = parse(TEXT);
        assert_eq!(check_range(&mappings, &range(0x10000, 3)), Ok(()));
        for (bad, word) in [
            (range(0x10000, 4), "private"),
            (range(0x14000, 1), "not writable"),
            (range(0x15000, 1), "nothing is mapped"),
            (range(0x10010, 1), "page-aligned"),
            (range(0x10000, 0), "empty"),
            (range(0x10000, u64::MAX), "address space"),
        ] {
            let why = check_range(&mappings, &bad).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }
}
