//! `romulus-perf epochs` and `romulus-perf scenarios`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use romulus_checkpoint::synthetic::SyntheticGuest;
use romulus_host::memory::available_bytes;
use serde::Serialize;

use super::case::{Case, Load};
use super::delay::Delay;
use super::engine::{Engine, Hooks, fabric_options};
use super::figures::Outcome;
use super::find_max::{self, Found, Probe};
use super::scenario::{Scenario, Scenarios, Tracking};
use super::view::View;
use super::{memcpy, table};
use crate::exit::{Code, Failure, OrFail};
use crate::fabrics::{FabricOptions, Kind, thread_setup};
use crate::results::{Results, Run, RunClock};

/// Options of `romulus-perf epochs`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct EpochsCommand {
    /// Scenarios, by name; `romulus-perf scenarios` lists them
    #[arg(value_name = "SCENARIO", default_value = "quick")]
    scenarios: Vec<String>,

    #[command(flatten)]
    fabric: FabricOptions,

    /// Scenarios of this TOML file instead of those that ship with the program
    #[arg(long = "scenarios", value_name = "FILE")]
    file: Option<PathBuf>,

    /// Set a field of the scenarios otherwise, as in --set guest_mib=512 --set
    /// dirty_pages=[100,1000]; `romulus-perf scenarios --fields` lists the fields
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,

    /// Length of the measured part of each case, instead of the scenario's
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,

    /// Search for the highest rate with fewer than 1 % late epochs: by short probes, then by measurements
    /// of full length (`--seconds`) from the rate found downwards, ten at the most
    #[arg(long)]
    find_max: bool,

    /// Where the backup listens: with rdma an address of the device
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// For tests: delay a step of each pause (stop, gate, state, collect, resume), or with @N only
    /// that of the N-th measured pause, as in collect=1ms or stop=300ms@50
    #[arg(long, value_name = "PHASE=TIME")]
    delay_phase: Option<Delay>,

    /// For tests: flip a bit of this page of the image before it is verified
    #[arg(long, value_name = "PAGE")]
    corrupt_page: Option<u64>,
}

/// Options of `romulus-perf scenarios`.
#[derive(Args, Clone, Debug)]
pub struct ScenariosCommand {
    /// Those of this TOML file instead of those that ship with the program
    #[arg(long = "scenarios", value_name = "FILE")]
    file: Option<PathBuf>,

    /// List the fields and their defaults too
    #[arg(long)]
    fields: bool,
}

