//! The part of a stream before the devices: header, configuration, RAM.

use std::ops::Range;

use super::cursor::Cursor;
use super::{HEADER, PAGE_BYTES, SECTION_EOF, SECTION_FULL, StreamError};

const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SUBSECTION: u8 = 0x05;
const DESCRIPTION: u8 = 0x06;
const CONFIGURATION: u8 = 0x07;
const FOOTER: u8 = 0x7e;

const FLAG_ZERO: u64 = 0x02;
const FLAG_SIZES: u64 = 0x04;
const FLAG_PAGE: u64 = 0x08;
const FLAG_END: u64 = 0x10;
const FLAG_CONTINUE: u64 = 0x20;

/// The RAM blocks that a prefix names, with their lengths in bytes.
pub type Blocks = Vec<(String, u64)>;

/// Splits a whole stream of the `migrate` command into prefix and devices.
pub fn split(stream: &[u8]) -> Result<(Range<usize>, Range<usize>), StreamError> {
    let (prefix, _) = take_prefix(stream)?;
    if stream.get(prefix) != Some(&SECTION_FULL) {
        let why = "the section of a device expected after RAM; the guest has other live state";
        return Err(StreamError { at: prefix, why: why.into() });
    }
    let end = devices_end(stream, prefix)?;
    Ok((0..prefix, prefix..end))
}

/// Where the devices end: behind the end mark, before the description if there is one.
fn devices_end(stream: &[u8], prefix: usize) -> Result<usize, StreamError> {
    // The description is JSON text: searched from the end, the first place that reads as its
    // type and exact length is its beginning.
    let candidates = stream[prefix..].iter().enumerate().rev();
    for (offset, _) in candidates.filter(|(_, byte)| **byte == DESCRIPTION) {
        let at = prefix + offset;
        let mut cursor = Cursor::new(&stream[at + 1..]);
        let Ok(length) = cursor.u32() else { continue };
        let after = stream.len() - at - 5;
        if usize::try_from(length) == Ok(after) && stream[at - 1] == SECTION_EOF {
            return Ok(at);
        }
        if after > 16 * 1024 * 1024 {
            break;
        }
    }
    if stream.last() == Some(&SECTION_EOF) {
        return Ok(stream.len());
    }
    Err(StreamError { at: stream.len(), why: "no end mark".into() })
}

/// The length in bytes of the prefix that a stream begins with, and the RAM blocks it names.
pub fn take_prefix(stream: &[u8]) -> Result<(usize, Blocks), StreamError> {
    let mut cursor = Cursor::new(stream);
    if cursor.take(HEADER.len())? != HEADER {
        return Err(StreamError { at: 0, why: "not a QEMU migration stream of version 3".into() });
    }
    if cursor.peek() == Some(CONFIGURATION) {
        skip_configuration(&mut cursor)?;
    }
    let mut blocks = None;
    let mut ram_id = None;
    let mut footers = false;
    loop {
        match cursor.peek() {
            Some(SECTION_START) if ram_id.is_none() => {
                cursor.u8()?;
                let id = cursor.u32()?;
                if cursor.name()? != b"ram" {
                    return Err(cursor.fail("live state other than RAM"));
                }
                cursor.take(8)?;
                blocks = Some(skip_setup(&mut cursor)?);
                footers = cursor.peek() == Some(FOOTER);
                skip_footer(&mut cursor, id, footers)?;
                ram_id = Some(id);
            }
            Some(kind @ (SECTION_PART | SECTION_END)) => {
                cursor.u8()?;
                let id = cursor.u32()?;
                if Some(id) != ram_id {
                    return Err(cursor.fail("live state other than RAM"));
                }
                skip_pages(&mut cursor)?;
                skip_footer(&mut cursor, id, footers)?;
                if kind == SECTION_END {
                    return Ok((cursor.at(), blocks.unwrap_or_default()));
                }
            }
            _ => return Err(cursor.fail("a section of RAM expected")),
        }
    }
}

fn skip_configuration(cursor: &mut Cursor<'_>) -> Result<(), StreamError> {
    cursor.u8()?;
    let length = cursor.u32()?;
    cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?;
    while cursor.peek() == Some(SUBSECTION) {
        cursor.u8()?;
        let name = cursor.name()?;
        cursor.take(4)?;
        match name {
            b"configuration/target-page-bits" => {
                cursor.take(4)?;
            }
            b"configuration/capabilities" => {
                for _ in 0..cursor.u32()? {
                    cursor.name()?;
                }
            }
            b"configuration/uuid" => {
                cursor.take(16)?;
            }
            _ => {
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(cursor.fail(format!("unknown part {name} of the configuration")));
            }
        }
    }
    Ok(())
}

