//! `romulus-perf peers`: Romulus beside what people would use instead, in the same run, with the
//! same guest.

mod colo;
mod receiver;
mod xl;
mod xl_file;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use romulus::demo::stage::Stage;
use serde::Serialize;
use serde_json::Value;

use crate::exit::{Failure, OrFail};
use crate::guest::status;
use crate::real::{RealOptions, version_of};
use crate::results::{Beside, Better, Labels, Measurement, Results, Run, RunClock, Sampled, names};
use receiver::{Migration, Way};
use xl_file::XenBeside;

/// Options of `romulus-perf peers`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct PeersCommand {
    #[command(flatten)]
    real: RealOptions,

    /// Which: qemu (live migration over one TCP connection), multifd (over several), colo (QEMU's
    /// own checkpoint replication), xl (`xl remus`: see --xl-results; needs none of the other options)
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", default_value = "qemu,multifd,colo,xl")]
    peers: Vec<String>,

    /// Pairs of Romulus and peer
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,

    /// Guest memory with content; the rest is what a booted Linux leaves it [default: half]
    #[arg(long, value_name = "MIB")]
    content_mib: Option<u64>,

    /// Rate at which the guest rewrites pages of that meanwhile
    #[arg(long, value_name = "MIB", default_value_t = 10.0)]
    dirty_mib_per_second: f64,

    /// Connections of multifd
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    channels: u64,

    /// COLO is given so long
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=600))]
    colo_seconds: u64,

    /// Interval of checkpoints for COLO and for Romulus beside it
    #[arg(long, value_name = "MS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    colo_interval_ms: u64,

    /// What `scripts/xen-beside --json FILE` wrote, which measures stock `xl remus` and Romulus in the Xen
    /// lab: makes figures of it, as a run of its own (`peers xl`)
    #[arg(long, value_name = "FILE")]
    xl_results: Option<PathBuf>,

    /// Write what was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl PeersCommand {
    fn content_mib(&self) -> u64 {
        self.content_mib.unwrap_or(self.real.guest_mib / 2)
    }

    fn check(&self) -> Result<(), Failure> {
        let known = ["qemu", "multifd", "colo", "xl"];
        if let Some(peer) = self.peers.iter().find(|peer| !known.contains(&peer.as_str())) {
            return Err(Failure::usage(format!("--peers {peer}: qemu, multifd, colo and xl are known")));
        }
        if self.xl_results.is_some() && !self.wants("xl") {
            return Err(Failure::usage("--xl-results: `xl` is not among --peers"));
        }
        if self.content_mib() + 64 > self.real.guest_mib {
            return Err(Failure::usage(format!(
                "--content-mib {}: the guest of {} MiB needs 64 MiB for itself",
                self.content_mib(),
                self.real.guest_mib
            )));
        }
        Ok(())
    }

    fn labels(&self) -> Labels {
        Labels::default()
            .with("guest_mib", self.real.guest_mib)
            .with("content_mib", self.content_mib())
            .with("fabric", "tcp")
    }

    fn wants(&self, peer: &str) -> bool {
        self.peers.iter().any(|wanted| wanted == peer)
    }
}

/// A copy of the guest's memory while it runs.
#[derive(Clone, Copy, Debug, Serialize)]
struct Copy {
    seconds: f64,
    bytes: f64,
}

/// Runs the command: what is not installed or does not work is a note, and the rest runs.
pub fn run(command: &PeersCommand) -> Result<ExitCode, Failure> {
    command.check()?;
    // First of all: what is wrong with the file is told before minutes of measuring.
    let beside = command.xl_results.as_deref().map(XenBeside::read).transpose()?;
    let mut runs = Vec::new();
    let mut verdict = Ok(());
    if ["qemu", "multifd", "colo"].iter().any(|peer| command.wants(peer)) {
        let clock = RunClock::start();
        let program = command.real.prepare(&["initramfs"])?;
        let mut run = clock.run("peers", command)?;
        verdict = run_qemu(command, &program, &clock, &mut run);
        run.seconds = clock.began().elapsed().as_secs_f64();
        if let Err(failure) = &verdict {
            run.notes.push(format!("not all was measured: {failure}"));
        }
        runs.push(run);
    }
    if command.wants("xl") {
        match &beside {
            Some(beside) => {
                let mut run = RunClock::start().run("peers", command)?;
                verdict = verdict.and(xl::fill(&mut run, beside));
                runs.push(run);
            }
            None => {
                if runs.is_empty() {
                    runs.push(RunClock::start().run("peers", command)?);
                }
                runs[0].notes.push(xl::NOT_MEASURED.into());
            }
        }
    }
    runs.iter().flat_map(|run| &run.notes).for_each(|note| println!("note: {note}"));
    if let Some(path) = &command.json {
        Results::of(runs).write(path)?;
    }
    verdict.map(|()| ExitCode::SUCCESS)
}

