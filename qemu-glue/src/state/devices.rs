//! Devices alone, by `xen-save-devices-state` into a file in memory.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use romulus_transport::Memory;
use rustix::fs::MemfdFlags;
use serde_json::json;

use super::{Saved, StateSaver, check_length, write_state};
use crate::error::QemuError;
use crate::qmp::{Client, Prepared, Ticket};
use crate::stream::{RomRecord, devices_of_save};

/// Saves devices into a memfd that QEMU got as a descriptor set. QEMU truncates it before each
/// save, so it is neither sealed nor mapped here.
pub struct DeviceSaver {
    descriptor_set: Option<u64>,
    /// The description QEMU writes through, shared with it: its offset is the length written.
    writer: File,
    reader: File,
    /// The state is read into this, which never grows.
    scratch: Vec<u8>,
    command: Prepared,
    pending: Option<Ticket>,
    limit_bytes: u64,
}

impl DeviceSaver {
    /// Makes the file and hands it to QEMU.
    pub fn new(client: &mut Client, limit_bytes: u64) -> Result<Self, QemuError> {
        let what = "making the file for device state";
        let length = usize::try_from(limit_bytes).map_err(|error| QemuError::failed(what, error))?;
        let memfd = rustix::fs::memfd_create("romulus-device-state", MemfdFlags::CLOEXEC)
            .map_err(|errno| QemuError::failed(what, errno))?;
        let reader = File::from(memfd);
        // QEMU takes a descriptor of a set only if it was opened just for what it needs.
        let writer = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", reader.as_raw_fd()))
            .map_err(|error| QemuError::failed(what, error))?;
        let opaque = json!({"opaque": "romulus device state"});
        let answer = client.execute_with_descriptor("add-fd", opaque, writer.as_fd())?;
        let set = answer["fdset-id"].as_u64().ok_or_else(|| QemuError::failed(what, "add-fd gave no set"))?;
        let command = Prepared::new(
            "xen-save-devices-state",
            &json!({"filename": format!("/dev/fdset/{set}"), "live": false}),
        );
        Ok(Self {
            descriptor_set: Some(set),
            writer,
            reader,
            scratch: vec![0; length],
            command,
            pending: None,
            limit_bytes,
        })
    }

    fn written(&mut self) -> Result<usize, QemuError> {
        let offset = self
            .writer
            .stream_position()
            .map_err(|error| QemuError::failed("reading device state", error))?;
        check_length(offset, self.limit_bytes)?;
        Ok(usize::try_from(offset).unwrap_or(usize::MAX))
    }
}

impl StateSaver for DeviceSaver {
    fn name(&self) -> &'static str {
        "devices"
    }

    fn enqueue(&mut self, client: &mut Client) -> Result<(), QemuError> {
        self.writer
            .seek(SeekFrom::Start(0))
            .map_err(|error| QemuError::failed("rewinding the file for device state", error))?;
        self.pending = Some(client.enqueue(&mut self.command));
        Ok(())
    }

    fn save(&mut self, client: &mut Client, into: &Memory, _: &mut RomRecord) -> Result<Saved, QemuError> {
        if self.pending.is_none() {
            self.enqueue(client)?;
            client.flush()?;
        }
        if let Some(ticket) = self.pending.take()
            && let Err(error) = client.wait(ticket, &self.command)
        {
            return Err(error.into());
        }
        let length = self.written()?;
        let scratch = &mut self.scratch[..length];
        self.reader
            .read_exact_at(scratch, 0)
            .map_err(|error| QemuError::failed("reading device state", error))?;
        let devices = devices_of_save(scratch)?;
        Ok(Saved { len_bytes: write_state(into, devices, self.limit_bytes)?, rom_pages: 0 })
    }

    fn cancel(&mut self, client: &mut Client) {
        if let Some(ticket) = self.pending.take()
            && let Err(error) = client.wait(ticket, &self.command)
        {
            tracing::debug!(%error, "a state that was not wanted");
        }
    }

    fn release(&mut self, client: &mut Client) {
        self.cancel(client);
        if let Some(set) = self.descriptor_set.take()
            && let Err(error) = client.execute("remove-fd", json!({"fdset-id": set}))
        {
            tracing::debug!(%error, "descriptor set left in QEMU; it goes with the connection");
        }
    }
}
