//! The QEMU process behind a monitor: who it is, whether it lives, what it has mapped.

use std::fs::File;
use std::time::Duration;

use romulus_host::guard::GuestProcess;
use romulus_host::maps;
use romulus_host::memory::map_guest_file;
use romulus_transport::Memory;

use crate::error::QemuError;
use crate::qmp::Client;

/// How long a killed process may take to give up its memory.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// A process, named by a descriptor that cannot come to mean another one.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    inner: GuestProcess,
}

/// A shared mapping of a file, put together from adjoining lines of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMapping {
    /// First address in the process.
    pub address: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Device and inode of the file, as the kernel prints them.
    pub file: String,
    /// The file's name when it was mapped.
    pub name: String,
    /// Bounds of the first line, which name it in `/proc/PID/map_files`.
    first_line: (u64, u64),
}

impl From<GuestProcess> for Process {
    fn from(inner: GuestProcess) -> Self {
        Self { pid: i32::try_from(inner.pid()).unwrap_or_default(), inner }
    }
}

impl Process {
    /// Opens the process `pid`.
    pub fn open(pid: i32) -> Result<Self, QemuError> {
        let id = u32::try_from(pid).ok().filter(|id| *id > 0).ok_or_else(|| {
            QemuError::Refused("QEMU runs in another PID namespace: run romulus in the same".into())
        })?;
        let inner = GuestProcess::open(id)
            .map_err(|error| QemuError::failed(format!("opening process {pid}"), error))?;
        Ok(inner.into())
    }

    /// The process at the other end of a monitor: the one that listens on its socket. It must
    /// look like QEMU.
    pub fn of_monitor(client: &Client) -> Result<Self, QemuError> {
        let peer = rustix::net::sockopt::socket_peercred(client.socket())
            .map_err(|errno| QemuError::failed("asking who owns the QMP socket", errno))?;
        let process = Self::open(peer.pid.as_raw_nonzero().get())?;
        let exe = process.exe()?;
        let name = exe.rsplit('/').next().unwrap_or_default();
        if !name.contains("qemu") && !name.contains("kvm") {
            return Err(QemuError::Refused(format!(
                "the QMP socket {} was opened by process {} ({exe}), which is not QEMU; a socket handed \
                 to QEMU by another program needs the process id of QEMU as an option",
                client.path().display(),
                process.pid()
            )));
        }
        Ok(process)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it runs and is not on its way out.
    pub fn is_alive(&self) -> bool {
        self.inner.is_alive()
    }

    /// Waits for its end; whether it came.
    pub fn wait_end(&self, timeout: Duration) -> bool {
        self.inner.wait_end(Some(timeout))
    }

    /// Kills it at once and waits for its end.
    pub fn kill(&self) -> Result<(), QemuError> {
        let what = || format!("killing process {}", self.pid);
        self.inner.kill().map_err(|error| QemuError::failed(what(), error))?;
        if !self.wait_end(KILL_PATIENCE) {
            return Err(QemuError::failed(what(), "it does not end"));
        }
        Ok(())
    }

    /// The path of its program.
    pub fn exe(&self) -> Result<String, QemuError> {
        let link = format!("/proc/{}/exe", self.pid());
        let path = std::fs::read_link(&link).map_err(|e| QemuError::of_process(self.pid, &link, &e))?;
        Ok(path.to_string_lossy().trim_end_matches(" (deleted)").to_owned())
    }

    /// The network interfaces that it has open as taps, with the numbers of its descriptors.
    pub fn interfaces(&self) -> Vec<(u32, String)> {
        let folder = format!("/proc/{}/fdinfo", self.pid());
        let mut found: Vec<(u32, String)> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let number = entry.file_name().to_str()?.parse().ok()?;
                let text = std::fs::read_to_string(entry.path()).ok()?;
                let name = text.lines().find_map(|line| line.strip_prefix("iff:"))?.trim().to_owned();
                (!name.is_empty()).then_some((number, name))
            })
            .collect();
        found.sort();
        found
    }

    /// Whether it has this file open.
    pub fn has_open(&self, path: &str) -> bool {
        let folder = format!("/proc/{}/fd", self.pid());
        let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == path))
    }

    /// Whether it is in the network namespace of this thread.
    pub fn shares_network(&self) -> bool {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let theirs = namespace(&self.pid().to_string());
        theirs.is_some() && theirs == namespace("thread-self")
    }

    /// The shared file mappings of the process.
    pub fn shared_mappings(&self) -> Result<Vec<SharedMapping>, QemuError> {
        let path = format!("/proc/{}/maps", self.pid());
        let text = std::fs::read_to_string(&path).map_err(|e| QemuError::of_process(self.pid, &path, &e))?;
        if !self.is_alive() {
            return Err(QemuError::Gone { pid: self.pid() });
        }
        Ok(shared_files(&text))
    }

    /// Maps a shared mapping of the process here, for reading only: what is written through
    /// another mapping would not be seen as dirty. Also gives the file mapped.
    pub fn map_read_only(&self, mapping: &SharedMapping) -> Result<(File, Memory), QemuError> {
        let what = || format!("mapping guest memory {} of process {}", mapping.name, self.pid());
        let (start, end) = mapping.first_line;
        let path = format!("/proc/{}/map_files/{start:x}-{end:x}", self.pid());
        let file = File::open(&path).map_err(|error| QemuError::of_process(self.pid, &path, &error))?;
        let length = usize::try_from(mapping.len_bytes).map_err(|error| QemuError::failed(what(), error))?;
        let memory = map_guest_file(&file, mapping.offset, length);
        Ok((file, memory.map_err(|error| QemuError::failed(what(), error))?))
    }
}

/// The shared files among what a process has mapped.
fn shared_files(maps: &str) -> Vec<SharedMapping> {
    let mut found: Vec<SharedMapping> = Vec::new();
    for next in maps::parse(maps).into_iter().filter(|next| next.shared && !next.file.is_empty()) {
        let len_bytes = next.end.saturating_sub(next.start);
        match found.last_mut() {
            Some(last)
                if last.file == next.file
                    && last.address.checked_add(last.len_bytes) == Some(next.start)
                    && last.offset.checked_add(last.len_bytes) == Some(next.offset) =>
            {
                last.len_bytes += len_bytes;
            }
            _ => found.push(SharedMapping {
                address: next.start,
                len_bytes,
                offset: next.offset,
                file: next.file,
                name: next.name.trim_end_matches(" (deleted)").to_owned(),
                first_line: (next.start, next.end),
            }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjoining_lines_of_one_file_are_one_mapping() {
        let text = "\
1000-2000 r-xp 00000000 08:01 5    /usr/bin/qemu-system-x86_64
7f0000000000-7f0000010000 rw-s 00000000 00:01 77   /dev/shm/a guest
7f0000010000-7f0000020000 rw-s 00010000 00:01 77   /dev/shm/a guest
7f0000020000-7f0000030000 rw-s 00000000 00:01 78   /dev/shm/b (deleted)
7f0000030000-7f0000040000 rw-p 00000000 00:00 0
garbage
";
        let mappings = shared_files(text);
        assert_eq!(mappings.len(), 2);
        assert_eq!((mappings[0].address, mappings[0].len_bytes), (0x7f00_0000_0000, 0x20000));
        assert_eq!(mappings[0].name, "/dev/shm/a guest");
        assert_eq!(mappings[0].first_line, (0x7f00_0000_0000, 0x7f00_0001_0000));
        assert_eq!(mappings[1].name, "/dev/shm/b");
    }

    #[test]
    fn own_process() {
        let process = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(process.is_alive() && !process.wait_end(Duration::ZERO));
    }
}
