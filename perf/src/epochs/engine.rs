//! Both drivers in this process, protecting a synthetic guest.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use romulus_checkpoint::arbiter::none::{AutomaticMoves, NoArbiter};
use romulus_checkpoint::driver::backup::{
    ArenaProvider, BackupDriver, BackupHandle, BackupOptions, BackupParts, InProcessArenas,
};
use romulus_checkpoint::driver::primary::{
    CaptureMode, PrimaryDriver, PrimaryHandle, PrimaryOptions, PrimaryOutcome, PrimaryParts, PrimaryStatus,
};
use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::synthetic::{SyntheticGuest, SyntheticGuestControl};
use romulus_host::memory::HostArenas;
use romulus_transport::Memory;

use super::case::Case;
use super::delay::Delay;
use super::guest::{ObservedGate, ObservedGuest};
use super::observer::Observer;
use super::scenario::{Capture, Tracking};
use super::standby::{Verdict, Verified, VerifyingStandby};
use super::view::View;
use crate::bandwidth::touch;
use crate::exit::{Failure, OrFail};
use crate::fabrics::{FabricOptions, thread_setup};
use crate::protect::live;

/// Nobody is suspected because a machine is busy: this is about speed.
const SUSPECT_AFTER: Duration = Duration::from_secs(60);
/// The fabric's patience, at the least.
const SILENT_MS: u64 = 30_000;
/// Longest wait for protection, and for the end.
const PATIENCE: Duration = Duration::from_secs(300);
/// More patience for each GiB of the guest.
const PATIENCE_PER_GIB: Duration = Duration::from_secs(20);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(10);
/// Longest wait for threads after a run that failed.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// What only tests ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hooks {
    /// See [`Delay`].
    pub delay: Option<Delay>,
    /// Damage this page of the image before it is verified.
    pub corrupt_page: Option<u64>,
}

/// A protected guest.
pub struct Engine {
    /// The primary's driver.
    pub primary: PrimaryHandle,
    /// The backup's driver.
    pub backup: BackupHandle,
    /// The guest's writers.
    pub guest: SyntheticGuestControl,
    /// What the harness sees.
    pub observer: Arc<Observer>,
    /// The guest's memory.
    pub memory: Vec<Memory>,
    verdict: Verdict,
    patience: Duration,
    begun: Instant,
}

/// The options of the fabric for a case.
pub fn fabric_options(case: &Case, given: &FabricOptions) -> FabricOptions {
    FabricOptions {
        fabric: case.fabric,
        streams: case.streams,
        pin: case.pin.clone(),
        silent_ms: given.silent_ms.max(SILENT_MS),
        ..given.clone()
    }
}

impl Engine {
    /// Starts both drivers.
    pub fn start(
        case: &Case,
        guest: SyntheticGuest,
        given: &FabricOptions,
        listen: SocketAddr,
        hooks: Hooks,
    ) -> Result<Self, Failure> {
        let options = fabric_options(case, given);
        let setup = thread_setup(options.plan()?);
        let fabric = options.open(&setup, None)?;
        let control = guest.control();
        let memory = guest.memory().to_vec();
        let observer = Arc::new(Observer::new(case.interval()));

        let standby = VerifyingStandby::new(case.is_sparse().then(|| control.clone()), hooks.corrupt_page);
        let verdict = standby.verdict();
        let mut driver = BackupOptions::new("backup", listen, u64::MAX);
        driver.machine.suspect_after = SUSPECT_AFTER + Duration::from_secs(10);
        driver.machine.shared_arbiter = false;
        let arbiter = || Arc::new(NoArbiter::new(AutomaticMoves::Takeover));
        // No machine has the memory that a sparse guest's image would have.
        let arenas: Box<dyn ArenaProvider> = match case.is_sparse() {
            true => Box::new(InProcessArenas { limit_bytes: u64::MAX }),
            false => Box::new(HostArenas::new()),
        };
        let mut parts = BackupParts::new(Arc::clone(&fabric), Box::new(standby), arenas, arbiter());
        let own_setup = setup.clone();
        parts.threads = Arc::new(move |name: &str| own_setup(name));
        let backup = BackupDriver::spawn(driver, parts).or_fail(format!("the backup at {listen}"))?;

        let tracked = case.tracking == Tracking::WriteProtect;
        let guest = ObservedGuest::new(guest, Arc::clone(&observer), tracked, hooks.delay)
            .or_fail("tracking = write_protect")?;
        let driver = primary_options(case, &options, backup.local_address(), &guest)?;
        let staging_bytes = driver.staging_bytes as usize;
        let mut parts = PrimaryParts::new(Box::new(guest), arbiter(), fabric);
        parts.gate = Arc::new(ObservedGate::new(Arc::clone(&observer), hooks.delay));
        let staging = romulus_host::memory::staging(staging_bytes).or_fail("staging memory")?;
        touch(&staging);
        parts.staging = Some(staging);
        parts.threads = Arc::new(move |name: &str| setup(name));
        let primary = match PrimaryDriver::spawn(driver, parts) {
            Ok(primary) => primary,
            Err(error) => {
                backup.request_stop();
                backup.wait_for(LAST_WAIT);
                return Err(Failure::failed(format!("protection cannot begin: {error}")));
            }
        };
        let patience = PATIENCE + PATIENCE_PER_GIB * ((2 * case.filled_pages()) >> 18) as u32;
        let begun = Instant::now();
        Ok(Self { primary, backup, guest: control, observer, memory, verdict, patience, begun })
    }

