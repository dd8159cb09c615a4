//! `romulus protect`: runs the primary's side until it is stopped, the guest ends, or the backup
//! has the guest.

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use romulus_checkpoint::arbiter::none::AutomaticMoves;
use romulus_checkpoint::arbiter::spec::ArbiterSpec;
use romulus_checkpoint::driver::primary::{
    CaptureMode, PrimaryDriver, PrimaryHandle, PrimaryOptions, PrimaryOutcome, PrimaryParts, PrimaryStatus,
    Refusal, Watermark,
};
use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::wire::record::Role;
use romulus_host::gate::{GateChoices, GateStatus, RedirectOptions};
use romulus_host::guard::{GuardHandle, GuardSpec, PauseFlag};
use romulus_host::pinning::{Pinner, PinningPlan};
use romulus_host::tracking::TrackingOptions;
use romulus_transport::Fabric;

use crate::control::{Answer, ControlSocket, Request, default_path};
use crate::exit::{Code, Failure};
use crate::gates::Gates;
use crate::guard::{Guard, GuardPid};
use crate::guests::{About, AttachOptions, Attached, GuestName, attach};
use crate::settings::protect::ProtectOptions;
use crate::signals::EndRequest;
use crate::{fabric, threads};

/// Longest wait for a backup that builds a domain before it answers.
const STANDBY_BUILD_TIMEOUT: Duration = Duration::from_secs(300);
/// Suspicion of the backup, when not said otherwise.
const SUSPECT_AFTER_MS: u64 = 150;
/// How often the end and the progress are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The status of a primary, as `romulus status --json` prints it.
#[derive(serde::Serialize)]
struct Status {
    role: &'static str,
    pid: u32,
    guest_kind: &'static str,
    guest_pid: Option<i32>,
    guest_domid: Option<u32>,
    guard_pid: Option<u32>,
    fabric: &'static str,
    save_by: &'static str,
    track_by: &'static str,
    threads: romulus_host::pinning::PinnedThreads,
    gates: Vec<GateStatus>,
    #[serde(flatten)]
    driver: PrimaryStatus,
}

/// Protects a guest until the end.
pub fn run(options: ProtectOptions) -> Result<ExitCode, Failure> {
    let plan = Plan::check(&options)?;
    let end = EndRequest::watch()?;
    let control_path = options.common.control.clone().unwrap_or_else(|| default_path("protect"));
    let control = ControlSocket::bind(&control_path)?;

    let fabric = fabric::open(&options.common, &plan.pinner, Role::Primary)?;
    let Attached { guest, gates, about } = attach(&plan.guest, attach_options(&options, &plan))?;
    let fabric_name = fabric.name();
    let mut driver_options = driver_options(&options, &plan, &*guest)?;
    driver_options.copy_only_homes = about.copy_only;
    if about.copy_only {
        // Its answer comes when its standby has been built, devices and all.
        driver_options.handshake_timeout = STANDBY_BUILD_TIMEOUT;
    }
    if gates.hold_in_qemu() {
        driver_options.machine.depth = 1;
    }
    let mut guard = start_guard(&options, &plan, guest.name(), &about, &gates)?;
    let watched = guard.as_ref().map(Guard::handle);
    let handle = match start_driver(&plan, driver_options, guest, &gates, watched, fabric) {
        Ok(handle) => handle,
        Err(failure) => {
            // Nothing was done to the guest, which may well be another host's or another name's:
            // there is nothing for a guard to undo.
            if let Some(guard) = guard {
                guard.detach();
            }
            return Err(failure);
        }
    };

    let guard_pid = guard.as_ref().map(Guard::pid);
    let (pinner, driver) = (plan.pinner.clone(), handle.clone());
    control.serve(move |request| match request {
        Request::Status => {
            let status = Status {
                role: "protect",
                pid: std::process::id(),
                guest_kind: about.kind,
                guest_pid: about.pid,
                guest_domid: about.domid,
                guard_pid: guard_pid.as_ref().and_then(GuardPid::get),
                fabric: fabric_name,
                save_by: about.save_by,
                track_by: about.track_by,
                threads: pinner.threads(),
                gates: gates.status(),
                driver: driver.status(),
            };
            serde_json::to_value(status).map_or_else(|e| Answer::Error(e.to_string()), Answer::Ok)
        }
        Request::Failover { force: true } => Answer::Error(
            "--force is for a backup whose primary may be dead, and this is the primary: name the backup's socket with \
             --control, or leave --force out to move the guest without loss"
                .into(),
        ),
        Request::Failover { force: false } => match driver.request_failover() {
            Ok(()) => Answer::Ok(serde_json::Value::Null),
            Err(why) => Answer::Error(why),
        },
        Request::Stop => {
            driver.request_stop();
            Answer::Ok(serde_json::Value::Null)
        }
    })?;

    let (outcome, refusal) = wait(&handle, &end, guard.as_mut());
    finish(outcome, refusal, guard)
}

