//! The demonstration's QEMU processes: their command line and their console.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::instance::spawn;
use super::netns::NetNs;
use super::network;
use crate::exit::{Code, Failure};

/// The machine that the demonstration protects.
#[derive(Clone, Debug)]
pub struct Machine {
    /// QEMU's machine type: `q35`, `pc`, `microvm`.
    pub kind: String,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// Guest memory.
    pub memory_mib: u64,
    /// Memory that the guest's workload fills and checks.
    pub check_mib: u64,
    /// Rate at which it rewrites pages.
    pub dirty_mib_per_second: f64,
    /// The guest powers off by itself after so many seconds.
    pub halt_after_s: Option<u64>,
    /// A network card on its host's tap, and a server behind it.
    pub networked: bool,
    /// Servers of others run in it as well: HTTP, telnet, redis, iperf3.
    pub servers: bool,
    /// What it does instead of checking its pages: `writer`, `redis` or `compile`.
    pub work: Option<String>,
    /// Folder with `vmlinuz` and `initramfs`.
    pub image_dir: PathBuf,
}

/// KVM where the CPU offers it, TCG elsewhere.
pub fn accelerator() -> &'static str {
    let virtualizes = std::fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.split_whitespace().any(|word| word == "vmx" || word == "svm"));
    let opens = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if virtualizes && opens { "kvm" } else { "tcg" }
}

impl Machine {
    /// QEMU's arguments, with this path for the RAM file and this file for the console. They are
    /// the same for the guest and for its standby.
    pub fn arguments(&self, ram: &str, console: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| word.to_string()));
        let cpu = if self.accelerator == "kvm" { "host" } else { "max" };
        let machine = match self.kind.as_str() {
            "microvm" => format!(
                "microvm,accel={},x-option-roms=off,isa-serial=on,rtc=on,memory-backend=ram",
                self.accelerator
            ),
            kind => format!("{kind},accel={},memory-backend=ram", self.accelerator),
        };
        let size = format!("{}M", self.memory_mib);
        let backend = format!("memory-backend-file,id=ram,size={size},mem-path={ram},share=on,prealloc=off");
        let console = format!("file:{}", console.display());
        let kernel = self.image_dir.join("vmlinuz");
        let initramfs = self.image_dir.join(match (self.servers, &self.work) {
            (true, _) => "initramfs-servers",
            (false, Some(_)) => "initramfs-work",
            (false, None) => "initramfs",
        });
        let mut settings = format!(
            "console=ttyS0 quiet romulus.check_mib={} romulus.dirty_mib_per_second={}",
            self.check_mib, self.dirty_mib_per_second
        );
        if let Some(seconds) = self.halt_after_s {
            settings.push_str(&format!(" romulus.halt_after_s={seconds}"));
        }
        if self.networked {
            settings.push_str(&format!(" romulus.address={}", network::GUEST_ADDRESS));
        }
        if self.servers {
            settings.push_str(" romulus.servers=1");
        }
        if let Some(work) = &self.work {
            settings.push_str(&format!(" romulus.work={work}"));
        }
        add(&["-name", "romulus-demo", "-nodefaults", "-vga", "none", "-display", "none"]);
        add(&["-machine", &machine, "-cpu", cpu, "-smp", "1", "-m", &size, "-object", &backend]);
        add(&["-kernel", &kernel.to_string_lossy(), "-initrd", &initramfs.to_string_lossy()]);
        add(&["-append", &settings, "-serial", &console, "-no-shutdown"]);
        if self.networked {
            let (card, rom) = if self.kind == "microvm" { ("device", "") } else { ("pci", ",romfile=") };
            let back = format!("tap,id=net0,ifname={},script=no,downscript=no", network::TAP);
            let card = format!("virtio-net-{card},netdev=net0,mac={}{rom}", network::GUEST_MAC);
            add(&["-netdev", &back, "-device", &card]);
        }
        arguments
    }

    /// Starts the guest, inside a host's network if there is one.
    pub fn start(
        &self,
        ram: &Path,
        console: &Path,
        qmp: &Path,
        log: &Path,
        host: Option<&NetNs>,
    ) -> Result<Child, Failure> {
        let log_file = std::fs::File::create(log)
            .map_err(|e| Failure::failed(format!("creating {}: {e}", log.display())))?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(self.arguments(&ram.to_string_lossy(), console))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        spawn(&mut command, host).map_err(|e| {
            Failure::new(
                Code::Machine,
                format!("starting qemu-system-x86_64: {e}; as root: apt-get install qemu-system-x86"),
            )
        })
    }
}

