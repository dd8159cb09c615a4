//! Real guests: what `guest` and `peers` need to start one, on the demonstration's own stage.

use std::path::{Path, PathBuf};

use clap::Args;
use romulus::demo::qemu::{Machine, accelerator};
use romulus::demo::{available_memory_mib, watch_interrupts};
use romulus_host::facts::find_in_path;
use serde::Serialize;

use crate::exit::{Failure, OrFail};

/// Which guest, and which `romulus` protects it.
#[derive(Args, Clone, Debug, Serialize)]
pub struct RealOptions {
    /// Folder with the guest's kernel and initramfs, made by scripts/guest-image
    #[arg(long, value_name = "DIR")]
    pub image_dir: Option<PathBuf>,

    /// The `romulus` that protects [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    pub romulus: Option<PathBuf>,

    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(128..=1 << 20))]
    pub guest_mib: u64,
}

impl RealOptions {
    /// The `romulus` to run, after a look at all that a real guest needs; watches for Ctrl-C.
    pub fn prepare(&self, archives: &[&str]) -> Result<PathBuf, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::failed("root is needed: Romulus follows the writes of QEMU's process"));
        }
        let image_dir = self.image_dir.as_ref().ok_or_else(|| {
            Failure::usage("--image-dir DIR is needed; scripts/guest-image makes it and prints its folder")
        })?;
        for name in ["vmlinuz"].iter().chain(archives) {
            let path = image_dir.join(name);
            if !path.exists() {
                return Err(Failure::usage(format!(
                    "--image-dir: {} is missing; scripts/guest-image makes it and prints its folder",
                    path.display()
                )));
            }
        }
        if find_in_path("qemu-system-x86_64").is_none() {
            return Err(Failure::failed(
                "qemu-system-x86_64 is not installed; as root: apt-get install qemu-system-x86",
            ));
        }
        let (needed, available) = (self.guest_mib * 9 / 4 + 512, available_memory_mib());
        if needed > available {
            return Err(Failure::usage(format!(
                "--guest-mib {}: about {needed} MiB are needed for two hosts, {available} are available",
                self.guest_mib
            )));
        }
        watch_interrupts().or_fail("signals")?;
        self.program()
    }

    fn program(&self) -> Result<PathBuf, Failure> {
        let beside = || {
            let own = std::env::current_exe().or_fail("finding this program")?;
            Ok(own.with_file_name("romulus"))
        };
        let program = self.romulus.clone().map_or_else(beside, Ok)?;
        match program.exists() {
            true => Ok(program),
            false => Err(Failure::usage(format!(
                "{} is missing; build it (cargo build -p romulus, same profile) or name another with --romulus",
                program.display()
            ))),
        }
    }

    /// A machine without a network card, doing this work or checking its pages.
    pub fn machine(&self, work: Option<&str>, work_mib: u64, dirty_mib_per_second: f64) -> Machine {
        Machine {
            kind: "q35".into(),
            accelerator: accelerator(),
            memory_mib: self.guest_mib,
            check_mib: work_mib,
            dirty_mib_per_second,
            halt_after_s: None,
            networked: false,
            servers: false,
            work: work.map(str::to_owned),
            image_dir: self.image_dir.clone().unwrap_or_default(),
        }
    }
}

/// What the first line of `program --version` says.
pub fn version_of(program: &Path) -> String {
    let output = std::process::Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
