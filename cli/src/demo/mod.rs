//! `romulus demo`: the main job on one machine, told as it happens.

pub mod client;
pub mod instance;
pub mod netns;
pub mod network;
pub mod qemu;
mod report;
mod run;
pub mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::{Code, Failure};
use report::DemoReport;

/// Protects a Linux guest on this machine, kills its host, and watches the guest go on.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// How often to start, protect and kill
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub runs: u64,

    /// Guest memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    pub guest_mib: u64,

    /// Guest memory that the workload fills and checks, in MiB [default: a quarter of the guest,
    /// at most 256]
    #[arg(long, value_name = "MIB")]
    pub check_mib: Option<u64>,

    /// Length of an epoch in milliseconds; 25 makes 40 checkpoints a second
    #[arg(long, default_value_t = 25.0, value_name = "MS")]
    pub interval: f64,

    /// Rate at which the guest's workload rewrites pages
    #[arg(long, default_value_t = 10.0, value_name = "MIB")]
    pub dirty_mib_per_second: f64,

    /// QEMU's machine type: q35, pc or microvm
    #[arg(long, default_value = "q35", value_name = "TYPE")]
    pub machine: String,

    /// How long the guest is protected before the kill, in seconds; up to one more is added at
    /// random
    #[arg(long, default_value_t = 20.0, value_name = "S")]
    pub seconds: f64,

    /// Leave out the client: the guest has no network, no network namespaces are made
    #[arg(long)]
    pub no_client: bool,

    /// Write what was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Keep the folder with logs and consoles, also after success
    #[arg(long)]
    pub keep: bool,

    /// Folder with the guest's `vmlinuz` and `initramfs`, made by scripts/guest-image
    #[arg(long, value_name = "DIR")]
    pub image_dir: PathBuf,
}

static INTERRUPTED: OnceLock<std::sync::Arc<AtomicBool>> = OnceLock::new();

/// From now on Ctrl-C and SIGTERM end every wait on the stage with an error.
pub fn watch_interrupts() -> Result<(), Failure> {
    let flag = INTERRUPTED.get_or_init(Default::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, std::sync::Arc::clone(flag))
            .map_err(|e| Failure::failed(format!("watching for signals: {e}")))?;
    }
    Ok(())
}

/// An error once Ctrl-C or SIGTERM has come, so that every wait ends and cleans up.
pub fn check_interrupted() -> Result<(), Failure> {
    match INTERRUPTED.get() {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Failure::failed("interrupted".into())),
        _ => Ok(()),
    }
}

/// Runs the demonstration.
pub fn run(options: &DemoOptions) -> Result<ExitCode, Failure> {
    check(options)?;
    watch_interrupts()?;
    let mut report = DemoReport::default();
    for index in 0..options.runs {
        if options.runs > 1 {
            println!("\nRun {} of {}", index + 1, options.runs);
        }
        report.runs.push(run::run_once(options)?);
        write_json(options, &report)?;
    }
    println!("\n{}", report::summary(&report));
    if report.runs.iter().all(report::RunReport::succeeded) {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::failed("not every run went well".into()))
}

fn write_json(options: &DemoOptions, report: &DemoReport) -> Result<(), Failure> {
    let Some(path) = &options.json else { return Ok(()) };
    let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("writing {}: {e}", path.display()));
    let text = serde_json::to_string_pretty(report).map_err(|e| failed(&e))?;
    std::fs::write(path, text + "\n").map_err(|e| failed(&e))
}

fn check(options: &DemoOptions) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            Code::Machine,
            "the demonstration needs root: it follows writes of QEMU's process, and makes network namespaces and taps",
        ));
    }
    for name in ["vmlinuz", "initramfs"] {
        let path = options.image_dir.join(name);
        if !path.exists() {
            return Err(Failure::usage(format!(
                "{} is missing; scripts/guest-image makes it and prints its folder",
                path.display()
            )));
        }
    }
    if !["q35", "pc", "microvm"].contains(&options.machine.as_str()) {
        return Err(Failure::usage(format!("--machine {}: q35, pc or microvm", options.machine)));
    }
    if !(options.seconds.is_finite() && (0.0..=86_400.0).contains(&options.seconds)) {
        return Err(Failure::usage(format!("--seconds {}: 0 to 86400", options.seconds)));
    }
    let needed_mib = options.guest_mib * 9 / 4 + 512;
    let available_mib = available_memory_mib();
    if options.guest_mib < 128 || needed_mib > available_mib {
        return Err(Failure::new(
            Code::Machine,
            format!(
                "--guest-mib {}: at least 128 are needed to boot, and primary and backup together need about \
                 {needed_mib} MiB, with {available_mib} MiB available",
                options.guest_mib
            ),
        ));
    }
    Ok(())
}

/// Memory that programs may still take.
pub fn available_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}