/// What the workload said last on a console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps made.
    pub counter: u64,
    /// Pages found corrupt so far.
    pub corrupt: u64,
    /// Complete checks of all pages so far.
    pub passes: u64,
    /// The guest's clock since the workload's start, in milliseconds.
    pub clock_ms: u64,
    /// Requests of clients that the guest has counted.
    pub requests: u64,
}

/// Follows the file that a guest's console is written to.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    read_bytes: u64,
    partial: String,
    /// The first report seen.
    pub first: Option<Report>,
    /// The last report seen.
    pub last: Option<Report>,
    /// Lines that describe corrupt pages or the workload's end.
    pub complaints: Vec<String>,
}

impl Console {
    /// Follows this file, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read_bytes: 0,
            partial: String::new(),
            first: None,
            last: None,
            complaints: Vec::new(),
        }
    }

    /// Reads what was added.
    pub fn poll(&mut self) {
        let Ok(mut file) = std::fs::File::open(&self.path) else { return };
        let mut added = Vec::new();
        if file.seek(SeekFrom::Start(self.read_bytes)).is_err() || file.read_to_end(&mut added).is_err() {
            return;
        }
        self.read_bytes += added.len() as u64;
        self.partial.push_str(&String::from_utf8_lossy(&added));
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            self.take_line(line.trim());
        }
    }

    fn take_line(&mut self, line: &str) {
        if let Some(report) = parse_report(line) {
            self.first.get_or_insert(report);
            self.last = Some(report);
        } else if line.starts_with("romulus corrupt") || line.starts_with("romulus workload ended") {
            self.complaints.push(line.to_owned());
        }
    }
}

/// `romulus counter=N corrupt=N passes=N clock_ms=N requests=N`
fn parse_report(line: &str) -> Option<Report> {
    let mut words = line.strip_prefix("romulus counter=")?.split(' ');
    let counter = words.next()?.parse().ok()?;
    let mut named = |name: &str| words.next()?.strip_prefix(name)?.parse().ok();
    Some(Report {
        counter,
        corrupt: named("corrupt=")?,
        passes: named("passes=")?,
        clock_ms: named("clock_ms=")?,
        requests: named("requests=")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_report_lines_count_and_halves_wait_for_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut console = Console::new(&path);
        console.poll();
        std::fs::write(
            &path,
            "boot\r\nromulus counter=7 corrupt=0 passes=1 clock_ms=70 requests=3\r\nromulus counter=8 cor",
        )
        .unwrap();
        console.poll();
        assert_eq!(console.last.unwrap().counter, 7);
        let all = "boot\r\nromulus counter=7 corrupt=0 passes=1 clock_ms=70 requests=3\r\nromulus counter=8 corrupt=1 \
                   passes=1 clock_ms=80 requests=4\r\nromulus corrupt page=3\r\n";
        std::fs::write(&path, all).unwrap();
        console.poll();
        assert_eq!(console.first.unwrap().counter, 7);
        assert_eq!(
            console.last,
            Some(Report { counter: 8, corrupt: 1, passes: 1, clock_ms: 80, requests: 4 })
        );
        assert_eq!(console.complaints, ["romulus corrupt page=3"]);
    }
}
