//! `romulus-perf backup`: stands ready for a synthetic guest, takes it over and verifies it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use romulus_checkpoint::driver::backup::{
    BackupDriver, BackupHandle, BackupOptions, BackupOutcome, BackupParts, BackupStatus, TakeoverStatus,
};
use romulus_checkpoint::synthetic::{StandbyControl, SyntheticOptions, SyntheticStandby, Verdict};
use romulus_host::memory::available_bytes;
use romulus_host::pinning::PinningPlan;
use serde::Serialize;

use super::affinity::{self, Thread};
use super::common::{CommonOptions, EndRequest};
use super::image::{DamagingStandby, Lent, ReachableArenas};
use super::witness::Witness;
use crate::exit::{Code, Failure, OrFail};
use crate::fabrics::{FabricOptions, thread_setup};
use crate::results::RunClock;

/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// How often the state is looked at.
const LOOK_AT_STATE: Duration = Duration::from_millis(200);

/// Options of `romulus-perf backup`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct BackupCommand {
    #[command(flatten)]
    fabric: FabricOptions,
    #[command(flatten)]
    common: CommonOptions,

    /// Where to listen for the primary, and (the same port, UDP) for the guest's output
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// The primary is taken for dead after so long without a sign of life; longer than its own
    #[arg(long, value_name = "MS", default_value_t = 260, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    suspect_ms: u64,

    /// Give up after so long without a takeover
    #[arg(long, value_name = "S", default_value_t = 3600)]
    patience: u64,

    /// After a takeover: hash all memory that the primary could write to, wait until this file
    /// exists, hash it again
    #[arg(long, value_name = "FILE")]
    hold_until: Option<PathBuf>,

    /// For tests: flip a bit of this page before the image is verified
    #[arg(long, value_name = "PAGE")]
    damage_page: Option<u64>,
}

/// What the verification found.
#[derive(Clone, Debug, Serialize)]
struct Verified {
    exact: bool,
    /// The number of the guest's committed pause.
    pause: u64,
    corrupt_pages: u64,
    first_fault: Option<String>,
    /// Whether all pages together are those of the committed pause.
    digest_right: bool,
}

impl From<Verdict> for Verified {
    fn from(verdict: Verdict) -> Self {
        Self {
            exact: verdict.is_exact(),
            pause: verdict.state.pause,
            corrupt_pages: verdict.corrupt_pages,
            first_fault: verdict.first_fault,
            digest_right: verdict.digest_right,
        }
    }
}

/// The image before and after the wait of `--hold-until`.
#[derive(Clone, Debug, Serialize)]
struct Held {
    hash_before: String,
    hash_after: String,
    unchanged: bool,
    verified_again: Verified,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    /// `taken_over`, `damaged`, `left_alone`, `stopped`, `failed`.
    outcome: &'static str,
    why: String,
    /// The epoch that was resumed.
    epoch: u64,
    verified: Option<Verified>,
    takeover: Option<TakeoverStatus>,
    held: Option<Held>,
    /// Outputs of the guest heard here, and the latest pause among them.
    outputs: u64,
    last_output_pause: u64,
    /// Whether no output of a pause after the committed one was heard.
    output_right: bool,
    threads: Vec<Thread>,
    status: BackupStatus,
}

/// Runs the command.
pub fn run(command: &BackupCommand) -> Result<ExitCode, Failure> {
    let clock = RunClock::start();
    let end = EndRequest::watch()?;
    let plan = command.fabric.plan()?;
    let setup = thread_setup(plan.clone());
    let (arbiter, shared) = command.common.arbiter()?;
    let mut driver = BackupOptions::new("backup", command.listen, available_bytes() / 10 * 9);
    driver.machine.suspect_after = Duration::from_millis(command.suspect_ms);
    driver.machine.heartbeat_every = Duration::from_millis((command.suspect_ms / 8).clamp(2, 20));
    driver.machine.takeover_automatic = true;
    driver.machine.shared_arbiter = shared;
    let standby = SyntheticStandby::new(&SyntheticOptions::default());
    let control = standby.control();
    let arenas = ReachableArenas::default();
    let lent = arenas.lent();
    let standby = Box::new(DamagingStandby::new(standby, command.damage_page, lent.clone()));
    let fabric = command.fabric.open(&setup, None)?;
    let mut parts = BackupParts::new(fabric, standby, Box::new(arenas), arbiter);
    parts.threads = Arc::new(move |name: &str| setup(name));
    let handle = BackupDriver::spawn(driver, parts).or_fail(format!("--listen {}", command.listen))?;
    let witness = Witness::listen(handle.local_address())?;
    println!("listening at {}", handle.local_address());
    let mut watch = Watch { command, handle: &handle, control, plan, protected: false, threads: Vec::new() };
    let (outcome, why) = watch.run(&end)?;
    let threads = std::mem::take(&mut watch.threads);
    let verdict = watch.control.verdict();
    let held = verdict.as_ref().map(|verdict| watch.hold(&lent, verdict)).transpose()?.flatten();
    let (last_output_pause, outputs) = (witness.last_pause(), witness.outputs());
    let status = handle.status();
    let outcome = Outcome {
        outcome,
        why,
        epoch: status.epoch,
        output_right: verdict.as_ref().is_none_or(|verdict| last_output_pause <= verdict.state.pause),
        verified: verdict.map(Verified::from),
        takeover: status.takeover,
        held,
        outputs,
        last_output_pause,
        threads,
        status,
    };
    let mut run = clock.run("backup", command)?;
    run.device = command.fabric.used_device();
    run.result = serde_json::to_value(&outcome).or_fail("the outcome as JSON")?;
    run.write(command.common.json.as_deref())?;
    println!("{}", summary(&outcome));
    affinity::check(&outcome.threads)?;
    judge(&outcome)
}

