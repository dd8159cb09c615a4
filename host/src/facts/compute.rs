//! Cores, NUMA nodes and hardware virtualization.

use std::fs::File;

use super::{Fact, read};
use crate::pinning::{PinningPlan, usable_cores};

pub fn cores() -> Fact {
    cores_fact(&usable_cores())
}

fn cores_fact(cores: &[usize]) -> Fact {
    let plan = PinningPlan::auto(cores);
    let detail = format!("{} usable; pinning `auto` would use: {plan}", cores.len());
    if cores.len() > 2 {
        return Fact::ok("cores", detail);
    }
    Fact::warn(
        "cores",
        detail,
        "guest, capture and sender share cores here: expect longer pauses; four cores or more are better",
    )
}

pub fn numa() -> Fact {
    let nodes = read("/sys/devices/system/node/online").unwrap_or_default();
    let nodes = nodes.trim();
    match count_nodes(nodes) {
        0 | 1 => Fact::ok("numa", "one node"),
        count => Fact::ok("numa", format!("{count} nodes ({nodes}): pin guest, NIC and Romulus to one")),
    }
}

/// Nodes in a list such as `0-1,3`.
fn count_nodes(list: &str) -> usize {
    list.split(',')
        .filter_map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            Some(last.checked_sub(first)?.saturating_add(1))
        })
        .sum()
}

pub fn kvm() -> Fact {
    let flags = read("/proc/cpuinfo").is_some_and(|text| has_virtualization(&text));
    let opened = File::options().read(true).write(true).open("/dev/kvm").map(drop);
    kvm_fact(flags, opened.map_err(|error| error.kind()))
}

fn kvm_fact(flags: bool, opened: Result<(), std::io::ErrorKind>) -> Fact {
    const NAME: &str = "kvm";
    const SLOW: &str = "guests run emulated (TCG), slowly;";
    match (flags, opened) {
        (true, Ok(())) => Fact::ok(NAME, "usable"),
        (false, Ok(())) => Fact::warn(
            NAME,
            "/dev/kvm is there, but the processor offers neither vmx nor svm",
            format!("{SLOW} switch virtualization on in the firmware, or allow nested virtualization"),
        ),
        (_, Err(std::io::ErrorKind::PermissionDenied)) => Fact::warn(
            NAME,
            "/dev/kvm may not be opened by this user",
            format!("{SLOW} join the group kvm or run as root"),
        ),
        (flags, Err(_)) => Fact::warn(
            NAME,
            "there is no /dev/kvm",
            if flags {
                format!("{SLOW} load the module kvm_intel or kvm_amd")
            } else {
                format!("{SLOW} the processor offers neither vmx nor svm")
            },
        ),
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::super::Status;
    use super::*;

    #[test]
    fn node_lists_are_counted() {
        for (list, count) in [("0", 1), ("0-1", 2), ("0-3,8,10-11", 7), ("", 0), ("3-1", 0)] {
            assert_eq!(count_nodes(list), count, "{list}");
        }
    }

    #[test]
    fn kvm_needs_the_device_and_the_processor() {
        assert_eq!(kvm_fact(true, Ok(())).status, Status::Ok);
        for (flags, opened) in
            [(false, Ok(())), (true, Err(ErrorKind::PermissionDenied)), (true, Err(ErrorKind::NotFound))]
        {
            assert_eq!(kvm_fact(flags, opened).status, Status::Warn);
        }
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu svm sse\n"));
        assert!(!has_virtualization("flags\t\t: fpu svmx\nbugs: svm\n"));
    }

    #[test]
    fn few_cores_are_worth_a_warning() {
        assert_eq!(cores_fact(&[0, 1]).status, Status::Warn);
        assert_eq!(cores_fact(&[0, 1, 2, 3]).status, Status::Ok);
    }
}
