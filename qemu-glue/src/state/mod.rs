//! Saving CPU and device state of a stopped guest: a seam with two ways.
//!
//! [`DeviceSaver`] asks for the devices alone (`xen-save-devices-state`, in every stock build):
//! the faster one, used for epochs. [`MigrationSaver`] runs a whole outgoing migration under
//! `x-ignore-shared`; it also brings the ROM blocks, so it runs once when protection begins and
//! again after a reset of the guest, and is the fallback where the first way fails.

mod capabilities;
mod devices;
mod migration;

use romulus_transport::Memory;

pub use capabilities::Capabilities;
pub use devices::DeviceSaver;
pub use migration::MigrationSaver;

use crate::error::QemuError;
use crate::qmp::Client;
use crate::stream::RomRecord;

/// What a save gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Length of the state in bytes.
    pub len_bytes: u64,
    /// Pages from the begin of the ROM region that changed.
    pub rom_pages: u64,
}

/// A way to save the state of a stopped guest.
pub trait StateSaver: Send {
    /// Its name, for logs and reports.
    fn name(&self) -> &'static str;
    /// Queues the save behind a `stop` that is queued already, where the way can; the caller
    /// flushes, and calls [`save`](Self::save) or [`cancel`](Self::cancel) next.
    fn enqueue(&mut self, client: &mut Client) -> Result<(), QemuError>;
    /// Saves into `into`. After failure the guest is still stopped.
    fn save(&mut self, client: &mut Client, into: &Memory, rom: &mut RomRecord) -> Result<Saved, QemuError>;
    /// Waits for a queued save whose state is not wanted.
    fn cancel(&mut self, client: &mut Client);
    /// Takes back what was left in QEMU. Idempotent.
    fn release(&mut self, client: &mut Client);
}

/// Writes a state into the room given for it.
fn write_state(into: &Memory, devices: &[u8], limit_bytes: u64) -> Result<u64, QemuError> {
    let header = crate::stream::seal_state();
    let length = header.len() + devices.len();
    check_length(length as u64, limit_bytes.min(into.len_bytes() as u64))?;
    into.write(0, &header);
    into.write(header.len(), devices);
    Ok(length as u64)
}

fn check_length(length_bytes: u64, limit_bytes: u64) -> Result<(), QemuError> {
    if length_bytes > limit_bytes {
        return Err(QemuError::Refused(format!(
            "the state of CPU and devices has {length_bytes} bytes, {limit_bytes} are allowed: raise the limit \
             (--state-kib), or take a device with much memory out of the guest"
        )));
    }
    Ok(())
}
