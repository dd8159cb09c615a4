//! Runs seeds of the simulator: see [`HELP`]. Every run is repeated exactly by its seed.

mod sim;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sim::scenario::{Host, Mutant, Plan};
use sim::world::{Outcome, World};

const HELP: &str = "\
Runs the protocol machines of both sides under a virtual clock, with faults from seeds.

  --seeds N        seeds with random faults (default 300)
  --first N        the first of them (default 1)
  --sweeps N       base seeds run with a crash at step 1, 2, 3, ... of each side (default 1)
  --threads N      threads (default: as many as CPUs)
  --no-self-test   do not check that broken drivers are caught
  --seed N         this run alone, with the end of its trace
  --crash HOST:N   with --seed: crash HOST (primary, backup) at its step N
  --mutant NAME    with --seed: break this rule on purpose
  --trace          with --seed: the whole trace
  --help           this text
";

const REPEAT: &str = "cargo test --release -p romulus-checkpoint --test simulator --";
/// A broken driver must be caught within so many seeds.
const MUTANT_SEEDS: u64 = 600;
/// A sweep ends at this step, if the run is that long.
const SWEEP_STEPS: u64 = 4000;

struct Options {
    seeds: u64,
    first: u64,
    sweeps: u64,
    threads: usize,
    self_test: bool,
    one: Option<u64>,
    crash_at: Option<(Host, u64)>,
    mutant: Mutant,
    trace: bool,
}

fn main() -> ExitCode {
    let options = match read_options(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    std::panic::set_hook(Box::new(|info| LAST_PANIC.set(info.to_string())));
    match options.one {
        Some(seed) => run_one(seed, &options),
        None => run_all(&options),
    }
}

thread_local! {
    static LAST_PANIC: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

fn read_options(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options {
        seeds: 300,
        first: 1,
        sweeps: 1,
        threads,
        self_test: true,
        one: None,
        crash_at: None,
        mutant: Mutant::None,
        trace: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => options.seeds = number(&value()?)?,
            "--first" => options.first = number(&value()?)?,
            "--sweeps" => options.sweeps = number(&value()?)?,
            "--threads" => options.threads = number(&value()?)?.clamp(1, 1024) as usize,
            "--no-self-test" => options.self_test = false,
            "--seed" => options.one = Some(number(&value()?)?),
            "--crash" => options.crash_at = Some(crash(&value()?)?),
            "--mutant" => options.mutant = mutant(&value()?)?,
            "--trace" => options.trace = true,
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(None);
            }
            // What `cargo test` passes to every test program.
            "--nocapture" | "--quiet" | "-q" | "--exact" | "--include-ignored" => {}
            "--list" => {
                println!("simulator: test");
                return Ok(None);
            }
            "--ignored" => {
                println!("0 passed, 0 failed: nothing is ignored");
                return Ok(None);
            }
            filter if !filter.starts_with('-') && !"simulator".contains(filter) => {
                println!("0 passed, 0 failed: filtered out by `{filter}`");
                return Ok(None);
            }
            filter if !filter.starts_with('-') => {}
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(Some(options))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn crash(text: &str) -> Result<(Host, u64), String> {
    match text.split_once(':') {
        Some(("primary", step)) => Ok((Host::Primary, number(step)?)),
        Some(("backup", step)) => Ok((Host::Backup, number(step)?)),
        _ => Err(format!("`{text}` is not primary:N or backup:N")),
    }
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, mutant)| mutant).ok_or_else(|| {
        let names: Vec<_> = Mutant::ALL.iter().map(|(name, _)| *name).collect();
        format!("`{name}` is none of {}", names.join(", "))
    })
}

/// Runs a plan; a panic is a violation like others.
fn run(plan: Plan) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| World::run(plan))).unwrap_or_else(|_| Outcome {
        violation: Some(format!("panic: {}", LAST_PANIC.take())),
        ending: "panic",
        ..Outcome::default()
    })
}

fn plain(seed: u64) -> Plan {
    Plan { seed, crash_at: None, mutant: Mutant::None, trace: false }
}

/// The arguments that repeat a plan.
fn arguments(plan: &Plan) -> String {
    let mut text = format!("--seed {}", plan.seed);
    if let Some((host, step)) = plan.crash_at {
        let host = if host == Host::Primary { "primary" } else { "backup" };
        text += &format!(" --crash {host}:{step}");
    }
    if let Some((name, _)) = Mutant::ALL.iter().find(|(_, mutant)| *mutant == plan.mutant) {
        text += &format!(" --mutant {name}");
    }
    text
}

