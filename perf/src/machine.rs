//! What a figure was measured on.

use std::fs;

use serde::{Deserialize, Serialize};

/// A machine, as far as it bears on a figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name in the network.
    pub host: String,
    /// Kernel release, and the machine's architecture.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in all, in MiB.
    pub memory_mib: u64,
    /// RDMA devices that the kernel shows.
    pub rdma_devices: Vec<String>,
    /// The revision of Romulus that was built.
    pub revision: String,
    /// Whether it was built with debug assertions: figures of such a build are no figures.
    pub debug_assertions: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            host: text(uname.nodename()),
            kernel: format!("{} {}", text(uname.release()), text(uname.machine())),
            cpu: field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "host")).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: field(&meminfo, "MemTotal").and_then(|text| kib(&text)).unwrap_or(0) / 1024,
            rdma_devices: names("/sys/class/infiniband"),
            revision: env!("ROMULUS_REVISION").to_owned(),
            debug_assertions: cfg!(debug_assertions),
        }
    }
}

/// The value behind `name :` in a file of such lines.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn kib(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse().ok()
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2:00 GHz\nMemTotal:       2048 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A CPU @ 2:00 GHz"));
        assert_eq!(field(text, "MemTotal").and_then(|text| kib(&text)), Some(2048));
        assert_eq!(field(text, "model"), None);
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::here();
        assert!(machine.cores >= 1 && machine.memory_mib > 0 && !machine.kernel.is_empty());
        assert!(!machine.revision.is_empty());
    }
}