/// Lists the scenarios.
pub fn run_list(command: &ScenariosCommand) -> Result<ExitCode, Failure> {
    let list = Scenarios::load(command.file.as_deref())?.list();
    let width = list.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, scenario) in &list {
        println!("{name:<width$}  {}", scenario.about);
    }
    if command.fields {
        let fields = toml::to_string(&Scenario::default()).or_fail("the fields as TOML")?;
        println!("\nFields and their defaults (lists stand for each of their values):\n{fields}");
        println!(
            "# Fields without a default: filled_mib, dirty_pages, pages_per_second, pin, fabric, streams"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command.
pub fn run(command: &EpochsCommand) -> Result<ExitCode, Failure> {
    let known = Scenarios::load(command.file.as_deref())?;
    let mut set = command.set.clone();
    set.extend(command.seconds.map(|seconds| format!("seconds={seconds:?}")));
    set.extend(command.find_max.then(|| "find_max=true".to_owned()));
    let usage = |error: String| Failure::usage(error);
    // All of them before anything runs: an error in the last one is told at once.
    let planned: Vec<(String, Scenario, Vec<Case>)> = command
        .scenarios
        .iter()
        .map(|name| {
            let scenario = known.get(name, &set).map_err(usage)?;
            let cases = Case::of(&scenario, &command.fabric)
                .map_err(|error| Failure::usage(format!("scenario `{name}`: {error}")))?;
            Ok((name.clone(), scenario, cases))
        })
        .collect::<Result<_, Failure>>()?;
    let mut runs = Vec::new();
    let mut tally = Tally::default();
    for (name, scenario, cases) in planned {
        runs.push(run_scenario(command, &name, &scenario, &cases, &mut tally)?);
        // What was measured is kept though a later scenario fails.
        if let Some(path) = &command.json {
            Results::of(runs.clone()).write(path)?;
        }
    }
    tally.judge()
}

/// How the cases ended.
#[derive(Default)]
struct Tally {
    measured: usize,
    skipped: Vec<String>,
    failed: Vec<String>,
    not_exact: Vec<String>,
}

impl Tally {
    fn judge(&self) -> Result<ExitCode, Failure> {
        if !self.not_exact.is_empty() {
            return Err(Failure::new(Code::NotExact, format!("not exact: {}", self.not_exact.join("; "))));
        }
        if !self.failed.is_empty() {
            return Err(Failure::failed(format!("failed: {}", self.failed.join("; "))));
        }
        if self.measured == 0 {
            return Err(Failure::failed(format!("nothing could be measured: {}", self.skipped.join("; "))));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn run_scenario(
    command: &EpochsCommand,
    name: &str,
    scenario: &Scenario,
    cases: &[Case],
    tally: &mut Tally,
) -> Result<Run, Failure> {
    let clock = RunClock::start();
    let mut view = View::new();
    let (mut outcomes, mut notes, mut details) = (Vec::new(), Vec::new(), Vec::new());
    println!("{name}: {}", scenario.about);
    println!("{}", table::header());
    for (index, case) in cases.iter().enumerate() {
        view.begin(format!("{name} {}/{} {}", index + 1, cases.len(), case.name));
        if let Err(why) = possible(command, case) {
            notes.push(format!("{}: skipped: {why}", case.name));
            tally.skipped.push(why.clone());
            view.print(&format!("{}\n    skipped: {why}", case.name));
            continue;
        }
        match run_case(command, case, &mut view) {
            Ok((outcome, probes)) => {
                view.print(&table::rows(&outcome));
                let mut detail = outcome.details();
                detail["probes"] = serde_json::to_value(&probes).or_fail("probes as JSON")?;
                details.push(detail);
                if outcome.verified.exact {
                    tally.measured += 1;
                    outcomes.push(outcome);
                } else {
                    let fault = outcome.verified.first_fault.as_deref().unwrap_or("the digest is wrong");
                    tally.not_exact.push(format!("{name} {}: {fault}", case.name));
                    // Losing pages is a way to be fast.
                    notes.push(format!("{}: NOT EXACT, its figures are left out: {fault}", case.name));
                }
            }
            Err(failure) => {
                notes.push(format!("{}: failed: {}", case.name, failure.message));
                view.print(&format!("{}\n    failed: {}", case.name, failure.message));
                tally.failed.push(format!("{name} {}: {}", case.name, failure.message));
            }
        }
    }
    drop(view);
    let options = serde_json::json!({ "command": command, "scenario": scenario });
    let mut run = clock.run("epochs", &options)?;
    run.scenario = Some(name.to_owned());
    run.device = command.fabric.used_device();
    outcomes.iter().try_for_each(|outcome| outcome.fill(&mut run))?;
    run.notes.extend(notes);
    run.result = details.into();
    Ok(run)
}

/// Whether this machine can run a case; why not.
fn possible(command: &EpochsCommand, case: &Case) -> Result<(), String> {
    let (needed, available) = (case.needed_bytes(), available_bytes());
    if needed > available {
        return Err(format!(
            "it needs {} MiB of memory, {} MiB are available",
            needed >> 20,
            available >> 20
        ));
    }
    if case.is_sparse() && case.fabric == Kind::Rdma {
        return Err("a sparse guest's memory cannot be registered for rdma".into());
    }
    let options = fabric_options(case, &command.fabric);
    let plan = options.plan().map_err(|failure| failure.message)?;
    options.open(&thread_setup(plan), None).map(drop).map_err(|failure| failure.message)?;
    if case.tracking == Tracking::WriteProtect {
        romulus_host::tracking::probe::write_protect()
            .map_err(|why| format!("tracking = write_protect: {why}"))?;
    }
    Ok(())
}

fn run_case(command: &EpochsCommand, case: &Case, view: &mut View) -> Result<(Outcome, Vec<Probe>), Failure> {
    view.tell(|| format!("filling {} MiB", case.filled_pages() >> 8));
    let guest = SyntheticGuest::start(case.guest_options()).or_fail("starting the guest")?;
    let alone_pages_per_second = alone(case, &guest, view);
    let hooks = Hooks { delay: command.delay_phase, corrupt_page: command.corrupt_page };
    let engine = Engine::start(case, guest, &command.fabric, command.listen, hooks)?;
    let sync_s = engine.wait_protected(view)?.as_secs_f64();
    std::thread::sleep(Duration::from_secs_f64(case.settle_seconds));
    let Found { case, measured, max_rate, probes } = match case.find_max {
        true => find_max::find(&engine, case, view)?,
        false => Found::given(case, &engine, view)?,
    };
    let verified = engine.finish(view)?;
    let (memory, samples) = (engine.memory.clone(), engine.observer.samples());
    // Its threads go first: a memcpy beside them is no limit.
    drop(engine);
    let memcpy_us = memcpy::measure(&memory, &samples)?;
    let outcome = Outcome { case, measured, sync_s, alone_pages_per_second, memcpy_us, verified, max_rate };
    Ok((outcome, probes))
}

/// Pages a second that the guest writes with nothing else running.
fn alone(case: &Case, guest: &SyntheticGuest, view: &mut View) -> Option<f64> {
    if matches!(case.load, Load::PerEpoch(_)) || case.alone_seconds == 0.0 {
        return None;
    }
    let control = guest.control();
    let time = Duration::from_secs_f64(case.alone_seconds);
    view.tell(|| "the guest alone".into());
    let (writes, begun) = (control.writes(), Instant::now());
    std::thread::sleep(time);
    Some((control.writes() - writes) as f64 / begun.elapsed().as_secs_f64())
}