/// The options, checked before anything is touched.
struct Plan {
    guest: GuestName,
    backup: SocketAddr,
    arbiter: ArbiterSpec,
    host: String,
    interval: Duration,
    depth: u64,
    suspect_after: Duration,
    staging_bytes: u64,
    throttle_pause: Duration,
    state_bytes: u64,
    solo_automatic: bool,
    capture: CaptureMode,
    gates: GateChoices,
    gate_bytes: u64,
    pinner: Pinner,
}

impl Plan {
    fn check(options: &ProtectOptions) -> Result<Self, Failure> {
        let guest = options.guest.as_deref().ok_or_else(|| {
            Failure::usage(
                "which guest? --guest qemu:PATH names the QMP socket of a running QEMU, --guest xen:DOMAIN a Xen domain"
                    .into(),
            )
        })?;
        let backup = options.backup.as_deref().ok_or_else(|| {
            Failure::usage("which backup? --backup HOST:PORT names where `romulus backup` listens".into())
        })?;
        let pinning = PinningPlan::parse(options.common.pin.as_deref().unwrap_or("off"))
            .map_err(|e| Failure::usage(format!("--pin: {e}")))?;
        Ok(Self {
            guest: GuestName::parse(guest)?,
            backup: resolve("--backup", backup)?,
            arbiter: ArbiterSpec::from_str(options.common.arbiter())
                .map_err(|e| Failure::usage(e.to_string()))?,
            host: options.common.host(""),
            interval: options.interval()?,
            depth: options.depth()?,
            suspect_after: options.common.suspect_after(SUSPECT_AFTER_MS)?,
            staging_bytes: options.staging_bytes()?,
            throttle_pause: options.throttle_pause()?,
            state_bytes: options.state_bytes()?,
            solo_automatic: options.solo_automatic()?,
            capture: if options.direct_capture()? { CaptureMode::Direct } else { CaptureMode::Staged },
            gates: options.gates()?,
            gate_bytes: options.gate_bytes()?,
            pinner: Pinner::new(pinning),
        })
    }
}

/// The first address of a name.
pub fn resolve(option: &str, address: &str) -> Result<SocketAddr, Failure> {
    let mut addresses = address
        .to_socket_addrs()
        .map_err(|e| Failure::usage(format!("{option} {address}: {e}; HOST:PORT is expected")))?;
    addresses.next().ok_or_else(|| Failure::usage(format!("{option} {address}: the name has no address")))
}

fn attach_options(options: &ProtectOptions, plan: &Plan) -> AttachOptions {
    AttachOptions {
        name: options.name.clone(),
        unreplicated_disk: options.allow_unreplicated_disk == Some(true),
        gates: plan.gates.clone(),
        gate_options: RedirectOptions {
            memory_bytes: plan.gate_bytes,
            threads: threads::setup(&plan.pinner),
        },
        state_bytes: plan.state_bytes,
        tracking: TrackingOptions {
            threads: options.scan_threads.unwrap_or(1).max(1),
            thread_setup: plan.pinner.callback(),
        },
    }
}

