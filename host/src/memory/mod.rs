//! Mapped memory: the backup's arena, a guest's RAM seen from outside, and staging.

mod arena;
mod available;
mod mapping;

pub use arena::HostArenas;
pub use available::available_bytes;
pub use mapping::{map_guest_file, staging};

/// The number behind a name in one of the kernel's lists, `meminfo` or a process's `status`; 0 if it is
/// not there.
pub(crate) fn number_in(list: &str, name: &str) -> u64 {
    list.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_name() {
        assert_eq!(number_in("MemTotal: 5 kB\nSwapTotal:     1024 kB\n", "SwapTotal:"), 1024);
        assert_eq!(number_in("SwapTotal: much\n", "SwapTotal:"), 0);
        assert_eq!(number_in("", "SwapTotal:"), 0);
    }
}
