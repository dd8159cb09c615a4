//! Memory: what is free, where images can live, huge pages, swap.

use super::{Fact, mebibytes, read};
use crate::memory::number_in;

pub fn available() -> Fact {
    let bytes = crate::memory::available_bytes();
    Fact::ok("memory", format!("{} available to this process", mebibytes(bytes)))
}

pub fn shared_memory() -> Fact {
    const NAME: &str = "dev_shm";
    match rustix::fs::statvfs("/dev/shm") {
        Ok(space) => shared_memory_fact(space.f_bavail.saturating_mul(space.f_frsize)),
        Err(error) => Fact::warn(
            NAME,
            format!("/dev/shm: {error}"),
            "guests with a memory-backend-file there need it: mount -t tmpfs tmpfs /dev/shm",
        ),
    }
}

fn shared_memory_fact(free_bytes: u64) -> Fact {
    const NAME: &str = "dev_shm";
    let detail = format!("{} free in /dev/shm", mebibytes(free_bytes));
    if free_bytes >= 512 << 20 {
        return Fact::ok(NAME, detail);
    }
    Fact::warn(NAME, detail, "guest RAM in /dev/shm needs more: mount -o remount,size=90% /dev/shm")
}

pub fn huge_pages() -> Fact {
    let transparent = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    huge_pages_fact(&read("/proc/meminfo").unwrap_or_default(), transparent.as_deref())
}

fn huge_pages_fact(meminfo: &str, transparent: Option<&str>) -> Fact {
    const NAME: &str = "huge_pages";
    let (total, free) = (number_in(meminfo, "HugePages_Total:"), number_in(meminfo, "HugePages_Free:"));
    let size_kib = number_in(meminfo, "Hugepagesize:");
    let shared = transparent.and_then(chosen).unwrap_or("not available");
    let detail =
        format!("{free} of {total} free, {size_kib} KiB each; transparent in shared memory: {shared}");
    if free > 0 {
        return Fact::ok(NAME, detail);
    }
    Fact::warn(
        NAME,
        detail,
        "the backup's image and staging use small pages, which costs time to populate and to register: \
         sysctl vm.nr_hugepages=N reserves some",
    )
}

/// The word in brackets of a list such as `always [madvise] never`.
fn chosen(list: &str) -> Option<&str> {
    list.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

pub fn swap() -> Fact {
    swap_fact(number_in(&read("/proc/meminfo").unwrap_or_default(), "SwapTotal:"))
}

fn swap_fact(total_kib: u64) -> Fact {
    if total_kib == 0 {
        return Fact::ok("swap", "off");
    }
    Fact::warn(
        "swap",
        format!("{} on", mebibytes(total_kib << 10)),
        "a guest or an image that is swapped out makes pauses and takeover slow: swapoff -a, or lock the guest \
         (QEMU: -overcommit mem-lock=on)",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    const MEMINFO: &str = "HugePages_Total:       4\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";

    #[test]
    fn huge_pages_are_counted() {
        let fact = huge_pages_fact(MEMINFO, Some("always within_size [advise] never deny force\n"));
        assert_eq!(fact.status, Status::Ok);
        assert_eq!(fact.detail, "3 of 4 free, 2048 KiB each; transparent in shared memory: advise");
        assert_eq!(huge_pages_fact("", None).status, Status::Warn);
    }

    #[test]
    fn little_room_and_swap_are_worth_a_warning() {
        assert_eq!(shared_memory_fact(1 << 30).status, Status::Ok);
        assert_eq!(shared_memory_fact(64 << 20).status, Status::Warn);
        assert_eq!(swap_fact(0).status, Status::Ok);
        assert_eq!(swap_fact(2 << 20).detail, "2048 MiB on");
    }
}
