//! What standbys left behind whose keeper was killed.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::process::QemuChild;

/// Removes folders of standbys and trials below `run_dir` whose keeper is dead and whose QEMU is
/// gone. The folder of a guest that lives stays: its QMP socket is there.
pub(super) fn remove(run_dir: &Path) {
    for entry in std::fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(keeper) = name.to_str().and_then(keeper_of) else { continue };
        let dead = !Path::new(&format!("/proc/{keeper}")).exists();
        if dead && UnixStream::connect(QemuChild::qmp_in(&entry.path())).is_err() {
            let removed = std::fs::remove_dir_all(entry.path());
            tracing::debug!(folder = %entry.path().display(), ?removed, "left behind by a dead backup");
        }
    }
}

/// The process id in `standby-PID-N` and `trial-PID-N`.
fn keeper_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("standby-").or_else(|| name.strip_prefix("trial-"))?;
    let (keeper, count) = rest.split_once('-')?;
    count.parse::<u64>().ok()?;
    keeper.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_keepers_without_a_living_qemu_go() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this id: it is above the kernel's limit.
        let dead = "standby-4194305-1";
        let (own, alive) = (format!("trial-{}-1", std::process::id()), "standby-4194305-2");
        for name in [dead, &own, alive, "standby-x-1", "notes"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let qmp = QemuChild::qmp_in(&dir.path().join(alive));
        let _listener = std::os::unix::net::UnixListener::bind(qmp).unwrap();
        remove(dir.path());
        assert!(!dir.path().join(dead).exists());
        for name in [own.as_str(), alive, "standby-x-1", "notes"] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
    }
}
