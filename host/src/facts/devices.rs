//! QEMU and RDMA devices.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Fact;
use crate::guard::GuestProcess;

const QEMU: &str = "qemu-system-x86_64";
/// How long QEMU may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

pub fn qemu() -> Fact {
    const NAME: &str = "qemu";
    let Some(path) = find_in_path(QEMU) else {
        return Fact::missing(
            NAME,
            format!("no {QEMU} in PATH"),
            "a backup for QEMU guests starts its standby with it: apt-get install qemu-system-x86",
        );
    };
    match version_of(&path) {
        Some(version) => Fact::ok(NAME, format!("{version} ({})", path.display())),
        None => Fact::warn(
            NAME,
            format!("{} does not say its version", path.display()),
            "try it by hand with --version; a backup for QEMU guests starts its standby with it",
        ),
    }
}

/// The file that a program's name means, if there is one.
pub fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn version_of(path: &Path) -> Option<String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let ended = GuestProcess::open(child.id()).is_ok_and(|process| process.wait_end(Some(VERSION_LIMIT)));
    if !ended {
        let _ = child.kill();
    }
    let _ = child.wait();
    let mut text = String::new();
    // A version is short; whatever this program is, its output is not read without limit.
    child.stdout.take()?.take(4096).read_to_string(&mut text).ok()?;
    parse_version(&text)
}

/// The version in `QEMU emulator version 7.2.22 (Debian ...)`.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    Some(rest.split_ascii_whitespace().next()?.to_owned())
}

pub fn output_gate() -> Fact {
    const NAME: &str = "output_gate";
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Fact::ok(NAME, "/dev/net/tun opens: the output of cards on taps can be held"),
        Err(error) => Fact::warn(
            NAME,
            format!("/dev/net/tun: {error}"),
            "needed to hold the output of a guest's cards on taps: modprobe tun; run as root",
        ),
    }
}

pub fn rdma() -> Fact {
    rdma_fact(Path::new("/sys"))
}

fn rdma_fact(sys: &Path) -> Fact {
    const NAME: &str = "rdma";
    let class = sys.join("class/infiniband");
    let mut devices: Vec<String> = std::fs::read_dir(&class)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    devices.sort();
    if !devices.is_empty() {
        let described: Vec<String> =
            devices.iter().map(|device| describe_device(&class.join(device), device)).collect();
        return Fact::ok(NAME, described.join("; "));
    }
    let (cause, remedy) = if class.is_dir() {
        (
            "the kernel's RDMA is loaded, but has no device",
            "load the NIC's driver, or for soft-RoCE: rdma link add rxe0 type rxe netdev NIC",
        )
    } else {
        (
            "the kernel has no RDMA loaded",
            "load the NIC's driver (mlx5_ib, irdma, ...), or for soft-RoCE: modprobe rdma_rxe, then rdma link add \
             rxe0 type rxe netdev NIC; until then use the tcp fabric",
        )
    };
    Fact::warn(NAME, format!("no RDMA device: {cause}"), remedy)
}

fn describe_device(folder: &Path, name: &str) -> String {
    let port = |number: u32, file: &str| {
        let text = std::fs::read_to_string(folder.join(format!("ports/{number}/{file}"))).ok()?;
        // States read `4: ACTIVE`.
        Some(text.trim().rsplit(": ").next()?.to_owned())
    };
    let ports: Vec<String> = (1..=16)
        .map_while(|number| Some((number, port(number, "state")?)))
        .map(|(number, state)| {
            format!("port {number} {state} {}", port(number, "link_layer").unwrap_or_default())
                .trim_end()
                .to_owned()
        })
        .collect();
    if ports.is_empty() { name.to_owned() } else { format!("{name} ({})", ports.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn versions_are_found_and_nonsense_is_not() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c)\n";
        assert_eq!(parse_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(parse_version("hello\n"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn rdma_devices_are_described_and_their_absence_explained() {
        let sys = tempfile::tempdir().unwrap();
        let none = rdma_fact(sys.path());
        assert!(none.detail.contains("no RDMA device: the kernel has no RDMA"), "{}", none.detail);
        let class = sys.path().join("class/infiniband");
        std::fs::create_dir_all(&class).unwrap();
        assert!(rdma_fact(sys.path()).detail.contains("has no device"));
        let port = class.join("rxe0/ports/1");
        std::fs::create_dir_all(&port).unwrap();
        std::fs::write(port.join("state"), "4: ACTIVE\n").unwrap();
        std::fs::write(port.join("link_layer"), "Ethernet\n").unwrap();
        let fact = rdma_fact(sys.path());
        assert_eq!((fact.status, fact.detail.as_str()), (Status::Ok, "rxe0 (port 1 ACTIVE Ethernet)"));
    }
}