fn driver_options(
    options: &ProtectOptions,
    plan: &Plan,
    guest: &dyn Guest,
) -> Result<PrimaryOptions, Failure> {
    let mut driver = PrimaryOptions::new(&plan.host, plan.backup, guest)
        .map_err(|e| Failure::failed(format!("drawing a session id: {e}")))?;
    let machine = &mut driver.machine;
    machine.interval = plan.interval;
    machine.depth = plan.depth;
    machine.heartbeat_every = options.common.heartbeat_every();
    machine.suspect_after = plan.suspect_after;
    machine.throttle_pause = plan.throttle_pause;
    machine.solo_automatic = plan.solo_automatic;
    machine.shared_arbiter = plan.arbiter != ArbiterSpec::None;
    driver.spares = options.spare_pages(guest.layout().pages())?;
    driver.machine.low_water_spares = driver.spares / 2;
    driver.max_state_bytes = plan.state_bytes;
    driver.capture = plan.capture;
    driver.staging_bytes = plan.staging_bytes;
    driver.copy_workers = options.copy_threads.unwrap_or(0);
    driver.spin = options.common.spin()?;
    driver.watermark = match options.watermark_pages.unwrap_or(0) {
        0 => None,
        pages => Some(Watermark { pages, check_every: driver.machine.interval / 4 }),
    };
    Ok(driver)
}

fn start_guard(
    options: &ProtectOptions,
    plan: &Plan,
    guest: &str,
    about: &About,
    gates: &Gates,
) -> Result<Option<Guard>, Failure> {
    if options.no_guard == Some(true) {
        return Ok(None);
    }
    let spec = GuardSpec {
        guest: guest.to_owned(),
        host: plan.host.clone(),
        arbiter: plan.arbiter.to_string(),
        solo_automatic: plan.solo_automatic,
        guest_pid: about.pid.and_then(|pid| u32::try_from(pid).ok()),
        access: about.access.clone(),
        gate: gates.for_guard(),
        report: None,
    };
    Guard::start(spec).map(Some)
}

fn start_driver(
    plan: &Plan,
    driver: PrimaryOptions,
    guest: Box<dyn Guest>,
    gates: &Gates,
    guard: Option<&GuardHandle>,
    fabric: Arc<dyn Fabric>,
) -> Result<PrimaryHandle, Failure> {
    let moves = AutomaticMoves::Solo;
    let arbiter = plan.arbiter.open(moves).map_err(|e| Failure::failed(e.to_string()))?;
    let mut parts = PrimaryParts::new(guest, arbiter, fabric);
    parts.gate = gates.gate();
    let setup = threads::setup(&plan.pinner);
    parts.threads = Arc::new(move |thread: &str| setup(thread));
    let flag = guard.map_or_else(PauseFlag::unwatched, GuardHandle::pause_flag);
    parts.pause_flag = Arc::new(move |paused| if paused { flag.raise() } else { flag.lower() });
    let staging_bytes =
        usize::try_from(driver.staging_bytes).map_err(|e| Failure::usage(format!("--staging-mib: {e}")))?;
    let staging = romulus_host::memory::staging(staging_bytes)
        .map_err(|e| Failure::failed(format!("allocating {} MiB of staging: {e}", staging_bytes >> 20)))?;
    parts.staging = Some(staging);
    if let Some(guard) = guard {
        guard.arm();
    }
    PrimaryDriver::spawn(driver, parts)
        .map_err(|e| Failure::new(Code::Refused, format!("protection cannot begin: {e}")))
}

/// As [`LOOK_EVERY`], while checkpoints commit.
const LOOK_WHEN_PROTECTED: Duration = Duration::from_secs(1);
/// Refusals that no second attempt mends, as long as the guest has never been protected.
const FINAL_REFUSALS: [&str; 5] = ["Version", "MachineMismatch", "NoRoom", "StandbyFailed", "Violation"];