/// QEMU's own ways, as far as they are asked for. What was measured before a failure is in the run.
fn run_qemu(command: &PeersCommand, program: &Path, clock: &RunClock, run: &mut Run) -> Result<(), Failure> {
    run.result = serde_json::json!({
        "qemu": version_of("qemu-system-x86_64".as_ref()),
        "accelerator": command.real.machine(None, 0, 0.0).accelerator,
    });
    let ways = [Way::Plain, Way::Multifd(command.channels)];
    let ways: Vec<Way> = ways.into_iter().filter(|way| command.wants(way.peer())).collect();
    if !ways.is_empty() {
        migrations(command, program, &ways, run)?;
        clock.save(run, command.json.as_deref())?;
    }
    if command.wants("colo") {
        colo::run(command, program, run)?;
    }
    Ok(())
}

/// Romulus' first synchronization and each way of migration, in turn, of one running guest.
fn migrations(command: &PeersCommand, program: &Path, ways: &[Way], run: &mut Run) -> Result<(), Failure> {
    let machine = command.real.machine(None, command.content_mib(), command.dirty_mib_per_second);
    let mut stage = Stage::new(machine, program).or_fail("the stage")?;
    stage.arbitrated = false;
    stage.start_guest().or_fail("the guest")?;
    let mut table = Vec::new();
    println!("peer       Romulus s  MB    peer s  MB    ratio  downtime ms");
    let measured = take_turns(command, &mut stage, ways, &mut table, &mut run.notes);
    for way in ways {
        compare(command, *way, &table, run);
    }
    let rows = table.iter().map(
        |(way, ours, theirs)| serde_json::json!({"peer": way.peer(), "romulus": ours, "theirs": theirs}),
    );
    run.result["copies"] = rows.collect();
    measured
}

/// Fills the table pair by pair; a way that fails once is a note, and is left out from then on.
fn take_turns(
    command: &PeersCommand,
    stage: &mut Stage,
    ways: &[Way],
    table: &mut Vec<(Way, Copy, Migration)>,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let mut gone = Vec::new();
    for _ in 0..command.rounds {
        for way in ways {
            if gone.contains(way) {
                continue;
            }
            let ours = synchronize(stage)?;
            match receiver::migrate(stage, *way) {
                Ok(theirs) => {
                    println!("{}", line(*way, ours, theirs));
                    table.push((*way, ours, theirs));
                }
                Err(failure) => {
                    romulus::demo::check_interrupted().or_fail("the peers")?;
                    notes.push(format!("{}: {failure}", way.peer()));
                    gone.push(*way);
                    receiver::recover(stage)?;
                }
            }
        }
    }
    Ok(())
}

/// The pairs of one way as figures.
fn compare(command: &PeersCommand, way: Way, table: &[(Way, Copy, Migration)], run: &mut Run) {
    let rows = || table.iter().filter(|row| row.0 == way);
    let name = format!("qemu {}", way.describe());
    let labels = command.labels().with("beside", way.peer());
    let times: Vec<_> = rows().map(|(_, ours, theirs)| (ours.seconds, theirs.seconds)).collect();
    let sent: Vec<_> = rows().map(|(_, ours, theirs)| (ours.bytes / 1e6, theirs.bytes / 1e6)).collect();
    for (figure, unit, pairs) in [(names::SYNC_S, "s", times), ("sync_sent_mb", "MB", sent)] {
        if let Some(peer) = Beside::paired(&name, &pairs) {
            let ours = Sampled::of(pairs.iter().map(|pair| pair.0));
            let ours = Measurement::new(figure, &labels, unit, Better::Lower, ours);
            run.measurements.push(ours.with_peer(Some(peer)));
        }
    }
}

/// From the start of `romulus protect` until the guest is protected, the trial load included; then
/// protection ends.
fn synchronize(stage: &mut Stage) -> Result<Copy, Failure> {
    let address = stage.start_backup(stage.listen_address()).or_fail("the backup")?;
    let began = Instant::now();
    stage.start_protect(&address, 100.0).or_fail("protection")?;
    stage.wait_protected().or_fail("protection")?;
    let seconds = began.elapsed().as_secs_f64();
    let status = status(stage)?;
    let bytes = status.pointer("/bytes_written").and_then(Value::as_f64).unwrap_or(0.0);
    stage.stop_protection().or_fail("ending protection")?;
    Ok(Copy { seconds, bytes })
}

fn line(way: Way, ours: Copy, theirs: Migration) -> String {
    format!(
        "{:<10} {:>8.2} {:>5.0} {:>8.2} {:>5.0} {:>8.2} {:>10.0}",
        way.peer(),
        ours.seconds,
        ours.bytes / 1e6,
        theirs.seconds,
        theirs.bytes / 1e6,
        ours.seconds / theirs.seconds,
        theirs.downtime_ms
    )
}
