//! The device model of a standby: a QEMU that waits for the state of an epoch.
//!
//! libxl starts it with the state that stood in the file, and then it could take no other: QEMU 7.2 aborts
//! at `xen-load-devices-state`. So it is replaced by one with the same words that waits for its state
//! (`-incoming defer`), and by another behind each trial, since a state can be taken only once.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::device_model::DeviceModel;
use crate::domain::Xen;
use crate::error::XenError;

/// How long one may take to start or to end; emulated hosts are slow.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const INCOMING: &str = "-incoming";

/// One that runs, and how to start another.
pub(super) struct Emulator {
    domid: u32,
    model: DeviceModel,
    pid: u32,
    /// Unless libxl started it.
    child: Option<Child>,
    words: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: Option<File>,
    /// It was given a state, and takes no other.
    used: bool,
}

impl Emulator {
    /// Replaces the one that libxl started with a domain that is paused.
    pub fn of_domain(xen: &Xen, domid: u32) -> Result<Self, XenError> {
        let what = || format!("looking at the device model of domain {domid}");
        let pid = xen.store.read(&pid_node(domid))?.and_then(|text| text.parse::<u32>().ok());
        let pid = pid.ok_or_else(|| XenError::failed(what(), "xenstore does not say which process it is"))?;
        let read = |name: &str| {
            std::fs::read(format!("/proc/{pid}/{name}")).map_err(|e| XenError::failed(what(), e))
        };
        let words = waiting(split(&read("cmdline")?)).map_err(|why| XenError::failed(what(), why))?;
        let environment = split(&read("environ")?).into_iter().filter_map(pair).collect();
        // Where libxl lets it write to.
        let log = OpenOptions::new().append(true).open(format!("/proc/{pid}/fd/2")).ok();
        let model = DeviceModel::open(domid)?;
        let mut emulator = Self { domid, model, pid, child: None, words, environment, log, used: false };
        emulator.renew(xen)?;
        Ok(emulator)
    }

    /// Gives it a state; it stays stopped. One that a failed attempt has used makes way for another.
    pub fn take_state(&mut self, xen: &Xen, state: &[u8]) -> Result<(), XenError> {
        if self.used {
            self.renew(xen)?;
        }
        self.used = true;
        self.model.take_state(state)
    }

    /// Fails if it has ended by itself. Another could not take its place: what it had asked of the
    /// hypervisor is still there.
    pub fn check(&mut self) -> Result<(), XenError> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                let what = format!("looking after the device model of domain {}", self.domid);
                Err(XenError::failed(
                    what,
                    format!("it ended with {status}; see /var/log/xen/qemu-dm-NAME.log"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Lets it run.
    pub fn run_on(&mut self) -> Result<(), XenError> {
        self.model.run_on()
    }

    /// Ends it, and starts one that waits for a state.
    pub fn renew(&mut self, xen: &Xen) -> Result<(), XenError> {
        self.end()?;
        let failed =
            |why: String| XenError::failed(format!("starting a device model for domain {}", self.domid), why);
        let (program, arguments) = self.words.split_first().ok_or_else(|| failed("it has no name".into()))?;
        let output = || match &self.log {
            Some(log) => log.try_clone().map_or_else(|_| Stdio::null(), Stdio::from),
            None => Stdio::null(),
        };
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            // It stays when this process is interrupted: its guest may run by then.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        self.pid = child.id();
        self.child = Some(child);
        let known = self.make_known(xen);
        if known.is_err() {
            self.bury();
        }
        known
    }

    /// Tells xenstore of one that was just started, and waits until it answers.
    fn make_known(&mut self, xen: &Xen) -> Result<(), XenError> {
        // xl ends it by this when it destroys the domain.
        xen.store.write(&pid_node(self.domid), &self.pid.to_string())?;
        self.model = until_it_answers(self.domid, self.child.as_mut())?;
        self.used = false;
        if let Some(terminal) = self.model.terminal()? {
            xen.store.write(&format!("/local/domain/{}/serial/0/tty", self.domid), &terminal)?;
        }
        Ok(())
    }

    /// Its domain is destroyed, and with it whatever it was for.
    pub fn bury(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn end(&mut self) -> Result<(), XenError> {
        let failed =
            |why: String| XenError::failed(format!("ending the device model of domain {}", self.domid), why);
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(format!("{} is no process", self.pid)))?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.to_string()))?;
        self.model.quit()?;
        let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        match rustix::event::poll(&mut ended, Some(&limit)) {
            Ok(0) => return Err(failed(format!("process {} does not end", self.pid))),
            Ok(_) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        Ok(())
    }
}

/// Connects to a device model that was just started.
fn until_it_answers(domid: u32, mut child: Option<&mut Child>) -> Result<DeviceModel, XenError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(Ok(Some(status))) = child.as_mut().map(|child| child.try_wait()) {
            let why = format!("it ended with {status}; see /var/log/xen/qemu-dm-NAME.log");
            return Err(XenError::failed(format!("starting a device model for domain {domid}"), why));
        }
        match DeviceModel::open(domid) {
            Ok(model) => return Ok(model),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn pid_node(domid: u32) -> String {
    format!("/local/domain/{domid}/image/device-model-pid")
}

/// Words that each end with a zero.
fn split(bytes: &[u8]) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect()
}

fn pair(word: OsString) -> Option<(OsString, OsString)> {
    let bytes = word.into_vec();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some((OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec())))
}

/// The same words, of one that waits for a state instead of reading it from a descriptor.
fn waiting(mut words: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let at = words.iter().position(|word| word == INCOMING).ok_or("libxl has not started it with a state")?;
    *words.get_mut(at + 1).ok_or("its words end with -incoming")? = "defer".into();
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_one_that_waits_differ_only_in_where_the_state_comes_from() {
        let words = split(b"/usr/libexec/qemu\0-xen-domid\x005\0-append\0\0-incoming\0fd:9\0-m\x00128\0");
        assert_eq!(words.len(), 9);
        let waits = waiting(words.clone()).unwrap();
        assert_eq!(waits[6], "defer");
        assert!(waits.iter().zip(&words).enumerate().all(|(at, (one, other))| at == 6 || one == other));
        assert!(waiting(split(b"qemu\0")).is_err());
        assert!(waiting(split(b"qemu\0-incoming\0")).is_err());
    }

    #[test]
    fn an_environment_is_read_in_pairs() {
        let environment: Vec<_> = split(b"A=b=c\0B=\0C\0").into_iter().filter_map(pair).collect();
        assert_eq!(environment, [("A".into(), "b=c".into()), ("B".into(), OsString::new())]);
    }
}
