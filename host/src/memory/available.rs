//! How much memory this process could still fill: the machine's and its control group's.

use std::fs;
use std::path::Path;

/// Bytes available by the machine's word (`MemAvailable`), less where a control group sets a
/// lower limit.
pub fn available_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available_bytes(&text));
    machine.unwrap_or(u64::MAX).min(control_group_bytes().unwrap_or(u64::MAX))
}

fn mem_available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the tightest of the control groups (version 2) above this process leaves.
fn control_group_bytes() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with("/sys/fs/cgroup"))
        .filter_map(|folder| {
            let limit = number(&folder.join("memory.max"))?;
            Some(limit.saturating_sub(number(&folder.join("memory.current"))?))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_and_nonsense_is_not() {
        let text = "MemTotal:       100 kB\nMemAvailable:   24000000 kB\n";
        assert_eq!(mem_available_bytes(text), Some(24_576_000_000));
        assert_eq!(mem_available_bytes("MemAvailable: lots\n"), None);
        assert_eq!(mem_available_bytes("MemAvailable: 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn this_machine_has_some_memory() {
        assert!(available_bytes() > 1 << 20);
    }
}
