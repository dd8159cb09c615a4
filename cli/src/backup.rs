//! `romulus backup`: stands ready for a guest until it is stopped; after a takeover it goes on to
//! tell about it.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::arbiter::none::AutomaticMoves;
use romulus_checkpoint::arbiter::spec::ArbiterSpec;
use romulus_checkpoint::driver::backup::{
    BackupDriver, BackupHandle, BackupOptions as DriverOptions, BackupOutcome, BackupParts, BackupStatus,
};
use romulus_checkpoint::wire::record::Role;
use romulus_host::memory::{HostArenas, available_bytes};
use romulus_host::pinning::{Pinner, PinningPlan};

use crate::control::{Answer, ControlSocket, Request, default_path};
use crate::exit::{Code, Failure};
use crate::fabric;
use crate::protect::{resolve, state_line};
use crate::settings::backup::BackupOptions;
use crate::settings::common::bounded;
use crate::signals::EndRequest;
use crate::standbys::{self, Info, Seen};
use crate::threads;

/// Suspicion of the primary, when not said otherwise: longer than the primary's and a swap.
const SUSPECT_AFTER_MS: u64 = 260;
/// How often a new state is looked for.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// Behind the machine's name, when the host's name is not said: the two must differ.
const SUFFIX: &str = "-backup";
/// How often the end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The status of a backup, as `romulus status --json` prints it.
#[derive(serde::Serialize)]
struct Status {
    role: &'static str,
    pid: u32,
    listen: String,
    #[serde(flatten)]
    standby: Seen,
    threads: romulus_host::pinning::PinnedThreads,
    #[serde(flatten)]
    driver: BackupStatus,
}

/// Stands ready until the end.
pub fn run(options: BackupOptions) -> Result<ExitCode, Failure> {
    let listen = options.listen.as_deref().ok_or_else(|| {
        Failure::usage("where to listen? --listen ADDRESS:PORT, which the primary reaches".into())
    })?;
    let listen = resolve("--listen", listen)?;
    let arbiter =
        ArbiterSpec::from_str(options.common.arbiter()).map_err(|e| Failure::usage(e.to_string()))?;
    let automatic = options.takeover_automatic()?;
    let pinning = PinningPlan::parse(options.common.pin.as_deref().unwrap_or("off"))
        .map_err(|e| Failure::usage(format!("--pin: {e}")))?;
    let pinner = Pinner::new(pinning);

    let end = EndRequest::watch()?;
    let control_path = options.common.control.clone().unwrap_or_else(|| default_path("backup"));
    let control = ControlSocket::bind(&control_path)?;

    let limit_bytes = match options.memory_limit_mib {
        Some(mib) => bounded("--memory-limit-mib", mib, 1, 1 << 30)? << 20,
        None => available_bytes() / 10 * 9,
    };
    let mut driver = DriverOptions::new(&options.common.host(SUFFIX), listen, limit_bytes);
    driver.machine.heartbeat_every = options.common.heartbeat_every();
    driver.machine.suspect_after = options.common.suspect_after(SUSPECT_AFTER_MS)?;
    driver.machine.takeover_automatic = automatic;
    driver.machine.shared_arbiter = arbiter != ArbiterSpec::None;

    let (standby, info) = standbys::open(&options)?;
    let moves = if automatic { AutomaticMoves::AcceptSplitBrain } else { AutomaticMoves::Solo };
    let arbiter = arbiter.open(moves).map_err(|e| Failure::failed(e.to_string()))?;
    let fabric = fabric::open(&options.common, &pinner, Role::Backup)?;
    let mut parts = BackupParts::new(fabric, standby, Box::new(HostArenas::new()), arbiter);
    let setup = threads::setup(&pinner);
    parts.threads = Arc::new(move |thread: &str| setup(thread));
    let handle = BackupDriver::spawn(driver, parts).map_err(|e| Failure::failed(format!("--listen: {e}")))?;
    eprintln!("romulus: standing ready at {}", handle.local_address());

    serve(&control, &handle, &end, pinner, info.clone())?;
    wait(&options, &handle, &end, &info)
}

fn serve(
    control: &ControlSocket,
    handle: &BackupHandle,
    end: &EndRequest,
    pinner: Pinner,
    info: Info,
) -> Result<(), Failure> {
    let (driver, end) = (handle.clone(), end.clone());
    control.serve(move |request| match request {
        Request::Status => {
            let status = Status {
                role: "backup",
                pid: std::process::id(),
                listen: driver.local_address().to_string(),
                standby: info.seen(),
                threads: pinner.threads(),
                driver: driver.status(),
            };
            serde_json::to_value(status).map_or_else(|e| Answer::Error(e.to_string()), Answer::Ok)
        }
        Request::Failover { force } => match driver.request_takeover(force) {
            Ok(()) => Answer::Ok(serde_json::Value::Null),
            Err(why) => Answer::Error(why),
        },
        Request::Stop => {
            end.ask();
            Answer::Ok(serde_json::Value::Null)
        }
    })
}

/// Waits for the end and tells each new state. After a takeover the guest is a process of its own;
/// this one stays to tell about it until it is stopped.
fn wait(
    options: &BackupOptions,
    handle: &BackupHandle,
    end: &EndRequest,
    info: &Info,
) -> Result<ExitCode, Failure> {
    let mut state = String::new();
    let mut outcome = None;
    let mut looked = Instant::now();
    let mut asked = false;
    loop {
        if outcome.is_none() {
            outcome = handle.wait_for(LOOK_EVERY);
            if let Some(BackupOutcome::Activated(_)) = &outcome {
                eprintln!(
                    "romulus: the guest runs here; to protect it again: romulus protect --guest {} --host {} \
                     --name {} --arbiter {} --backup ...",
                    info.guest(),
                    options.common.host(SUFFIX),
                    handle.status().guest,
                    options.common.arbiter()
                );
            }
        } else {
            std::thread::sleep(LOOK_EVERY);
        }
        // A snapshot sums up histograms that the committer writes: not at every look.
        if !state.is_empty() && outcome.is_none() && looked.elapsed() < TELL_EVERY && !end.came() {
            continue;
        }
        looked = Instant::now();
        let status = handle.status();
        if status.state != state {
            eprintln!("romulus: {}", state_line(&status.state, &status.state_reason));
            state.clone_from(&status.state);
        }
        match &outcome {
            Some(BackupOutcome::Stopped) => return Ok(ExitCode::SUCCESS),
            Some(BackupOutcome::Failed(why)) => return Err(Failure::new(Code::Failed, why.clone())),
            Some(BackupOutcome::Activated(_)) if end.came() => return Ok(ExitCode::SUCCESS),
            _ => {}
        }
        if end.came() && !asked {
            asked = true;
            handle.request_stop();
        }
    }
}