    /// Waits for the first commit; how long it took since the start.
    pub fn wait_protected(&self, view: &mut View) -> Result<Duration, Failure> {
        loop {
            let status = self.status()?;
            if let Some(refusal) = &status.refusal {
                return Err(Failure::failed(format!("the backup refuses: {}", refusal.text)));
            }
            if status.state == "protected" && status.epochs_committed > 0 {
                return Ok(self.begun.elapsed());
            }
            if self.begun.elapsed() >= self.patience {
                let text = format!("not protected within {:?}: {}", self.patience, status.state_reason);
                return Err(Failure::failed(text));
            }
            self.tell(view, &status);
            std::thread::sleep(LOOK);
        }
    }

    /// How it stands; an error when protection has ended.
    pub fn status(&self) -> Result<PrimaryStatus, Failure> {
        match self.primary.wait_for(Duration::ZERO) {
            None => Ok(self.primary.status()),
            Some(outcome) => Err(Failure::failed(format!("protection has ended: {outcome:?}"))),
        }
    }

    /// A line with live percentiles.
    pub fn tell(&self, view: &mut View, status: &PrimaryStatus) {
        view.tell(|| live::line(self.begun.elapsed().as_secs_f64(), status).trim_start().to_owned());
    }

    /// From the next epoch on.
    pub fn set_interval(&self, interval: Duration) {
        self.observer.set_interval(interval);
        self.primary.set_interval(interval);
    }

    /// Moves the guest to the backup, which verifies it.
    pub fn finish(&self, view: &mut View) -> Result<Verified, Failure> {
        self.primary.request_failover().or_fail("moving the guest to the backup")?;
        let begun = Instant::now();
        loop {
            if let Some(verified) = self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return Ok(verified);
            }
            if let Some(outcome) = self.primary.wait_for(LOOK).filter(|one| *one != PrimaryOutcome::TakenOver)
            {
                return Err(Failure::failed(format!("the move to the backup: {outcome:?}")));
            }
            if begun.elapsed() >= self.patience {
                return Err(Failure::failed(format!("no takeover within {:?}", self.patience)));
            }
            view.tell(|| "verifying the image".into());
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Most often both have ended.
        self.primary.request_stop();
        self.backup.request_stop();
        let ended = (self.primary.wait_for(LAST_WAIT).is_some(), self.backup.wait_for(LAST_WAIT).is_some());
        if ended != (true, true) {
            tracing::warn!(?ended, "threads of a run have not ended");
        }
    }
}

fn primary_options(
    case: &Case,
    fabric: &FabricOptions,
    peer: SocketAddr,
    guest: &ObservedGuest,
) -> Result<PrimaryOptions, Failure> {
    let mut options = PrimaryOptions::new("primary", peer, guest).or_fail("random numbers")?;
    options.machine.interval = case.interval();
    options.machine.depth = case.depth;
    options.machine.suspect_after = SUSPECT_AFTER;
    options.machine.solo_automatic = false;
    options.machine.shared_arbiter = false;
    options.machine.sync_target_pages = 4096.max(2 * case.epoch_pages());
    options.spares = case.spares();
    options.machine.low_water_spares = options.spares / 2;
    options.staging_bytes = case.staging_bytes();
    options.max_state_bytes = options.max_state_bytes.max(case.state_kib << 10);
    options.copy_workers = case.copy_workers as usize;
    options.spin = fabric.spin();
    options.capture = match case.capture {
        Capture::Staged | Capture::SentNow => CaptureMode::Staged,
        Capture::Direct => CaptureMode::Direct,
    };
    if case.capture == Capture::SentNow {
        options.send_now_from_pages = Some(0);
    }
    Ok(options)
}
