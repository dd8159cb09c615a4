//! QEMU's table of RAM blocks, which it only gives as text.

use super::names;

/// A RAM block of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// Its name in the migration stream.
    pub name: String,
    /// Length that is allocated, in bytes.
    pub total_bytes: u64,
    /// Whether QEMU says that the guest cannot write it; older versions do not say.
    pub read_only: Option<bool>,
}

impl RamBlock {
    /// Whether it holds firmware that the guest cannot write.
    pub fn is_rom(&self) -> bool {
        self.read_only.unwrap_or(false) || names::is_rom_block(&self.name)
    }
}

/// Parses `info ramblock`: name, page size with unit, offset, used, total, and in newer versions
/// the host address and `ro` or `rw`.
pub(super) fn parse(text: &str) -> Vec<RamBlock> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<RamBlock> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let unit = fields.iter().position(|field| matches!(*field, "B" | "KiB" | "MiB" | "GiB"))?;
    let hex = |index: usize| u64::from_str_radix(fields.get(index)?.strip_prefix("0x")?, 16).ok();
    let total_bytes = hex(unit + 3)?;
    let read_only = match fields.get(unit + 5) {
        Some(&"ro") => Some(true),
        Some(&"rw") => Some(false),
        _ => None,
    };
    let name = fields.get(..unit.checked_sub(1)?)?.join(" ");
    (!name.is_empty()).then_some(RamBlock { name, total_bytes, read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let text = "\
              Block Name    PSize              Offset               Used              Total
                    ram0    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000
    /rom@etc/acpi/tables    4 KiB  0x0000000020080000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000020000000 0x0000000000040000 0x0000000000040000 0x00007f7e9be00000 ro
                vga.vram    2 MiB  0x0000000020000000 0x0000000000040000 0x0000000001000000 0x00007f7e9be00000 rw
";
        let blocks = parse(text);
        let rows: Vec<_> =
            blocks.iter().map(|block| (block.name.as_str(), block.total_bytes, block.is_rom())).collect();
        assert_eq!(
            rows,
            [
                ("ram0", 0x2000_0000, false),
                ("/rom@etc/acpi/tables", 0x20_0000, true),
                ("pc.bios", 0x4_0000, true),
                ("vga.vram", 0x100_0000, false)
            ]
        );
    }

    #[test]
    fn odd_lines_are_left_out() {
        assert!(parse("KiB\n4 KiB\nname 4 KiB 0x0 0x0\nKiB 0x0 0x0 0x1000\n\n").is_empty());
    }
}
