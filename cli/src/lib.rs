//! The `romulus` command: keeps a virtual machine alive through the death of its host.
//!
//! A library, so that tests can set up the stage of the demonstration and play other plays on it.

mod backup;
pub mod control;
pub mod demo;
mod devices;
mod doctor;
pub mod exit;
mod fabric;
mod gates;
mod guard;
mod guests;
mod logging;
mod protect;
mod release;
mod settings;
mod signals;
mod standbys;
mod status;
mod threads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;
use settings::SettingsFile;

/// High availability for unmodified virtual machines, by checkpoint replication.
///
/// `romulus backup` runs on the host that stands ready, `romulus protect` on the host that runs
/// the guest. Many times a second the guest is paused for a moment, what it changed is sent to the
/// backup, and it runs on. When its host dies, the backup resumes it from the last checkpoint that
/// was committed.
#[derive(Parser)]
#[command(name = "romulus", version, after_help = exit::EXIT_CODES)]
struct Cli {
    /// Settings file (TOML); options of the command line win over it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// More to the log: -v says what happens, -vv how
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Protect a running guest of this host; runs until stopped
    #[command(after_help = exit::EXIT_CODES)]
    Protect(Box<settings::protect::ProtectOptions>),
    /// Stand ready for a guest of another host; runs until stopped
    #[command(after_help = exit::EXIT_CODES)]
    Backup(Box<settings::backup::BackupOptions>),
    /// Show how a running instance stands
    Status(status::StatusOptions),
    /// Move the guest to the backup without loss; or, asked at a backup, take over
    Failover(status::FailoverOptions),
    /// End protection (the guest runs on where it is) or end a backup
    Stop(status::InstanceOptions),
    /// Let a Xen domain run on that was left suspended when its protection was killed
    #[command(after_help = exit::EXIT_CODES)]
    Release(release::ReleaseOptions),
    /// Say what this machine can do, what is missing, and how to get it
    Doctor(doctor::DoctorOptions),
    /// List the RDMA devices of this host with their ports and GIDs
    Devices(devices::DevicesOptions),
    /// Protect a Linux guest on this machine, kill its host, and watch it go on
    Demo(demo::DemoOptions),
    /// Watches a `romulus protect` and acts for it when it dies
    #[command(hide = true)]
    Guard(guard::GuardOptions),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.verbose);
    run(cli).unwrap_or_else(|failure| failure.report())
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let file = SettingsFile::read(cli.config.as_deref())?;
    match cli.command {
        Command::Protect(options) => protect::run(options.or(file.protect)),
        Command::Backup(options) => backup::run(options.or(file.backup)),
        Command::Status(options) => status::run(&options),
        Command::Failover(options) => status::failover(&options),
        Command::Stop(options) => status::stop(&options),
        Command::Release(options) => release::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Devices(options) => devices::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Guard(options) => guard::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