fn run_one(seed: u64, options: &Options) -> ExitCode {
    let (crash_at, mutant) = (options.crash_at, options.mutant);
    let outcome = run(Plan { seed, crash_at, mutant, trace: true });
    let shown = if options.trace { outcome.trace.len() } else { 60 };
    for line in outcome.trace.iter().skip(outcome.trace.len().saturating_sub(shown)) {
        println!("{line}");
    }
    println!("seed {seed}: {}, {:?}", outcome.ending, outcome.stats);
    match outcome.violation {
        None => println!("1 passed, 0 failed"),
        Some(violation) => {
            println!("VIOLATION {violation}\n0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// What all runs together came to.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    endings: BTreeMap<&'static str, u64>,
    steps: u64,
    commits: u64,
    takeovers: u64,
    resumptions: u64,
    overflows: u64,
    crashes: u64,
}

impl Tally {
    fn add(&mut self, plan: &Plan, outcome: &Outcome) {
        *self.endings.entry(outcome.ending).or_default() += 1;
        self.steps += outcome.stats.steps;
        self.commits += outcome.stats.commits;
        self.takeovers += outcome.stats.takeovers;
        self.resumptions += outcome.stats.resumptions;
        self.overflows += outcome.stats.overflows;
        self.crashes += outcome.stats.crashes;
        let Some(violation) = &outcome.violation else {
            self.passed += 1;
            return;
        };
        self.failed += 1;
        if self.failed <= 10 {
            println!("FAILED {violation}\n  repeat: {REPEAT} {}", arguments(plan));
        }
    }
}

/// Runs `work(0)`, `work(1)`, ... on several threads until one says that it was the last.
fn in_parallel(threads: usize, work: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| while work(next.fetch_add(1, Ordering::Relaxed)) {});
        }
    });
}

fn run_all(options: &Options) -> ExitCode {
    let start = Instant::now();
    let tally = Mutex::new(Tally::default());
    in_parallel(options.threads, |index| {
        if index >= options.seeds {
            return false;
        }
        let plan = plain(options.first + index);
        let outcome = run(plan.clone());
        tally.lock().unwrap().add(&plan, &outcome);
        true
    });
    println!("{} seeds with random faults in {:.1?}", options.seeds, start.elapsed());
    for sweep in 0..options.sweeps {
        for host in [Host::Primary, Host::Backup] {
            crash_at_every_step(options.first + sweep, host, options.threads, &tally);
        }
    }
    check_repeats(options.first, &tally);
    if options.self_test {
        check_mutants(options, &tally);
    }
    let tally = tally.into_inner().unwrap();
    println!(
        "endings {:?}; {} steps, {} commits, {} takeovers, {} resumptions, {} overflows, {} crashes; {:.1?}",
        tally.endings,
        tally.steps,
        tally.commits,
        tally.takeovers,
        tally.resumptions,
        tally.overflows,
        tally.crashes,
        start.elapsed()
    );
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The base seed again and again, the host's process crashing one step later each time.
fn crash_at_every_step(seed: u64, host: Host, threads: usize, tally: &Mutex<Tally>) {
    let steps = AtomicU64::new(0);
    in_parallel(threads, |index| {
        let plan = Plan { crash_at: Some((host, index + 1)), ..plain(seed) };
        let outcome = run(plan.clone());
        let reached = outcome.violation.is_some() || outcome.points[host as usize] > index;
        if reached {
            steps.fetch_add(1, Ordering::Relaxed);
            tally.lock().unwrap().add(&plan, &outcome);
        }
        reached && index < SWEEP_STEPS
    });
    println!("seed {seed}: {host:?} crashed at each of {} steps", steps.into_inner());
}

/// The same seed twice is the same run.
fn check_repeats(first: u64, tally: &Mutex<Tally>) {
    for seed in first..first + 5 {
        // Not the texts: they show nonces, which the guard draws from the system.
        let facts = || {
            let outcome = run(plain(seed));
            (outcome.stats, outcome.points, outcome.ending)
        };
        let (one, two) = (facts(), facts());
        let mut tally = tally.lock().unwrap();
        if one == two {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            println!("FAILED seed {seed} does not repeat its run");
        }
    }
}

/// Each broken driver is caught; a check that cannot fail proves nothing.
fn check_mutants(options: &Options, tally: &Mutex<Tally>) {
    for (name, mutant) in Mutant::ALL {
        let caught = Mutex::new(None);
        in_parallel(options.threads, |index| {
            if index >= MUTANT_SEEDS || caught.lock().unwrap().is_some() {
                return false;
            }
            let outcome = run(Plan { mutant, ..plain(index + 1) });
            let Some(violation) = outcome.violation else { return true };
            caught.lock().unwrap().get_or_insert((index + 1, violation));
            false
        });
        let mut tally = tally.lock().unwrap();
        match caught.into_inner().unwrap() {
            Some((seed, violation)) => {
                tally.passed += 1;
                println!("broken on purpose: {name}: caught at seed {seed}: {violation:.100}");
            }
            None => {
                tally.failed += 1;
                println!("FAILED broken on purpose: {name}: not caught within {MUTANT_SEEDS} seeds");
            }
        }
    }
}
