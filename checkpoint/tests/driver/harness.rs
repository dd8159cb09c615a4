//! Two hosts in one process: drivers over tcp on the loopback, a synthetic guest and its standby,
//! one arbiter's file.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use romulus_checkpoint::GateMark;
use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::arbiter::{Arbiter, ArbiterError, Record, SwapOutcome};
use romulus_checkpoint::driver::backup::{
    ArenaError, ArenaProvider, BackupArena, BackupDriver, BackupHandle, BackupOptions, BackupOutcome,
    BackupParts, InProcessArenas,
};
use romulus_checkpoint::driver::primary::{
    PrimaryDriver, PrimaryHandle, PrimaryOptions, PrimaryOutcome, PrimaryParts,
};
use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::layout::{ArenaShape, GuestLayout};
use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::synthetic::{
    StandbyControl, SyntheticGuest, SyntheticGuestControl, SyntheticOptions, SyntheticStandby,
};
use romulus_checkpoint::wire::record::{Recorder, Role};
use romulus_checkpoint::wire::recorded::RecordedFabric;
use romulus_transport::Fabric;
use romulus_transport::tcp::{TcpConfig, TcpFabric};

use super::cut::{CutFabric, Switch};

/// Nothing in these tests takes nearly as long; a test that waits in vain ends after this.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// An arbiter that a dead host does not reach.
pub struct HostArbiter {
    inner: Arc<dyn Arbiter>,
    pub unreachable: AtomicBool,
}

impl Arbiter for HostArbiter {
    fn read(&self, guest: &str) -> Result<Option<Record>, ArbiterError> {
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(ArbiterError("unreachable".into()));
        }
        self.inner.read(guest)
    }
    fn swap(&self, guest: &str, expected: Option<&Record>, new: &Record) -> SwapOutcome {
        if self.unreachable.load(Ordering::SeqCst) {
            return SwapOutcome::Unknown("unreachable".into());
        }
        self.inner.swap(guest, expected, new)
    }
}

/// A gate that keeps books.
#[derive(Default)]
pub struct BookGate {
    pub marks: Mutex<Vec<GateMark>>,
    pub released: AtomicU64,
    pub holding: AtomicBool,
    pub detached: AtomicBool,
    pub held_bytes: AtomicU64,
    /// It cannot be taken away.
    pub stuck: AtomicBool,
}

