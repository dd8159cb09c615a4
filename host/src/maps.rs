//! What is mapped in a process, from `/proc/PID/maps`.

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
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Device and inode of the file, as the kernel prints them; empty if anonymous.
    pub file: String,
    /// File name or `[vdso]`; empty if anonymous.
    pub name: String,
}

/// Parses `/proc/PID/maps`; lines that make no sense are left out.
pub fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).collect()
}

/// `7f00-7f10 rw-s 00000000 00:01 1234   /dev/shm/x`
fn parse_line(line: &str) -> Option<Mapping> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let (offset, device, inode) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        writable: *permissions.get(1)? == b'w',
        shared: *permissions.get(3)? == b's',
        offset: hex(offset)?,
        file: if inode == "0" { String::new() } else { format!("{device}:{inode}") },
        name: line.splitn(6, ' ').nth(5).unwrap_or("").trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let mappings = parse(
            "10000-12000 rw-s 00003000 00:01 1040    /memfd:guest ram (deleted)\n\
             13000-14000 rw-p 00000000 00:00 0\n\
             nonsense\n\
             7ffd0000-7ffd2000 r-xp 00000000 00:00 0                          [vdso]\n",
        );
        assert_eq!(mappings.len(), 3);
        assert_eq!((mappings[0].start, mappings[0].end, mappings[0].offset), (0x10000, 0x12000, 0x3000));
        assert_eq!(
            (mappings[0].file.as_str(), mappings[0].name.as_str()),
            ("00:01:1040", "/memfd:guest ram (deleted)")
        );
        assert!(mappings[0].shared && mappings[0].writable);
        assert_eq!((mappings[1].file.as_str(), mappings[1].name.as_str()), ("", ""));
        assert!(!mappings[1].shared);
        assert_eq!(mappings[2].name, "[vdso]");
    }
}
