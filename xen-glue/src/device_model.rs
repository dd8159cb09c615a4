//! The device model of an HVM domain: a QEMU in this host that libxl started with the domain.
//!
//! It holds a part of the guest's state (its emulated devices), and writes the guest's memory through
//! mappings of its own, which the hypervisor does not log unless the device model tells of each write.
//! Both are asked of it through the second of the two monitors that libxl gives it; the first stays
//! free for libxl.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use romulus_qemu::qmp::{Client, Prepared, QmpError};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use crate::error::XenError;

/// How long an answer may take; emulated hosts are slow.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Waiting for a device model that has not begun to run.
const POLL: Duration = Duration::from_millis(10);
/// Longest state that is taken. A PC without a graphics card has a few kilobytes.
pub(crate) const MAX_STATE_BYTES: usize = 128 * 1024;
const LOG: &str = "xen-set-global-dirty-log";
/// What it calls the descriptor of a state.
const STATE: &str = "romulus-state";

/// A connection to a domain's device model.
#[derive(Debug)]
pub(crate) struct DeviceModel {
    domid: u32,
    client: Client,
    stop: Prepared,
    save: Prepared,
    cont: Prepared,
    /// Where it writes its state to, and reads it from; never on a disk.
    file: File,
    path: String,
}

/// The monitor that libxl makes for its statistics library.
fn socket(domid: u32) -> PathBuf {
    format!("/var/run/xen/qmp-libxenstat-{domid}").into()
}

fn unreached(domid: u32, error: QmpError) -> XenError {
    XenError::failed(
        format!("connecting to the device model of domain {domid} ({})", socket(domid).display()),
        format!("{error}; is its QEMU alive, and is no other program connected to that socket?"),
    )
}

impl DeviceModel {
    /// Connects to the device model of a domain.
    pub fn open(domid: u32) -> Result<Self, XenError> {
        let client = Client::connect(&socket(domid), TIMEOUT).map_err(|error| unreached(domid, error))?;
        Self::over(domid, client)
    }

