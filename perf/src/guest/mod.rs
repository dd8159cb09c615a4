//! `romulus-perf guest`: what protection costs the work of a real guest, and what a client of it
//! would see of a failover: the Remus paper's own plot.

mod protected;
mod rate;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use romulus::demo::check_interrupted;
use romulus::demo::stage::Stage;
use serde::Serialize;

use crate::exit::{Failure, OrFail};
use crate::real::{RealOptions, version_of};
use crate::results::{Run, RunClock};
use protected::Case;
pub use protected::status;
use rate::WorkRate;

/// What the guest can do, and what is counted.
const WORKS: [(&str, &str); 3] = [("writer", "pages/s"), ("redis", "commands/s"), ("compile", "files/s")];

/// Options of `romulus-perf guest`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct GuestCommand {
    #[command(flatten)]
    real: RealOptions,

    /// What the guest does: writer (writes memory, page after page), redis (a key-value server and
    /// its client, both in the guest), compile (tcc compiles C files)
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", default_value = "writer,redis,compile")]
    work: Vec<String>,

    /// Checkpoints a second
    #[arg(long, value_delimiter = ',', value_name = "RATE,...", default_value = "10,20,30,40,100,200")]
    rates: Vec<f64>,

    /// Memory that the writer goes around in
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    writer_mib: u64,

    /// Length of each measurement; unprotected and protected alternate
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,

    /// How often each rate is measured
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,

    /// Follow redis through a failover at 40 checkpoints a second, as a series over time
    #[arg(long)]
    timeline: bool,

    /// Write what was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl GuestCommand {
    fn check(&self) -> Result<(), Failure> {
        if let Some(work) = self.work.iter().find(|work| unit_of(work).is_none()) {
            return Err(Failure::usage(format!("--work {work}: writer, redis and compile are known")));
        }
        if let Some(rate) = self.rates.iter().find(|rate| !(**rate >= 0.1 && **rate <= 1000.0)) {
            return Err(Failure::usage(format!("--rates {rate}: between 0.1 and 1000")));
        }
        if !(self.seconds >= 0.5 && self.seconds <= 3600.0) {
            return Err(Failure::usage(format!("--seconds {}: between 0.5 and 3600", self.seconds)));
        }
        if self.writer_mib > self.real.guest_mib / 2 {
            return Err(Failure::usage(format!(
                "--writer-mib {}: at most half of --guest-mib {}",
                self.writer_mib, self.real.guest_mib
            )));
        }
        Ok(())
    }
}

fn unit_of(work: &str) -> Option<&'static str> {
    WORKS.iter().find(|(name, _)| *name == work).map(|(_, unit)| *unit)
}

/// Runs the command.
pub fn run(command: &GuestCommand) -> Result<ExitCode, Failure> {
    command.check()?;
    let clock = RunClock::start();
    let program = command.real.prepare(&["initramfs-work"])?;
    let mut run = clock.run("guest", command)?;
    describe(command, &mut run);
    let json = command.json.as_deref();
    println!("{}", protected::heading());
    let mut measured = command.work.iter().try_for_each(|work| {
        measure(command, &program, work, &mut run)?;
        clock.save(&mut run, json)
    });
    if command.timeline && measured.is_ok() {
        measured = timeline::follow(&command.real, &program, &mut run);
    }
    if let Err(failure) = &measured {
        run.notes.push(format!("not all was measured: {failure}"));
    }
    let saved = clock.save(&mut run, json);
    measured.and(saved).map(|()| ExitCode::SUCCESS)
}

fn describe(command: &GuestCommand, run: &mut Run) {
    let machine = command.real.machine(None, 0, 0.0);
    run.result = serde_json::json!({
        "accelerator": machine.accelerator,
        "qemu": version_of("qemu-system-x86_64".as_ref()),
        "machine": machine.kind,
        "vcpus": 1,
    });
    if run.machine.cores < 4 {
        run.notes.push(format!(
            "guest, primary, backup and standby share {} cores: slow-down is the pauses and the processor time of \
             all of them together",
            run.machine.cores
        ));
    }
}

/// All rates of one kind of work, in one guest. What was measured before a failure is in the run.
fn measure(
    command: &GuestCommand,
    program: &std::path::Path,
    work: &str,
    run: &mut Run,
) -> Result<(), Failure> {
    let machine = command.real.machine(Some(work), command.writer_mib, 0.0);
    let mut stage = Stage::new(machine, program).or_fail("the stage")?;
    stage.arbitrated = false;
    let console = stage.start_guest().or_fail(format!("the guest with {work}"))?;
    let mut rate = WorkRate::follow(console)?;
    for target in &command.rates {
        let case = Case {
            work: work.to_owned(),
            unit: unit_of(work).unwrap_or("1/s"),
            rate: *target,
            guest_mib: command.real.guest_mib,
        };
        let mut pairs = Vec::new();
        let measured = (0..command.rounds).try_for_each(|_| {
            let pair = protected::pair(&mut stage, &mut rate, &case, command.seconds)?;
            println!("{}", protected::line(&case, &pair));
            pairs.push(pair);
            Ok(())
        });
        protected::fill(run, &case, &pairs);
        if measured.is_err() {
            // An interruption leaves nothing to look into.
            if check_interrupted().is_ok() {
                stage.keep_folder();
            }
            return measured;
        }
    }
    Ok(())
}
