//! A whole outgoing migration without the shared RAM, over a socket handed to QEMU.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use romulus_transport::Memory;
use serde_json::json;

use super::{Capabilities, Saved, StateSaver, check_length, write_state};
use crate::error::QemuError;
use crate::qmp::{Client, MigrationStatus};
use crate::stream::{self, RomRecord};

/// The name under which QEMU knows its end of the socket.
const DESCRIPTOR: &str = "romulus-state";
/// Room for QEMU's description of the stream, which is read and dropped.
const DESCRIPTION_BYTES: u64 = 8 * 1024 * 1024;

/// Saves by the `migrate` command. Afterwards QEMU is in state `postmigrate`, from which `cont`
/// goes on.
pub struct MigrationSaver {
    capabilities: Capabilities,
    stream: Vec<u8>,
    limit_bytes: u64,
    rom_limit_bytes: u64,
}

impl MigrationSaver {
    /// Sets the capabilities needed. `limit_bytes` bounds the state, `rom_limit_bytes` what comes
    /// before it in the stream.
    pub fn new(client: &mut Client, limit_bytes: u64, rom_limit_bytes: u64) -> Result<Self, QemuError> {
        let capabilities = Capabilities::set(client)?;
        Ok(Self { capabilities, stream: Vec::new(), limit_bytes, rom_limit_bytes })
    }

    /// Runs the migration of the stopped guest and keeps its stream.
    fn run(&mut self, client: &mut Client) -> Result<(), QemuError> {
        let what = "saving state by migration";
        let (own, theirs) = UnixStream::pair().map_err(|error| QemuError::failed(what, error))?;
        client.execute_with_descriptor("getfd", json!({"fdname": DESCRIPTOR}), theirs.as_fd())?;
        drop(theirs);
        client.take_migration_status();
        client.execute("migrate", json!({"uri": format!("fd:{DESCRIPTOR}")}))?;
        let deadline = Instant::now() + client.timeout();
        let read = self.read_stream(own, deadline);
        let status = wait_for_end(client, deadline)?;
        read?;
        match status {
            MigrationStatus::Completed => Ok(()),
            _ => {
                let status = client.execute("query-migrate", json!({}))?;
                let why = status["error-desc"].as_str().unwrap_or("QEMU gives no reason");
                Err(QemuError::failed(what, why))
            }
        }
    }

    fn read_stream(&mut self, own: UnixStream, deadline: Instant) -> Result<(), QemuError> {
        let what = "reading the state that QEMU sends";
        self.stream.clear();
        let limit = self.limit_bytes + self.rom_limit_bytes + DESCRIPTION_BYTES;
        // Dropping the socket makes QEMU fail the migration, so a stream beyond the limit ends.
        let mut limited = Read::take(Until { socket: own, deadline }, limit + 1);
        limited.read_to_end(&mut self.stream).map_err(|error| QemuError::failed(what, error))?;
        check_length(self.stream.len() as u64, limit)
    }
}

/// What comes out of a socket until the deadline, however slowly.
struct Until {
    socket: UnixStream,
    deadline: Instant,
}

impl Read for Until {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(into)
    }
}

fn wait_for_end(client: &mut Client, deadline: Instant) -> Result<MigrationStatus, QemuError> {
    loop {
        match client.take_migration_status() {
            Some(MigrationStatus::Running) | None => {}
            Some(status) => return Ok(status),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !client.pump(left)? && left.is_zero() {
            // Without an end the guest would stay in a state that `cont` does not leave.
            let cancelled = client.execute("migrate_cancel", json!({}));
            return Err(QemuError::failed("waiting for the end of saving", format!("{cancelled:?}")));
        }
    }
}

impl StateSaver for MigrationSaver {
    fn name(&self) -> &'static str {
        "migration"
    }

    fn enqueue(&mut self, _: &mut Client) -> Result<(), QemuError> {
        Ok(())
    }

    fn save(&mut self, client: &mut Client, into: &Memory, rom: &mut RomRecord) -> Result<Saved, QemuError> {
        self.run(client)?;
        let (prefix, devices) = stream::split(&self.stream)?;
        let len_bytes = write_state(into, &self.stream[devices], self.limit_bytes)?;
        let rom_pages = rom.store(&self.stream[prefix])?;
        Ok(Saved { len_bytes, rom_pages })
    }

    fn cancel(&mut self, _: &mut Client) {}

    fn release(&mut self, client: &mut Client) {
        if let Err(error) = self.capabilities.restore(client) {
            tracing::debug!(%error, "migration capabilities not put back");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stream_that_trickles_ends_at_the_deadline() {
        let (own, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            // Never silent for long, until nobody reads any more.
            while theirs.write_all(b"x").is_ok() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        let begun = Instant::now();
        let mut reader = Until { socket: own, deadline: Instant::now() + Duration::from_millis(100) };
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        drop(reader);
        writer.join().unwrap();
    }
}
