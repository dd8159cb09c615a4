//! `romulus-perf`: measures Romulus beside the limits of the machine, and protects synthetic
//! guests end to end with every page verified.

pub mod bandwidth;
pub mod compare;
pub mod epochs;
pub mod exit;
pub mod fabrics;
pub mod guest;
pub mod histogram;
pub mod limits;
pub mod machine;
pub mod peers;
pub mod protect;
pub mod real;
pub mod report;
pub mod results;
pub mod size;
pub mod statistics;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use exit::{Failure, OrFail};

/// Measures Romulus beside the limits of the machine, and protects synthetic guests end to end.
///
/// `limits` measures the machine alone, `fabric` one-sided writes beside what the network itself
/// moves, `epochs` the engine with synthetic guests, `guest` what protection costs a real guest's
/// work, `peers` what people would use instead. `backup` and `primary`, on two hosts or on one,
/// protect a synthetic guest with the drivers that protect real ones; after a takeover every page of
/// the image is compared with what the guest had at the committed pause. What is measured goes to
/// standard output for people and with --json to a file, from which `report` makes a page and
/// `compare` tells what changed.
#[derive(Parser)]
#[command(name = "romulus-perf", version, after_help = exit::EXIT_CODES)]
struct Cli {
    /// More to the log: -v says what happens, -vv how
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a fabric: bandwidth by write size, fence and message latency, beside the limit
    #[command(after_help = exit::EXIT_CODES)]
    Fabric(Box<bandwidth::FabricCommand>),
    /// Measure the engine with synthetic guests, by scenario, beside the limits of the machine
    #[command(after_help = exit::EXIT_CODES)]
    Epochs(Box<epochs::EpochsCommand>),
    /// Measure what this machine can do without Romulus: memory, dirty tracking, waking, networks
    #[command(after_help = exit::EXIT_CODES)]
    Limits(Box<limits::LimitsCommand>),
    /// List the scenarios of `epochs`
    Scenarios(epochs::ScenariosCommand),
    /// Run a synthetic guest and protect it
    #[command(after_help = exit::EXIT_CODES)]
    Primary(Box<protect::PrimaryCommand>),
    /// Stand ready for the synthetic guest of a primary; take it over and verify it
    #[command(after_help = exit::EXIT_CODES)]
    Backup(Box<protect::BackupCommand>),
    /// What protection costs a real guest's work, at several rates of checkpoints
    #[command(after_help = exit::EXIT_CODES)]
    Guest(Box<guest::GuestCommand>),
    /// Romulus beside what people would use instead, in the same run, with the same guest
    #[command(after_help = exit::EXIT_CODES)]
    Peers(Box<peers::PeersCommand>),
    /// Make a page with plots and tables out of results
    #[command(after_help = exit::EXIT_CODES)]
    Report(report::ReportCommand),
    /// Say what changed between two sets of results beyond the noise
    #[command(after_help = exit::EXIT_CODES)]
    Compare(compare::CompareCommand),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose).min(2)];
    let filter = tracing_subscriber::EnvFilter::new(level);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done: Result<ExitCode, Failure> = match &cli.command {
        Command::Fabric(command) => end_when_told().and_then(|()| bandwidth::run(command)),
        Command::Epochs(command) => end_when_told().and_then(|()| epochs::run(command)),
        Command::Limits(command) => end_when_told().and_then(|()| limits::run(command)),
        Command::Scenarios(command) => epochs::run_list(command),
        Command::Primary(command) => protect::run_primary(command),
        Command::Backup(command) => protect::run_backup(command),
        Command::Guest(command) => guest::run(command),
        Command::Peers(command) => peers::run(command),
        Command::Report(command) => report::run(command),
        Command::Compare(command) => compare::run(command),
    };
    done.unwrap_or_else(|failure| failure.report())
}

/// What this process measures within itself leaves nothing to take away: it ends at once by Ctrl-C and
/// SIGTERM, as ever, and says so, below the line that shows how it stands.
fn end_when_told() -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).or_fail("watching for signals")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            eprintln!("\nromulus-perf: interrupted");
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