impl OutputGate for BookGate {
    fn hold(&self) -> Result<(), GateError> {
        self.holding.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        let mut marks = self.marks.lock().unwrap();
        assert!(marks.last().is_none_or(|last| *last < mark), "marks grow");
        marks.push(mark);
        Ok(())
    }
    fn release(&self, token: &ReleaseToken) {
        if token.opens_gate() {
            self.holding.store(false, Ordering::SeqCst);
        } else {
            let last = self.marks.lock().unwrap().last().copied().unwrap_or_default();
            assert!(token.through() <= last, "only what was marked is released");
            self.released.fetch_max(token.through().0, Ordering::SeqCst);
        }
    }
    fn level(&self) -> GateLevel {
        GateLevel { packets: 0, bytes: self.held_bytes.load(Ordering::SeqCst) }
    }
    fn bound_bytes(&self) -> u64 {
        1 << 20
    }
    fn detach(&self) -> Result<(), GateError> {
        if self.stuck.load(Ordering::SeqCst) {
            return Err(GateError("stuck".into()));
        }
        self.detached.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// The memory that a backup has lent last.
type Lent = Arc<Mutex<Option<(ArenaShape, BackupArena)>>>;

/// Allocates memory that the test can reach.
struct ReachableArenas {
    inner: InProcessArenas,
    lent: Lent,
}

impl ArenaProvider for ReachableArenas {
    fn allocate(&mut self, layout: &GuestLayout, shape: &ArenaShape) -> Result<BackupArena, ArenaError> {
        let arena = self.inner.allocate(layout, shape)?;
        *self.lent.lock().unwrap() = Some((*shape, arena.clone()));
        Ok(arena)
    }
}

/// Both hosts.
pub struct Lab {
    /// Holds the record.
    pub _directory: tempfile::TempDir,
    pub guest_options: SyntheticOptions,
    pub primary_switch: Arc<Switch>,
    pub backup_switch: Arc<Switch>,
    pub primary_arbiter: Arc<HostArbiter>,
    pub backup_arbiter: Arc<HostArbiter>,
    pub gate: Arc<BookGate>,
    pub pause_flag: Arc<AtomicBool>,
    /// The guest takes its time when it is asked to track what is written.
    pub hold_tracking: bool,
    /// Both sides record what they say, into the directory.
    pub record: bool,
    pub tune_primary: fn(&mut PrimaryOptions),
    pub tune_backup: fn(&mut BackupOptions),
}

pub struct PrimaryHost {
    pub handle: PrimaryHandle,
    pub guest: SyntheticGuestControl,
}

pub struct BackupHost {
    pub handle: BackupHandle,
    pub standby: StandbyControl,
    pub lent: Lent,
}

impl Lab {
    fn fabric(&self, switch: &Arc<Switch>, role: Role) -> Arc<dyn Fabric> {
        let tcp = Arc::new(TcpFabric::new(TcpConfig::default()));
        let inner: Arc<dyn Fabric> = if self.record {
            let recorder = Recorder::create(&self.recording(role), role, 1 << 30).expect("a recording");
            Arc::new(RecordedFabric::new(tcp, Arc::new(recorder)))
        } else {
            tcp
        };
        Arc::new(CutFabric { inner, switch: Arc::clone(switch) })
    }

    /// Where a side's recording is.
    pub fn recording(&self, role: Role) -> std::path::PathBuf {
        self._directory.path().join(format!("{role:?}.rec"))
    }

    pub fn new(guest_options: SyntheticOptions) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let arbiter = || {
            let inner = Arc::new(FileArbiter::open(directory.path()).expect("the arbiter's directory"));
            Arc::new(HostArbiter { inner, unreachable: AtomicBool::new(false) })
        };
        Self {
            primary_arbiter: arbiter(),
            backup_arbiter: arbiter(),
            _directory: directory,
            guest_options,
            primary_switch: Switch::new(),
            backup_switch: Switch::new(),
            gate: Arc::default(),
            pause_flag: Arc::default(),
            hold_tracking: false,
            record: false,
            tune_primary: |_| (),
            tune_backup: |_| (),
        }
    }

    pub fn start_backup_at(&self, listen: SocketAddr) -> BackupHost {
        self.start_backup_with(listen, SyntheticStandby::new(&self.guest_options))
    }

    pub fn start_backup_with(&self, listen: SocketAddr, standby: SyntheticStandby) -> BackupHost {
        let mut options = BackupOptions::new("beta", listen, 1 << 30);
        // Suspicion of a peer that is only slow would make these tests depend on the machine.
        options.machine.suspect_after = Duration::from_secs(30);
        (self.tune_backup)(&mut options);
        let control = standby.control();
        let lent = Lent::default();
        let inner = InProcessArenas { limit_bytes: 1 << 30 };
        let arenas = Box::new(ReachableArenas { inner, lent: Arc::clone(&lent) });
        let parts = BackupParts::new(
            self.fabric(&self.backup_switch, Role::Backup),
            Box::new(standby),
            arenas,
            Arc::clone(&self.backup_arbiter) as Arc<dyn Arbiter>,
        );
        let handle = BackupDriver::spawn(options, parts).expect("the backup starts");
        BackupHost { handle, standby: control, lent }
    }

    pub fn start_backup(&self) -> BackupHost {
        self.start_backup_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub fn start_primary(&self, peer: SocketAddr) -> PrimaryHost {
        let guest = SyntheticGuest::start(self.guest_options.clone()).expect("the guest starts");
        let control = guest.control();
        control.hold_tracking(self.hold_tracking);
        let mut options = PrimaryOptions::new("alpha", peer, &guest).expect("random numbers");
        options.machine.interval = Duration::from_millis(5);
        options.machine.suspect_after = Duration::from_secs(20);
        options.machine.sync_target_pages = 64;
        options.spares = 2048;
        options.machine.low_water_spares = 1024;
        options.max_state_bytes = 64 << 10;
        options.staging_bytes = 16 << 20;
        options.reconnect_after = (Duration::from_millis(1), Duration::from_millis(50));
        (self.tune_primary)(&mut options);
        let flag = Arc::clone(&self.pause_flag);
        let parts = PrimaryParts {
            gate: Arc::clone(&self.gate) as Arc<dyn OutputGate>,
            pause_flag: Arc::new(move |paused| flag.store(paused, Ordering::SeqCst)),
            ..PrimaryParts::new(
                Box::new(guest),
                Arc::clone(&self.primary_arbiter) as Arc<dyn Arbiter>,
                self.fabric(&self.primary_switch, Role::Primary),
            )
        };
        let handle = PrimaryDriver::spawn(options, parts).expect("the primary starts");
        PrimaryHost { handle, guest: control }
    }

    /// The primary's host dies for all others: nothing more leaves it, and it reaches nobody.
    pub fn kill_primary_host(&self) {
        self.primary_arbiter.unreachable.store(true, Ordering::SeqCst);
        self.primary_switch.kill();
    }

    /// Has the backup take over from a primary's host that was killed; checks the image. Back
    /// among the living the primary learns that the guest is another's (I9).
    pub fn take_over(&self, primary: &PrimaryHost, backup: &BackupHost) {
        until("the connection's end was seen", || !backup.handle.status().connected);
        backup.handle.request_takeover(false).expect("there is an epoch to take over from");
        let pause = backup.assert_exact_takeover();
        assert!(pause <= primary.guest.pauses());
        // Cut off from everybody the primary's guest ran on (I8), its output held (I1).
        until("the guest runs", || !primary.guest.is_paused());
        assert!(!primary.guest.is_destroyed() && self.gate.holding.load(Ordering::SeqCst));
        self.primary_arbiter.unreachable.store(false, Ordering::SeqCst);
        // Sooner than by suspicion.
        primary.handle.request_stop();
        assert_eq!(primary.wait(), PrimaryOutcome::TakenOver);
        assert!(primary.guest.is_destroyed() && self.gate.holding.load(Ordering::SeqCst));
    }

    /// The backup's host dies likewise.
    pub fn kill_backup_host(&self) {
        self.backup_arbiter.unreachable.store(true, Ordering::SeqCst);
        self.backup_switch.kill();
    }
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl PrimaryHost {
    pub fn until_protected(&self, epochs_more: u64) {
        let first = self.handle.status().epochs_committed;
        let begun = Instant::now();
        loop {
            let status = self.handle.status();
            if status.state == "protected" && status.epochs_committed >= first + epochs_more {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "not protected: {:#?}", status.reports);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn wait(&self) -> PrimaryOutcome {
        let outcome = self.handle.wait_for(PATIENCE);
        outcome.unwrap_or_else(|| panic!("the primary goes on: {:#?}", self.handle.status().reports))
    }

    /// Ends protection and checks that the guest runs on, untouched.
    pub fn stop(&self) {
        self.handle.request_stop();
        assert_eq!(self.wait(), PrimaryOutcome::Stopped);
        assert!(!self.guest.is_paused() && !self.guest.is_tracked() && !self.guest.is_destroyed());
    }
}

impl BackupHost {
    pub fn wait(&self) -> BackupOutcome {
        let outcome = self.handle.wait_for(PATIENCE);
        outcome.unwrap_or_else(|| panic!("the backup goes on: {:#?}", self.handle.status().reports))
    }

    pub fn stop(&self) {
        self.handle.request_stop();
        assert_eq!(self.wait(), BackupOutcome::Stopped);
    }

    /// The guest runs here, and it is the one of the committed pause.
    pub fn assert_exact_takeover(&self) -> u64 {
        let outcome = self.wait();
        let BackupOutcome::Activated(takeover) = outcome else {
            panic!("{outcome:?}: {:#?}", self.handle.status().reports)
        };
        let verdict = self.standby.verdict().expect("the standby was activated");
        assert!(verdict.is_exact(), "{verdict:?}");
        assert!(takeover.epoch > 0 && takeover.epoch == self.handle.status().epoch);
        verdict.state.pause
    }
}
