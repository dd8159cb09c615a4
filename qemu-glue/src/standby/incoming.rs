//! A QEMU that waits for its state on a socket, and the loading of it.
//!
//! The socket is armed as soon as QEMU answers. That saves a step at takeover, and it ties the
//! standby to its keeper: when the backup process dies, the socket closes and a QEMU that still
//! waits for its state ends by itself. Once the state is loaded nothing ties it any more. (A signal
//! at the parent's death would do so from the start, but for good, and comes with the end of a
//! thread already.)

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use romulus_host::gate::NicSpec;
use serde_json::json;

use super::process::QemuChild;
use crate::error::QemuError;
use crate::qmp::{Client, MigrationStatus, QmpError};
use crate::state::Capabilities;
use crate::stream;

const DESCRIPTOR: &str = "romulus-incoming";

/// A machine over an image, waiting for its state.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) child: QemuChild,
    pub(super) client: Client,
    /// Its cards on taps, once they are known.
    pub(super) taps: Vec<NicSpec>,
    socket: UnixStream,
}

impl Incoming {
    /// Arms a started QEMU.
    pub(super) fn arm(child: QemuChild, mut client: Client) -> Result<Self, QemuError> {
        // Left as they are: QEMU would refuse to change them while it waits, and they serve the
        // guest's own protection later.
        Capabilities::set_for_standby(&mut client)?;
        let (socket, theirs) =
            UnixStream::pair().map_err(|error| QemuError::failed("making a socket pair", error))?;
        client.execute_with_descriptor("getfd", json!({"fdname": DESCRIPTOR}), theirs.as_fd())?;
        client
            .execute("migrate-incoming", json!({"uri": format!("fd:{DESCRIPTOR}")}))
            .map_err(|error| child.failed("making QEMU wait for its state", error))?;
        Ok(Self { child, client, taps: Vec::new(), socket })
    }

    /// Whether it still waits.
    pub(super) fn check(&mut self) -> Result<(), QemuError> {
        if let Some(end) = self.child.end() {
            return Err(self.child.failed("the standby", end));
        }
        let status = self.client.execute("query-status", json!({}))?;
        match status["status"].as_str() {
            Some("inmigrate") => Ok(()),
            other => Err(self.child.failed("the standby", format!("it does not wait any more ({other:?})"))),
        }
    }

    /// Loads a state; the machine is paused afterwards.
    pub(super) fn load(&mut self, prefix: &[u8], devices: &[u8], timeout: Duration) -> Result<(), QemuError> {
        let deadline = Instant::now() + timeout;
        let written = self.write(prefix, devices, timeout);
        loop {
            match self.client.take_migration_status() {
                Some(MigrationStatus::Completed) => return written,
                Some(MigrationStatus::Failed) => return Err(self.explain("QEMU could not load it")),
                Some(MigrationStatus::Running) | None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.client.pump(left) {
                Ok(true) => {}
                Ok(false) if left.is_zero() => return Err(self.explain("no end in time")),
                Ok(false) => {}
                Err(QmpError::Closed) => return Err(self.explain("QEMU could not load it")),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write(&mut self, prefix: &[u8], devices: &[u8], timeout: Duration) -> Result<(), QemuError> {
        let write = || -> std::io::Result<()> {
            self.socket.set_write_timeout(Some(timeout))?;
            let mut buffered = std::io::BufWriter::with_capacity(256 * 1024, &self.socket);
            stream::write_stream(&mut buffered, prefix, devices)?;
            buffered.flush()?;
            drop(buffered);
            self.socket.shutdown(Shutdown::Write)
        };
        write().map_err(|error| QemuError::failed("sending the state to QEMU", error))
    }

    fn explain(&mut self, why: &str) -> QemuError {
        // QEMU ends itself after a failed load; its words are complete when it has.
        self.child.wait_end(Duration::from_secs(2));
        self.child.failed("loading the state", why)
    }
}
