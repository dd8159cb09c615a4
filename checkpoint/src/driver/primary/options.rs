//! What a primary's driver is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use romulus_transport::{Fabric, Memory};

use crate::PAGE_BYTES;
use crate::arbiter::{Arbiter, ArbiterError, random_nonce};
use crate::driver::threads::{NoThreadSetup, ThreadSetup};
use crate::gate::{NoOutput, OutputGate};
use crate::guest::Guest;
use crate::ids::SessionId;
use crate::layout::{ArenaShape, GuestLayout};
use crate::primary::PrimaryConfig;
use crate::wire::limits::MAX_TRANSFERS;
use crate::wire::slot;

/// How an epoch's pages leave the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// Copied to staging memory during the pause, sent after it.
    Staged,
    /// Sent from guest memory itself; the guest stays paused until the data has left. Needs
    /// [`Guest::memory_registrable`].
    Direct,
}

/// Ends an epoch early once the guest has written many pages.
///
/// The only estimate is a look at the dirty pages: while the guest runs, what was written so far
/// is collected every `check_every` (and belongs to the epoch). That costs a scan each time, and a
/// page that is written again afterwards is protected, and faults, once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Ends the epoch at this many pages.
    pub pages: u64,
    /// How often to look. Not below a fifth of the interval, or the looks cost more than they save.
    pub check_every: Duration,
}

/// Settings of a primary's driver. [`new`](Self::new) has the defaults.
#[derive(Clone, Debug)]
pub struct PrimaryOptions {
    /// Settings of the protocol machine: host and guest names, interval, depth, timers.
    pub machine: PrimaryConfig,
    /// Where the backup listens.
    pub peer: SocketAddr,
    /// S, the spare frames asked of the backup: more than the largest epoch. Bounds takeover time.
    pub spares: u64,
    /// Longest CPU and device state, in bytes; room for it is reserved in each commit slot.
    pub max_state_bytes: u64,
    /// The backup's home frames cannot be written by the fabric (Xen).
    pub copy_only_homes: bool,
    /// How pages leave the guest.
    pub capture: CaptureMode,
    /// Staging memory, in bytes: at least one epoch, better depth times that. An epoch that does
    /// not fit is sent in pieces while the guest stays paused. Ignored where
    /// [`PrimaryParts::staging`] is given.
    pub staging_bytes: u64,
    /// With staged capture: epochs from this many pages on are sent straight from the paused guest's
    /// memory as far as the fabric takes it at once ([`romulus_transport::Endpoint::write_now`]), and
    /// through staging beyond that. That saves a copy and lengthens the pause (sending takes longer than
    /// copying), so `None` is: those of which staging does not hold `depth`. `u64::MAX`: never. Needs
    /// [`Guest::memory_registrable`].
    pub send_now_from_pages: Option<u64>,
    /// Threads that copy beside `capture`.
    pub copy_workers: usize,
    /// Epochs of fewer pages are copied by `capture` alone: waking others takes longer.
    pub copy_workers_from_pages: u64,
    /// Ends an epoch early at this many dirty pages; `None`: only time and the gate's bound do.
    pub watermark: Option<Watermark>,
    /// How often the guest's events and the gate's level are looked at while an epoch runs.
    pub poll_every: Duration,
    /// Waiting spins so long before it blocks. Zero where CPUs are few.
    pub spin: Duration,
    /// Longest time to reach the backup.
    pub connect_timeout: Duration,
    /// Longest wait for the backup's Welcome; it may have to allocate its arena and start a
    /// standby first.
    pub handshake_timeout: Duration,
    /// Shortest and longest pause between two attempts to connect; doubles in between.
    pub reconnect_after: (Duration, Duration),
}

impl PrimaryOptions {
    /// Defaults for protecting `guest` from the host named `host` at the backup `peer`: 25 ms
    /// epochs, depth 2, heartbeats every 20 ms, suspicion after 150 ms, spares for a quarter of the
    /// guest (at least 4,096 pages, at most 1 GiB), 8 MiB of state, an arbiter that both sides share.
    pub fn new(host: &str, peer: SocketAddr, guest: &dyn Guest) -> Result<Self, ArbiterError> {
        let session = SessionId((u128::from(random_nonce()?) << 64) | u128::from(random_nonce()?));
        let spares = (guest.layout().pages() / 4).clamp(4096, (1 << 30) / PAGE_BYTES);
        Ok(Self {
            machine: PrimaryConfig {
                host: host.to_owned(),
                guest: guest.name().to_owned(),
                session,
                interval: Duration::from_millis(25),
                depth: 2,
                heartbeat_every: Duration::from_millis(20),
                suspect_after: Duration::from_millis(150),
                sync_target_pages: 4096,
                sync_max_rounds: 30,
                throttle_pause: Duration::from_secs(1),
                solo_automatic: true,
                low_water_spares: spares / 2,
                shared_arbiter: true,
                nonce_seed: random_nonce()?,
            },
            peer,
            spares,
            max_state_bytes: 8 << 20,
            copy_only_homes: false,
            capture: CaptureMode::Staged,
            staging_bytes: 64 << 20,
            send_now_from_pages: None,
            copy_workers: 0,
            copy_workers_from_pages: 512,
            watermark: None,
            poll_every: Duration::from_millis(5),
            spin: Duration::ZERO,
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(60),
            reconnect_after: (Duration::from_millis(20), Duration::from_secs(1)),
        })
    }