/// Waits for the end, shows the synchronization's progress, and tells each new state; looks after the
/// guard meanwhile. Ends protection that cannot begin, and gives the backup's reason.
fn wait(
    handle: &PrimaryHandle,
    end: &EndRequest,
    mut guard: Option<&mut Guard>,
) -> (PrimaryOutcome, Option<Refusal>) {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("synchronizing {bar:40} {percent} % of {msg}") {
        bar.set_style(style);
    }
    let mut state = String::new();
    let mut obstacle = None;
    let mut looked = Instant::now();
    let mut asked = false;
    let mut refusal = None;
    loop {
        if let Some(outcome) = handle.wait_for(LOOK_EVERY) {
            bar.finish_and_clear();
            return (outcome, refusal);
        }
        // A snapshot sums up histograms that the capture thread writes: rarely once all is well.
        if state == "protected" && looked.elapsed() < LOOK_WHEN_PROTECTED && !end.came() {
            continue;
        }
        looked = Instant::now();
        if let Some(guard) = &mut guard {
            guard.look_after();
        }
        let status = handle.status();
        if status.epochs_committed == 0 && refusal.is_none() {
            refusal = status.refusal.filter(|refusal| FINAL_REFUSALS.contains(&refusal.code.as_str()));
        }
        if (end.came() || refusal.is_some()) && !asked {
            asked = true;
            handle.request_stop();
        }
        if status.state != state {
            bar.suspend(|| eprintln!("romulus: {}", state_line(&status.state, &status.state_reason)));
            state.clone_from(&status.state);
        }
        if status.obstacle != obstacle {
            if let Some(text) = &status.obstacle {
                bar.suspend(|| eprintln!("romulus: {text}; trying again"));
            }
            obstacle.clone_from(&status.obstacle);
        }
        if status.state == "syncing" {
            bar.set_length(status.sync.pages_total);
            bar.set_position(status.sync.pages_done);
            bar.set_message(format!("{} MiB, round {}", status.sync.pages_total >> 8, status.sync.round));
        }
    }
}

/// A state and why.
pub fn state_line(state: &str, reason: &str) -> String {
    if reason.is_empty() { state.to_owned() } else { format!("{state} ({reason})") }
}

/// The options that mend a refusal of this code.
fn advice(code: &str) -> &'static str {
    match code {
        "NoRoom" => {
            " (romulus backup --memory-limit-mib lends more, if its host has it; romulus protect --spare-mib asks \
             for less)"
        }
        _ => "",
    }
}

fn finish(
    outcome: PrimaryOutcome,
    refusal: Option<Refusal>,
    guard: Option<Guard>,
) -> Result<ExitCode, Failure> {
    if let Some(guard) = guard {
        // A driver that failed may have left the guest to the guard: its death is then ours.
        if !matches!(outcome, PrimaryOutcome::Failed(_)) {
            guard.detach();
        }
    }
    match outcome {
        PrimaryOutcome::Stopped => match refusal {
            Some(Refusal { code, text }) => {
                let advice = advice(&code);
                let message =
                    format!("the backup refuses this guest: {text}{advice}; the guest runs on, unprotected");
                Err(Failure::new(Code::Refused, message))
            }
            None => {
                eprintln!("romulus: protection has ended; the guest runs on, unprotected");
                Ok(ExitCode::SUCCESS)
            }
        },
        PrimaryOutcome::GuestEnded => Err(Failure::new(Code::GuestEnded, "the guest has powered off")),
        PrimaryOutcome::GuestDied(why) => Err(Failure::new(
            Code::Moved,
            format!("the guest's process died ({why}); the backup may go on with it: see its status"),
        )),
        PrimaryOutcome::GuestDiedUnprotected(why) => Err(Failure::new(
            Code::GuestLost,
            format!("the guest's process died while it was unprotected ({why}): no backup goes on with it"),
        )),
        PrimaryOutcome::TakenOver => Err(Failure::new(Code::Moved, "the guest now runs at the backup")),
        PrimaryOutcome::Failed(why) => Err(Failure::failed(why)),
    }
}
