//! What is mapped in a process, from `/proc/PID/maps`.

use super::target::Target;
use super::{DirtyRange, TrackingError};

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after.
    pub end: u64,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// May be written.
    pub writable: bool,
    /// File name or `[vdso]`; empty if anonymous.
    pub name: String,
}

/// Parses `/proc/PID/maps`; lines that make no sense are left out.
pub fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let name = line.splitn(6, ' ').nth(5).unwrap_or("").trim_start().to_owned();
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        writable: *permissions.get(1)? == b'w',
        shared: *permissions.get(3)? == b's',
        name,
    })
}

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
nonsense
7ffd0000-7ffd2000 r-xp 00000000 00:00 0                          [vdso]
";

    fn range(address: u64, pages: u64) -> DirtyRange {
        DirtyRange { address, pages, first: PageIndex(0) }
    }

    #[test]
    fn lines_are_understood() {
        let mappings = parse(TEXT);
        assert_eq!(mappings.len(), 5);
        assert_eq!(mappings[0].name, "/memfd:guest ram (deleted)");
        assert!(mappings[0].shared && mappings[0].writable);
        assert_eq!(mappings[2].name, "");
        assert!(!mappings[2].shared);
        assert_eq!(mappings[4].name, "[vdso]");
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