/// The list of blocks. Under `x-ignore-shared` each is followed by its guest address.
fn skip_setup(cursor: &mut Cursor<'_>) -> Result<Blocks, StreamError> {
    let total = cursor.u64()?;
    let flags = total % PAGE_BYTES as u64;
    if flags != FLAG_SIZES {
        return Err(cursor.fail("the list of RAM blocks expected"));
    }
    let mut left = total - flags;
    let mut blocks = Blocks::new();
    while left > 0 {
        let name = String::from_utf8_lossy(cursor.name()?).into_owned();
        let length = cursor.u64()?;
        cursor.u64()?;
        left = match left.checked_sub(length) {
            Some(left) if length > 0 => left,
            _ => return Err(cursor.fail(format!("length {length} of RAM block {name}"))),
        };
        blocks.push((name, length));
    }
    skip_pages(cursor)?;
    Ok(blocks)
}

/// Records of pages up to the end record.
fn skip_pages(cursor: &mut Cursor<'_>) -> Result<(), StreamError> {
    loop {
        let flags = cursor.u64()? % PAGE_BYTES as u64;
        if flags == FLAG_END {
            return Ok(());
        }
        let kind = flags & !FLAG_CONTINUE;
        if kind != FLAG_ZERO && kind != FLAG_PAGE {
            return Err(cursor.fail(format!("unknown kind {flags:#x} of RAM record")));
        }
        if flags & FLAG_CONTINUE == 0 {
            cursor.name()?;
        }
        cursor.take(if kind == FLAG_PAGE { PAGE_BYTES } else { 1 })?;
    }
}

/// Sections end with a footer unless the machine type is very old; then none does.
fn skip_footer(cursor: &mut Cursor<'_>, id: u32, footers: bool) -> Result<(), StreamError> {
    if footers && (cursor.u8()? != FOOTER || cursor.u32()? != id) {
        return Err(cursor.fail("the section's footer expected"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stream as QEMU 7.2 writes it: two pages of one ROM block, one device.
    pub(super) fn example(description: bool) -> (Vec<u8>, usize, usize) {
        let mut stream = HEADER.to_vec();
        stream.extend(b"\x07\0\0\0\x0apc-q35-7.2");
        stream.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared");
        stream.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        stream.extend((8192u64 | FLAG_SIZES).to_be_bytes());
        stream.extend(b"\x07pc.bios");
        stream.extend(8192u64.to_be_bytes());
        stream.extend(0xfffc_0000u64.to_be_bytes());
        stream.extend(FLAG_END.to_be_bytes());
        stream.extend(b"\x7e\0\0\0\x02\x02\0\0\0\x02");
        stream.extend(FLAG_PAGE.to_be_bytes());
        stream.extend(b"\x07pc.bios");
        stream.extend([6u8; PAGE_BYTES]);
        stream.extend((4096 | FLAG_ZERO | FLAG_CONTINUE).to_be_bytes());
        stream.push(0);
        stream.extend(FLAG_END.to_be_bytes());
        stream.extend(b"\x7e\0\0\0\x02\x03\0\0\0\x02");
        stream.extend(FLAG_END.to_be_bytes());
        stream.extend(b"\x7e\0\0\0\x02");
        let prefix = stream.len();
        stream.extend(b"\x04\0\0\0\0\x05timer\0\0\0\0\0\0\0\x02........\x06\0\0\0\x01\x7e\0\0\0\0\0");
        let end = stream.len();
        if description {
            stream.extend(b"\x06\0\0\0\x0b{\"x\":[1,2]}");
        }
        (stream, prefix, end)
    }

    #[test]
    fn splits_with_and_without_description() {
        for description in [false, true] {
            let (stream, prefix, end) = example(description);
            assert_eq!(split(&stream).unwrap(), (0..prefix, prefix..end));
        }
    }

    #[test]
    fn names_the_blocks() {
        let (stream, ..) = example(true);
        assert_eq!(take_prefix(&stream).unwrap().1, [("pc.bios".to_owned(), 8192)]);
    }

    #[test]
    fn every_truncation_of_the_prefix_is_refused() {
        let (stream, prefix, _) = example(true);
        for length in 0..prefix {
            assert!(take_prefix(&stream[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = split(&bytes);
        }

        #[test]
        fn any_damage(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
                      length in any::<prop::sample::Index>()) {
            let (mut stream, ..) = example(true);
            for (at, byte) in changes {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
            let length = length.index(stream.len() + 1);
            if let Ok((prefix, devices)) = split(&stream[..length]) {
                prop_assert!(prefix.end == devices.start && devices.end <= length);
            }
            let _ = split(&stream);
        }
    }
}