    /// The same; `None` if nobody listens there, since its process has ended.
    pub fn open_if_alive(domid: u32) -> Result<Option<Self>, XenError> {
        match Client::connect(&socket(domid), TIMEOUT) {
            Ok(client) => Self::over(domid, client).map(Some),
            Err(QmpError::Io(error))
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                tracing::error!(domid, "the domain's device model is gone");
                Ok(None)
            }
            Err(error) => Err(unreached(domid, error)),
        }
    }

    fn over(domid: u32, client: Client) -> Result<Self, XenError> {
        let file = memfd_create("romulus-device-model", MemfdFlags::CLOEXEC)
            .map_err(|error| XenError::failed("making room for a device model's state", error))?;
        let file = File::from(file);
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        // `live` would give up the disks, for another host to take them at once.
        let save = Prepared::new("xen-save-devices-state", &json!({"filename": path, "live": false}));
        Ok(Self {
            domid,
            client,
            stop: Prepared::new("stop", &Value::Null),
            save,
            cont: Prepared::new("cont", &Value::Null),
            file,
            path,
        })
    }

    /// Stops it and lets it write down its state, for [`read_state`](Self::read_state): from then on it
    /// touches no memory of the guest. After a failure it may be stopped.
    pub fn stop_and_save(&mut self) -> Result<(), XenError> {
        let (stop, save) = (self.client.enqueue(&mut self.stop), self.client.enqueue(&mut self.save));
        let outcome = self.client.flush().and_then(|()| self.client.wait(stop, &self.stop));
        let outcome = outcome.and_then(|()| self.client.wait(save, &self.save));
        outcome.map_err(|error| self.failed("saving", error))
    }

    /// Lets it run on; ok if it runs.
    pub fn run_on(&mut self) -> Result<(), XenError> {
        let ticket = self.client.enqueue(&mut self.cont);
        let outcome = self.client.flush().and_then(|()| self.client.wait(ticket, &self.cont));
        outcome.map_err(|error| self.failed("resuming", error))
    }

    /// Reads what was saved last; returns its length.
    pub fn read_state(&self, into: &mut [u8]) -> Result<usize, XenError> {
        let bytes = self.state_bytes()?;
        let room = into.len();
        let Some(place) = into.get_mut(..bytes) else {
            return Err(XenError::Refused(format!(
                "the state of domain {}'s device model has grown to {bytes} bytes, and there is room for {room}: \
                 protect it again",
                self.domid
            )));
        };
        self.file
            .read_exact_at(place, 0)
            .map_err(|error| XenError::failed("reading a device model's state", error))?;
        Ok(bytes)
    }

    fn state_bytes(&self) -> Result<usize, XenError> {
        let meta = self
            .file
            .metadata()
            .map_err(|error| XenError::failed("reading a device model's state", error))?;
        match meta.len() {
            0 => Err(XenError::failed("saving a device model's state", "it has written nothing")),
            bytes if bytes > MAX_STATE_BYTES as u64 => Err(XenError::Refused(format!(
                "the device model of domain {} has a state of {bytes} bytes, and {MAX_STATE_BYTES} are possible: take \
                 emulated devices out of its configuration",
                self.domid
            ))),
            bytes => Ok(bytes as usize),
        }
    }

    /// The state of a device model that runs, which goes on.
    pub fn state_of_running(&mut self) -> Result<Vec<u8>, XenError> {
        // Without a stop before it, saving stops it for its own time.
        let ticket = self.client.enqueue(&mut self.save);
        let outcome = self.client.flush().and_then(|()| self.client.wait(ticket, &self.save));
        outcome.map_err(|error| self.failed("saving", error))?;
        let mut state = vec![0; self.state_bytes()?];
        let bytes = self.read_state(&mut state)?;
        state.truncate(bytes);
        Ok(state)
    }

    /// Whether it tells the hypervisor of each page that it writes. One that has ended tells of none.
    pub fn tell_writes(&mut self, tell: bool) -> Result<(), XenError> {
        // A QEMU that is told to end what it does not do aborts, and to begin what it does is harmless.
        let steps: &[bool] = if tell { &[true] } else { &[true, false] };
        for enable in steps {
            match self.client.execute(LOG, json!({"enable": enable})) {
                Err(QmpError::Closed) if !tell => return Ok(()),
                outcome => outcome.map_err(|error| self.failed("logging the writes of", error))?,
            };
        }
        Ok(())
    }

    /// Gives one that waits for it (`-incoming defer`) the state of another; it stays stopped. Only once.
    pub fn take_state(&mut self, state: &[u8]) -> Result<(), XenError> {
        let failed = |error: std::io::Error| XenError::failed("writing a device model's state", error);
        self.file.set_len(0).map_err(failed)?;
        self.file.write_all_at(state, 0).map_err(failed)?;
        // Another descriptor, which reads from the first byte on.
        let from = File::open(&self.path).map_err(failed)?;
        let outcome = self
            .client
            // So early it means that it does not run on by itself.
            .execute("stop", json!({}))
            .and_then(|_| {
                self.client.execute_with_descriptor("getfd", json!({"fdname": STATE}), from.as_fd())
            })
            .and_then(|_| self.client.execute("migrate-incoming", json!({"uri": format!("fd:{STATE}")})));
        outcome.map_err(|error| self.failed("loading the state of", error))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.status()?.as_str() {
                "inmigrate" if Instant::now() < deadline => std::thread::sleep(POLL),
                "paused" => return Ok(()),
                other => {
                    let why = format!("it is {other} and not paused");
                    return Err(XenError::failed(
                        format!("loading the state of the device model of domain {}", self.domid),
                        why,
                    ));
                }
            }
        }
    }

    /// `running`, `paused`, `inmigrate` and the like.
    pub fn status(&mut self) -> Result<String, XenError> {
        let status =
            self.client.execute("query-status", json!({})).map_err(|error| self.failed("asking", error))?;
        Ok(status["status"].as_str().unwrap_or("in no state").to_owned())
    }

    /// The terminal that it opened for the guest's serial port.
    pub fn terminal(&mut self) -> Result<Option<String>, XenError> {
        let list =
            self.client.execute("query-chardev", json!({})).map_err(|error| self.failed("asking", error))?;
        let list = list.as_array().map_or(&[][..], Vec::as_slice);
        let serial = list.iter().find(|device| device["label"] == "serial0");
        Ok(serial.and_then(|device| Some(device["filename"].as_str()?.strip_prefix("pty:")?.to_owned())))
    }

    /// Asks it to end.
    pub fn quit(&mut self) -> Result<(), XenError> {
        self.client.execute("quit", json!({})).map(|_| ()).map_err(|error| self.failed("ending", error))
    }

    fn failed(&self, what: &str, error: QmpError) -> XenError {
        let domid = self.domid;
        match error {
            QmpError::Closed => XenError::Refused(format!(
                "the device model of domain {domid} is gone (its QEMU ended), and the domain cannot be protected \
                 without it: see /var/log/xen/qemu-dm-NAME.log, and start the domain anew"
            )),
            // Tried again it would hold the guest up for as long again.
            QmpError::Timeout { .. } => XenError::Refused(format!(
                "{what} the device model of domain {domid}: {error}: see what its QEMU is at, and protect the domain again"
            )),
            error => XenError::failed(format!("{what} the device model of domain {domid}"), error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers as QEMU 7.2 does, and like it ends when told to end a log that is not kept. Returns what
    /// it was asked.
    fn device_model(path: &Path) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n").unwrap();
            let (mut asked, mut running, mut logs, mut incoming) = (Vec::new(), true, false, 2);
            for line in lines {
                let Ok(line) = line else { break };
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap();
                let arguments = &command["arguments"];
                let file = arguments["filename"].as_str().map(|path| path.to_owned());
                let mut value = json!({});
                match name {
                    "stop" => running = false,
                    "cont" => running = true,
                    "xen-save-devices-state" => {
                        assert_eq!(arguments["live"], json!(false), "the disks stay with it");
                        std::fs::write(file.unwrap(), if running { "of one that runs" } else { "stopped" })
                            .unwrap();
                    }
                    LOG => {
                        let enable = arguments["enable"].as_bool().unwrap();
                        if !enable && !logs {
                            break;
                        }
                        logs = enable;
                    }
                    "query-status" => {
                        incoming -= 1;
                        value = json!({"status": if incoming > 0 { "inmigrate" } else { "paused" }});
                    }
                    "query-chardev" => {
                        value = json!([{"label": "libxl-cmd"}, {"label": "serial0", "filename": "pty:/dev/pts/7"}]);
                    }
                    _ => {}
                }
                asked.push(name.to_owned());
                let answer = json!({"return": value, "id": command["id"]});
                stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
            }
            asked
        })
    }

    fn connected(name: &str) -> (DeviceModel, JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("romulus-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let thread = device_model(&path);
        let model = DeviceModel::over(3, Client::connect(&path, TIMEOUT).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        (model, thread)
    }

    #[test]
    fn a_stopped_ones_state_is_read_and_it_runs_on() {
        let (mut model, thread) = connected("model-save");
        assert_eq!(model.state_of_running().unwrap(), b"of one that runs");
        model.stop_and_save().unwrap();
        let mut state = [0; 20];
        let bytes = model.read_state(&mut state).unwrap();
        assert_eq!(&state[..bytes], b"stopped");
        assert!(matches!(model.read_state(&mut state[..3]), Err(XenError::Refused(_))));
        model.run_on().unwrap();
        drop(model);
        let asked = thread.join().unwrap();
        let saved = ["xen-save-devices-state", "stop", "xen-save-devices-state", "cont"];
        assert_eq!(asked[1..], saved);
    }

    #[test]
    fn a_log_that_is_not_kept_is_ended_without_ending_the_device_model() {
        let (mut model, thread) = connected("model-log");
        model.tell_writes(false).unwrap();
        model.tell_writes(true).unwrap();
        model.tell_writes(false).unwrap();
        model.tell_writes(false).unwrap();
        drop(model);
        assert!(thread.join().unwrap().len() > 6);
    }

    #[test]
    fn one_that_waits_is_given_a_state_and_stays_stopped() {
        let (mut model, thread) = connected("model-load");
        model.take_state(b"a state").unwrap();
        assert_eq!(model.terminal().unwrap().as_deref(), Some("/dev/pts/7"));
        drop(model);
        let asked = thread.join().unwrap();
        assert_eq!(asked[1..4], ["stop", "getfd", "migrate-incoming"]);
        assert_eq!(asked[4..], ["query-status", "query-status", "query-chardev"]);
    }

    #[test]
    fn one_that_has_ended_ends_protection() {
        let (mut model, thread) = connected("model-end");
        // As somebody else's program would.
        let _ = model.client.execute(LOG, json!({"enable": false}));
        thread.join().unwrap();
        let error = model.stop_and_save().unwrap_err();
        assert!(matches!(&error, XenError::Refused(text) if text.contains("domain 3 is gone")), "{error}");
    }
}
