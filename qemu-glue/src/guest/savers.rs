//! Which way saves the state of the present epoch.

use romulus_transport::Memory;

use super::{GuestOptions, SaveBy};
use crate::error::QemuError;
use crate::qmp::{Client, QmpError};
use crate::state::{DeviceSaver, MigrationSaver, Saved, StateSaver};
use crate::stream::RomRecord;

/// Both ways, and the choice between them.
pub(super) struct Savers {
    devices: Option<DeviceSaver>,
    migration: MigrationSaver,
    /// The devices were queued for this epoch.
    queued: bool,
}

impl Savers {
    pub(super) fn new(
        client: &mut Client,
        options: &GuestOptions,
        saves_devices: bool,
        rom_limit_bytes: u64,
    ) -> Result<Self, QemuError> {
        let mut migration = MigrationSaver::new(client, options.state_max_bytes, rom_limit_bytes)?;
        let devices = if options.save_by == SaveBy::Auto && saves_devices {
            match DeviceSaver::new(client, options.state_max_bytes) {
                Ok(devices) => Some(devices),
                Err(error) => {
                    migration.release(client);
                    return Err(error);
                }
            }
        } else {
            tracing::info!(
                "state is saved by migration: {}",
                if saves_devices { "as asked" } else { "this QEMU lacks xen-save-devices-state" }
            );
            None
        };
        Ok(Self { devices, migration, queued: false })
    }

    pub(super) fn name(&self) -> &'static str {
        self.devices.as_ref().map_or(self.migration.name(), |devices| devices.name())
    }

    /// Queues a save of the devices behind a queued `stop`.
    pub(super) fn enqueue(&mut self, client: &mut Client) -> Result<(), QemuError> {
        if let Some(devices) = &mut self.devices {
            devices.enqueue(client)?;
            self.queued = true;
        }
        Ok(())
    }

    /// Saves the state, and the ROM blocks where they are due.
    pub(super) fn save(
        &mut self,
        client: &mut Client,
        into: &Memory,
        rom: &mut RomRecord,
        with_rom: bool,
    ) -> Result<Saved, QemuError> {
        let queued = std::mem::take(&mut self.queued);
        let Some(devices) = self.devices.as_mut().filter(|_| queued || !with_rom) else {
            return self.migration.save(client, into, rom);
        };
        match devices.save(client, into, rom) {
            Err(QemuError::Qmp(error @ QmpError::Refused { .. })) => {
                tracing::warn!(%error, "state is saved by migration from now on");
                devices.release(client);
                self.devices = None;
                self.migration.save(client, into, rom)
            }
            outcome => outcome,
        }
    }

    /// Saves by migration, for the ROM blocks.
    pub(super) fn save_with_rom(
        &mut self,
        client: &mut Client,
        into: &Memory,
        rom: &mut RomRecord,
    ) -> Result<Saved, QemuError> {
        self.migration.save(client, into, rom)
    }

    /// Waits for a queued save that nobody wants.
    pub(super) fn cancel(&mut self, client: &mut Client) {
        if std::mem::take(&mut self.queued)
            && let Some(devices) = &mut self.devices
        {
            devices.cancel(client);
        }
    }

    pub(super) fn release(&mut self, client: &mut Client) {
        if let Some(devices) = &mut self.devices {
            devices.release(client);
        }
        self.migration.release(client);
    }
}
