//! What this process is allowed to do.

use rustix::process::{Resource, getrlimit};

use super::{Fact, mebibytes, read};

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_PTRACE: u32 = 19;

pub fn user() -> Fact {
    if rustix::process::geteuid().is_root() {
        return Fact::ok("privilege", "root");
    }
    Fact::warn(
        "privilege",
        "not root",
        "tracking needs a guest of the same user or CAP_SYS_PTRACE; output gates on network interfaces need \
         CAP_NET_ADMIN; easiest: run as root",
    )
}

pub fn ptrace() -> Fact {
    let scope = read("/proc/sys/kernel/yama/ptrace_scope").and_then(|text| text.trim().parse().ok());
    ptrace_fact(scope, has_capability(CAP_SYS_PTRACE))
}

/// `scope` is that of the Yama security module, if there is one.
fn ptrace_fact(scope: Option<u32>, capable: bool) -> Fact {
    const NAME: &str = "ptrace";
    match (scope, capable) {
        (Some(3..), _) => Fact::missing(
            NAME,
            "switched off until the next boot (kernel.yama.ptrace_scope = 3)",
            "tracking a QEMU guest needs it for a moment at the start: boot with another setting",
        ),
        (Some(scope @ 1..), false) => Fact::missing(
            NAME,
            format!("restricted (kernel.yama.ptrace_scope = {scope}) and no CAP_SYS_PTRACE"),
            "tracking a QEMU guest needs it for a moment at the start: run as root or with CAP_SYS_PTRACE",
        ),
        (_, true) => Fact::ok(NAME, "allowed for every process (CAP_SYS_PTRACE)"),
        (_, false) => Fact::ok(NAME, "allowed for processes of the same user"),
    }
}

pub fn locked_memory() -> Fact {
    locked_memory_fact(getrlimit(Resource::Memlock).current, has_capability(CAP_IPC_LOCK))
}

/// `limit_bytes` of `None` is unlimited.
fn locked_memory_fact(limit_bytes: Option<u64>, capable: bool) -> Fact {
    const NAME: &str = "locked_memory";
    match limit_bytes {
        None => Fact::ok(NAME, "unlimited"),
        Some(_) if capable => Fact::ok(NAME, "not limited for this process (CAP_IPC_LOCK)"),
        Some(bytes) => Fact::warn(
            NAME,
            format!("at most {}", mebibytes(bytes)),
            "RDMA registers the whole guest image: raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a \
             systemd unit, or /etc/security/limits.conf)",
        ),
    }
}

fn has_capability(number: u32) -> bool {
    read("/proc/self/status").is_some_and(|status| effective(&status) >> number & 1 == 1)
}

fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn effective_capabilities_are_a_hexadecimal_mask() {
        assert_eq!(effective("CapPrm:\tff\nCapEff:\t0000000000080000\n"), 1 << CAP_SYS_PTRACE);
        assert_eq!(effective("CapEff:\tx\n"), 0);
    }

    #[test]
    fn yama_binds_those_without_the_capability() {
        for (scope, capable, status) in [
            (None, false, Status::Ok),
            (Some(0), false, Status::Ok),
            (Some(1), false, Status::Missing),
            (Some(2), true, Status::Ok),
            (Some(3), true, Status::Missing),
        ] {
            assert_eq!(ptrace_fact(scope, capable).status, status, "{scope:?} {capable}");
        }
    }

    #[test]
    fn a_limit_of_locked_memory_binds_those_without_the_capability() {
        assert_eq!(locked_memory_fact(None, false).status, Status::Ok);
        assert_eq!(locked_memory_fact(Some(8 << 20), true).status, Status::Ok);
        let limited = locked_memory_fact(Some(8 << 20), false);
        assert_eq!((limited.status, limited.detail.as_str()), (Status::Warn, "at most 8 MiB"));
    }
}