struct Watch<'a> {
    command: &'a BackupCommand,
    handle: &'a BackupHandle,
    control: StandbyControl,
    plan: PinningPlan,
    protected: bool,
    threads: Vec<Thread>,
}

impl Watch<'_> {
    /// Until the guest was taken over, or left alone.
    fn run(&mut self, end: &EndRequest) -> Result<(&'static str, String), Failure> {
        let begun = Instant::now();
        let mut looked = Instant::now();
        loop {
            match self.handle.wait_for(LOOK) {
                Some(BackupOutcome::Activated(_)) => return Ok(("taken_over", String::new())),
                Some(BackupOutcome::Stopped) => return Ok(("stopped", "asked to".into())),
                Some(BackupOutcome::Failed(why)) => return Ok(("failed", why)),
                None => {}
            }
            if let Some(verdict) = self.control.verdict().filter(|verdict| !verdict.is_exact()) {
                return Ok(("damaged", verdict.first_fault.unwrap_or_else(|| "the digest is wrong".into())));
            }
            if end.came() {
                self.handle.request_stop();
            }
            if looked.elapsed() < LOOK_AT_STATE {
                continue;
            }
            looked = Instant::now();
            let status = self.handle.status();
            if status.state == "protected" && !self.protected {
                self.protected = true;
                self.threads = affinity::threads(&self.plan)?;
                println!("protected");
            }
            if self.protected && matches!(status.state.as_str(), "solo" | "ended") {
                return Ok(("left_alone", status.state_reason));
            }
            if begun.elapsed() >= Duration::from_secs(self.command.patience) {
                return Ok(("stopped", format!("no takeover within {} s", self.command.patience)));
            }
        }
    }

    /// Hashes the image, waits, hashes it again.
    fn hold(&self, lent: &Lent, verdict: &Verdict) -> Result<Option<Held>, Failure> {
        let Some(path) = &self.command.hold_until else { return Ok(None) };
        let hash = || lent.hash().ok_or_else(|| Failure::failed("there is no image to hash"));
        let hash_before = hash()?;
        println!("holding until {} exists; sha256 of all memory lent: {hash_before}", path.display());
        let deadline = Instant::now() + Duration::from_secs(self.command.patience);
        while !path.exists() {
            if Instant::now() >= deadline {
                let text = format!("{} did not appear within {} s", path.display(), self.command.patience);
                return Err(Failure::failed(text));
            }
            std::thread::sleep(LOOK);
        }
        let hash_after = hash()?;
        let again = lent.verify(verdict.state).ok_or_else(|| Failure::failed("there is no image"))?;
        let unchanged = hash_before == hash_after;
        Ok(Some(Held { hash_before, hash_after, unchanged, verified_again: again.into() }))
    }
}

fn summary(outcome: &Outcome) -> String {
    let mut text = format!("outcome: {} {}", outcome.outcome, outcome.why).trim_end().to_owned();
    if let Some(verified) = &outcome.verified {
        let word = if verified.exact { "exact" } else { "NOT EXACT" };
        text += &format!(
            "\nepoch {}, pause {}: image {word}, {} corrupt pages, digest {}",
            outcome.epoch,
            verified.pause,
            verified.corrupt_pages,
            if verified.digest_right { "right" } else { "wrong" }
        );
    }
    if let Some(takeover) = &outcome.takeover {
        text += &format!(
            "\ntakeover: detection {:.1} ms, fence {:.2} ms, grant {:.2} ms, {} displaced pages home in {:.1} ms, \
             verification {:.0} ms",
            takeover.detection_ms,
            takeover.fence_ms,
            takeover.grant_ms,
            takeover.displaced_pages,
            takeover.copy_ms,
            takeover.activate_ms
        );
    }
    if let Some(held) = &outcome.held {
        let word = if held.unchanged { "unchanged" } else { "CHANGED" };
        text += &format!("\nmemory after the wait: {word}, {}", held.hash_after);
    }
    text += &format!(
        "\noutput: {} heard, the last of pause {}, {}",
        outcome.outputs,
        outcome.last_output_pause,
        if outcome.output_right { "none ran ahead" } else { "SOME RAN AHEAD" }
    );
    text
}

fn judge(outcome: &Outcome) -> Result<ExitCode, Failure> {
    let not_exact = |text: String| Err(Failure::new(Code::NotExact, text));
    if let Some(verified) = outcome.verified.as_ref().filter(|verified| !verified.exact) {
        let fault = verified.first_fault.as_deref().unwrap_or("the digest is wrong");
        return not_exact(format!("the image is not the guest at the committed pause: {fault}"));
    }
    if !outcome.output_right {
        return not_exact(format!("output of pause {} left before its commit", outcome.last_output_pause));
    }
    if outcome.held.as_ref().is_some_and(|held| !held.unchanged || !held.verified_again.exact) {
        return not_exact("the memory lent to the primary changed after the takeover".into());
    }
    match outcome.outcome {
        "taken_over" => Ok(ExitCode::SUCCESS),
        "left_alone" => {
            eprintln!("romulus-perf: nothing to verify: {}", outcome.why);
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::failed(format!("{other}: {}", outcome.why))),
    }
}
