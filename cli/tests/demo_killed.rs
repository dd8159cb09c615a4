//! Kill -9 of the demonstration itself: nothing that it had started stays behind.

mod support;

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const LONG: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// A process below the demonstration.
struct Below {
    /// What it was started as.
    command: String,
    descriptor: OwnedFd,
}

impl Below {
    fn command(&self) -> &str {
        &self.command
    }

    /// Whether it comes to its end by itself; else it is ended here.
    fn ends(&self) -> bool {
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let ended = rustix::event::poll(&mut polled, Some(&LONG)).expect("polling") == 1;
        if !ended {
            let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
        }
        ended
    }
}

/// All processes below this one, those that left its session too.
fn below(pid: Pid) -> Vec<Below> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: Vec<Pid> = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>())
        .filter_map(Pid::from_raw)
        .collect();
    let own = children.iter().filter_map(|child| {
        let command = std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?.replace('\0', " ");
        Some(Below { command, descriptor: pidfd_open(*child, PidfdFlags::empty()).ok()? })
    });
    own.chain(children.iter().flat_map(|child| below(*child))).collect()
}

#[test]
fn its_guest_its_hosts_and_their_helpers_end_with_it() {
    let place = tempfile::tempdir().expect("a folder");
    let mut demo = Command::new(support::program())
        .args(["demo", "--seconds", "3600", "--guest-mib", "256", "--image-dir"])
        .arg(support::image_dir())
        .env("TMPDIR", place.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demonstration starts");
    let said = BufReader::new(demo.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let said: Vec<String> = said.take_while(|line| !line.contains("protected after")).collect();
    let processes = below(Pid::from_child(&demo));
    let all: Vec<&str> = processes.iter().map(Below::command).collect();
    demo.kill().expect("it lives");
    demo.wait().expect("it ends");
    let left: Vec<&str> = processes.iter().filter(|process| !process.ends()).map(Below::command).collect();
    // A process that is killed removes no file: the folder goes with `place`, the guest's memory here.
    for run in std::fs::read_dir(place.path()).expect("the folder").flatten() {
        let _ = std::fs::remove_file(std::path::Path::new("/dev/shm").join(run.file_name()));
    }
    assert_eq!(left, [""; 0], "they run on");
    for role in ["protect", "guard", "backup"] {
        let is_it = |command: &&str| command.split(' ').nth(1) == Some(role);
        assert!(all.iter().any(is_it), "no {role} among {all:?}; {said:?}");
    }
    let machines = all.iter().filter(|command| command.starts_with("qemu-system-x86_64 ")).count();
    assert!(machines >= 2, "guest and standby are not among {all:?}; {said:?}");
}
