//! How to attach to a guest.

use std::path::PathBuf;
use std::time::Duration;

use romulus_host::tracking::TrackingOptions;

use crate::discover::refusal::Allowances;
use crate::gates::GateChoices;

/// Which way of saving state to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveBy {
    /// Devices alone where QEMU can, whole migrations otherwise.
    #[default]
    Auto,
    /// Always by a migration: slower, for comparison and for builds whose other way fails.
    Migration,
}

/// Settings of a [`QemuGuest`](super::QemuGuest).
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Path of QEMU's QMP socket. Nobody else may be connected to it.
    pub qmp: PathBuf,
    /// The guest's name; default: the one QEMU has (`-name`), else `guest`.
    pub name: Option<String>,
    /// QEMU's process id, needed only where another program opened the socket for QEMU.
    pub pid: Option<i32>,
    /// What would be refused otherwise.
    pub allowances: Allowances,
    /// Which cards' output is held; the caller installs the gates that
    /// [`QemuGuest::gates`](super::QemuGuest::gates) then asks for. Default `None`: the caller has no
    /// gates, and a guest with a connected card is refused.
    pub gates: Option<GateChoices>,
    /// Greatest length of the state of CPU and devices, in bytes. Default 4 MiB.
    pub state_max_bytes: u64,
    /// Default [`SaveBy::Auto`].
    pub save_by: SaveBy,
    /// How long QEMU may take to answer a command. Default 10 s: a `stop` has to wait for disks.
    pub command_timeout: Duration,
    /// After a reset of the guest its firmware tables change; for so long the ROM blocks are
    /// saved again with every epoch. Default 20 s.
    pub rom_refresh: Duration,
    /// Threads that look for dirty pages.
    pub tracking: TrackingOptions,
}

impl GuestOptions {
    /// The defaults for the QEMU behind a QMP socket.
    pub fn new(qmp: impl Into<PathBuf>) -> Self {
        Self {
            qmp: qmp.into(),
            name: None,
            pid: None,
            allowances: Allowances::default(),
            gates: None,
            state_max_bytes: 4 * 1024 * 1024,
            save_by: SaveBy::Auto,
            command_timeout: Duration::from_secs(10),
            rom_refresh: Duration::from_secs(20),
            tracking: TrackingOptions::default(),
        }
    }
}
