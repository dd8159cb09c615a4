//! `romulus protect` without a privilege that it needs: the documented exit code, words that say which
//! and how to get it, and a guest that nothing was done to. Run as root, which takes privileges away.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use romulus::demo::instance;
use romulus::demo::network::{GUEST_MAC, Network, Side, TAP};

/// A QEMU that could be protected, of root's.
struct Guest {
    qemu: Child,
    dir: tempfile::TempDir,
    network: Option<Network>,
}

impl Guest {
    fn start(network: Option<Network>) -> Self {
        let dir = tempfile::Builder::new().prefix("romulus-privilege").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,accel=tcg,memory-backend=ram", "-nodefaults", "-vga", "none"])
            .args(["-display", "none", "-m", "64M", "-object"])
            .arg(format!("memory-backend-file,id=ram,size=64M,mem-path={},share=on", path("ram")))
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp.sock"))]);
        if network.is_some() {
            command
                .args(["-netdev", &format!("tap,id=net0,ifname={TAP},script=no,downscript=no"), "-device"])
                .arg(format!("virtio-net-pci,netdev=net0,mac={GUEST_MAC},romfile="));
        }
        let host = network.as_ref().map(|network| network.host(Side::A));
        let qemu = instance::spawn(&mut command, host).expect("QEMU starts");
        let guest = Self { qemu, dir, network };
        while UnixStream::connect(guest.qmp()).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // So that everything but the privilege under test is there for everybody.
        std::fs::copy(support::program(), guest.program()).unwrap();
        guest
    }

    fn qmp(&self) -> PathBuf {
        self.dir.path().join("qmp.sock")
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("romulus")
    }

    /// Runs `romulus protect` by `setpriv` with these options: it ends with exit code 4 and says all
    /// these words, and QEMU is as it was.
    fn lacks(&mut self, setpriv: &[&str], words: &[&str]) {
        let control = tempfile::tempdir().unwrap();
        std::fs::set_permissions(control.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(setpriv)
            .arg(self.program())
            .args(["protect", "--guest", &format!("qemu:{}", self.qmp().display())])
            .args(["--backup", "127.0.0.1:1", "--control"])
            .arg(control.path().join("protect.sock"))
            .stderr(std::process::Stdio::piped());
        let host = self.network.as_ref().map(|network| network.host(Side::A));
        let child = instance::spawn(&mut command, host).expect("setpriv starts");
        let output = child.wait_with_output().expect("protect ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{setpriv:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{setpriv:?}: {word:?} is not said: {said}");
        }
        assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU is gone");
        let traced = std::fs::read_to_string(format!("/proc/{}/status", self.qemu.id())).unwrap();
        assert!(traced.contains("TracerPid:\t0\n"), "{traced}");
        if let Some(network) = &self.network {
            assert_eq!(network.leftovers(Side::A).unwrap(), [""; 0]);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        instance::kill(&mut self.qemu);
    }
}

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

fn allow_everybody(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn the_monitor_is_not_ours() {
    let mut guest = Guest::start(None);
    std::fs::set_permissions(guest.qmp(), std::fs::Permissions::from_mode(0o600)).unwrap();
    guest.lacks(&NOBODY, &["qmp.sock", "Permission denied", "root", "QEMU's user"]);
}

#[test]
fn the_process_is_not_ours() {
    let mut guest = Guest::start(None);
    allow_everybody(&guest.qmp());
    guest.lacks(&NOBODY, &["/exe", "root", "CAP_SYS_PTRACE"]);
}

#[test]
fn root_without_ptrace() {
    let mut guest = Guest::start(None);
    guest.lacks(&["--bounding-set=-sys_ptrace"], &["CAP_SYS_PTRACE"]);
}

#[test]
fn root_without_the_right_to_map_memory() {
    let mut guest = Guest::start(None);
    let setpriv = ["--bounding-set=-sys_admin,-checkpoint_restore"];
    guest.lacks(&setpriv, &["map_files", "CAP_CHECKPOINT_RESTORE"]);
}

#[test]
fn root_without_the_right_to_make_taps() {
    let network = Network::create().expect("a network (root is needed)");
    let mut guest = Guest::start(Some(network));
    guest.lacks(&["--bounding-set=-net_admin"], &["/dev/net/tun", "CAP_NET_ADMIN", "root"]);
}
