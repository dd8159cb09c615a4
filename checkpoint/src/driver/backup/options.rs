//! What a backup's driver is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use romulus_transport::Fabric;

use super::arena::ArenaProvider;
use crate::arbiter::Arbiter;
use crate::backup::BackupConfig;
use crate::driver::threads::{NoThreadSetup, ThreadSetup};
use crate::standby::Standby;

/// Settings of a backup's driver. [`new`](Self::new) has the defaults.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Settings of the protocol machine: host name, timers, largest arena.
    pub machine: BackupConfig,
    /// Where to listen; port 0 takes any, see [`super::BackupHandle::local_address`].
    pub listen: SocketAddr,
    /// Threads that copy committed pages home.
    pub homing_threads: usize,
    /// Threads that copy displaced pages home at takeover.
    pub takeover_threads: usize,
    /// Longest wait for the Hello of a stranger and for the rest of a handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at a time; more strangers wait in the fabric's queue.
    pub max_handshakes: usize,
    /// How often the prepared standby is checked; one that died is prepared anew.
    pub check_standby_every: Duration,
}

impl BackupOptions {
    /// Defaults for the host named `host`: suspicion after 250 ms, automatic takeover, arenas of
    /// up to `max_arena_bytes`, an arbiter that both sides share. A nonce seed of 0 is replaced by
    /// a random one at start.
    pub fn new(host: &str, listen: SocketAddr, max_arena_bytes: u64) -> Self {
        Self {
            machine: BackupConfig {
                host: host.to_owned(),
                heartbeat_every: Duration::from_millis(20),
                suspect_after: Duration::from_millis(250),
                takeover_automatic: true,
                max_arena_bytes,
                shared_arbiter: true,
                // Drawn by the driver.
                nonce_seed: 0,
            },
            listen,
            homing_threads: 1,
            takeover_threads: 2,
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 8,
            check_standby_every: Duration::from_secs(1),
        }
    }
}

/// What a backup's driver works with.
pub struct BackupParts {
    /// Listens for the primary.
    pub fabric: Arc<dyn Fabric>,
    /// Becomes the guest.
    pub standby: Box<dyn Standby>,
    /// Allocates the memory that shadows the guest's.
    pub arenas: Box<dyn ArenaProvider>,
    /// Keeps the guest's record.
    pub arbiter: Arc<dyn Arbiter>,
    /// Pins threads.
    pub threads: Arc<dyn ThreadSetup>,
}

impl BackupParts {
    /// These parts, with no thread setup.
    pub fn new(
        fabric: Arc<dyn Fabric>,
        standby: Box<dyn Standby>,
        arenas: Box<dyn ArenaProvider>,
        arbiter: Arc<dyn Arbiter>,
    ) -> Self {
        Self { fabric, standby, arenas, arbiter, threads: Arc::new(NoThreadSetup) }
    }
}