    /// The arena that these options ask the backup for.
    pub fn arena_shape(&self, layout: &GuestLayout) -> ArenaShape {
        let pages = layout.pages();
        // Placing an epoch in spares bounds its pages, of which each may be a transfer. The first
        // epoch, placed at home, may have any pages: a guest that writes faster than rounds are
        // sent ends the synchronization with whatever is dirty. Its extents do not touch, so that
        // there are no more than every second page gives.
        // No slot may have more than the protocol's bound; an epoch with more does not exist.
        let transfers = pages.min(self.spares.max(pages.div_ceil(2))).min(MAX_TRANSFERS);
        let slot_bytes = slot::state_offset_bytes(transfers) + self.max_state_bytes;
        ArenaShape {
            pages,
            spares: self.spares,
            slots: self.machine.depth + 1,
            slot_bytes: slot_bytes.next_multiple_of(PAGE_BYTES),
            copy_only_homes: self.copy_only_homes,
        }
    }
}

/// What a primary's driver works with.
pub struct PrimaryParts {
    /// The guest, running and not yet tracked.
    pub guest: Box<dyn Guest>,
    /// Holds its output.
    pub gate: Arc<dyn OutputGate>,
    /// Keeps its record.
    pub arbiter: Arc<dyn Arbiter>,
    /// Reaches the backup.
    pub fabric: Arc<dyn Fabric>,
    /// Pins threads.
    pub threads: Arc<dyn ThreadSetup>,
    /// Called with `true` before the guest is paused by the driver and with `false` once it runs
    /// again, so that a guard process knows whom to resume when this process dies.
    pub pause_flag: Arc<dyn Fn(bool) + Send + Sync>,
    /// Staging memory (huge pages, a NUMA node of the caller's choice); `None`: mapped by the
    /// driver.
    pub staging: Option<Memory>,
}

impl PrimaryParts {
    /// These parts, with no output to hold, no thread setup, no pause flag and own staging.
    pub fn new(guest: Box<dyn Guest>, arbiter: Arc<dyn Arbiter>, fabric: Arc<dyn Fabric>) -> Self {
        Self {
            guest,
            gate: Arc::new(NoOutput),
            arbiter,
            fabric,
            threads: Arc::new(NoThreadSetup),
            pause_flag: Arc::new(|_| ()),
            staging: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{SyntheticGuest, SyntheticOptions};

    #[test]
    fn the_slots_of_a_tebibyte_are_within_the_protocols_bounds() {
        let options = SyntheticOptions { regions: vec![1 << 28], ..SyntheticOptions::default() };
        let guest = SyntheticGuest::start(options).expect("a guest that wrote nothing starts");
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let options = PrimaryOptions::new("alpha", peer, &guest).expect("random numbers");
        let shape = options.arena_shape(guest.layout());
        assert!(shape.slot_bytes <= crate::wire::limits::MAX_SLOT_BYTES, "{}", shape.slot_bytes);
        assert!(slot::max_transfers(shape.slot_bytes, options.max_state_bytes) >= MAX_TRANSFERS);
    }

    #[test]
    fn a_slot_holds_a_first_epoch_of_every_second_page() {
        for pages in [1, 7, 10_001] {
            let options = SyntheticOptions { regions: vec![pages], ..SyntheticOptions::default() };
            let guest = SyntheticGuest::start(options).expect("a small guest starts");
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let mut options = PrimaryOptions::new("alpha", peer, &guest).expect("random numbers");
            options.spares = 1;
            let shape = options.arena_shape(guest.layout());
            let most = slot::max_transfers(shape.slot_bytes, options.max_state_bytes);
            assert!(most >= pages.div_ceil(2), "{most} of {pages}");
        }
    }
}
