//! What is left to `xl`: devices, xenstore, and its own books.

use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::XenError;

/// Builds a paused domain from a save file, which is never on a disk. A domain half built is gone
/// when this fails. xl stays behind to look after the domain, as it does for all.
pub(super) fn restore_paused(name: &str, file: &[u8]) -> Result<(), XenError> {
    let failed = |why: String| XenError::failed(format!("building the standby {name} (xl restore -p)"), why);
    // Not inherited: xl opens it by this process's path.
    let memory = memfd_create("romulus-standby", MemfdFlags::CLOEXEC).map_err(|e| failed(e.to_string()))?;
    let mut memory = std::fs::File::from(memory);
    memory.write_all(file).map_err(|error| failed(error.to_string()))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    run(Command::new("xl").args(["restore", "-p", &path])).map_err(failed)
}

/// Gives a domain another name.
pub(super) fn rename(domid: u32, name: &str) -> Result<(), XenError> {
    run(Command::new("xl").args(["rename", &domid.to_string(), name]))
        .map_err(|why| XenError::failed(format!("renaming domain {domid} to {name}"), why))
}

/// Runs it to its end; what it says is told if it fails. Its output goes to a file, since what it leaves
/// behind would keep a pipe open.
fn run(command: &mut Command) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let said = memfd_create("romulus-xl", MemfdFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let said = std::fs::File::from(said);
    let status = command
        .stdin(std::process::Stdio::null())
        .stdout(said.try_clone().map_err(text)?)
        .stderr(said.try_clone().map_err(text)?)
        .status()
        .map_err(|error| format!("{error}; is xen-utils installed?"))?;
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read_to_string(format!("/proc/self/fd/{}", said.as_raw_fd())).unwrap_or_default();
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(format!("{status}: {}", lines[lines.len().saturating_sub(6)..].join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failing_command_says_is_told_and_a_child_left_behind_is_not_waited_for() {
        let error = run(Command::new("sh").args(["-c", "echo nothing works >&2; exit 3"])).unwrap_err();
        assert!(error.contains("nothing works") && error.contains('3'), "{error}");
        let begun = std::time::Instant::now();
        run(Command::new("sh").args(["-c", "sleep 30 & echo fine"])).unwrap();
        assert!(begun.elapsed().as_secs() < 25);
    }
}
