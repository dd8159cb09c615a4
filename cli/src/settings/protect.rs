//! Settings of `romulus protect`.

use std::time::Duration;

use romulus_host::gate::GateChoices;

use crate::exit::Failure;
use crate::settings::common::{CommonOptions, bounded};
use crate::settings::fill_unset;

/// Options of `romulus protect`.
#[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectOptions {
    /// The guest to protect: `qemu:PATH` with the path of its QMP socket, to which nobody else may be
    /// connected, or `xen:DOMAIN` with the name or number of a Xen domain (PVH or HVM)
    #[arg(long, value_name = "GUEST")]
    pub guest: Option<String>,

    /// Address of the backup (`romulus backup --listen`)
    #[arg(long, value_name = "HOST:PORT")]
    pub backup: Option<String>,

    /// The guest's name: the key of its record, the same for every session [default: the name
    /// the hypervisor knows, else `guest`]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Length of an epoch in milliseconds: 25 makes 40 checkpoints a second. Shorter lowers the
    /// clients' latency and raises the guest's cost [default: 25]
    #[arg(long, value_name = "MS")]
    pub interval_ms: Option<f64>,

    /// End an epoch early when about this many pages are dirty; 0 turns the watermark off. It
    /// costs scans of the guest's page tables during the epoch [default: 0]
    #[arg(long, value_name = "PAGES")]
    pub watermark_pages: Option<u64>,

    /// Captured but uncommitted epochs at most, 1 to 16. More hide a slow network, and need more
    /// spare memory at the backup. 1 for a guest whose output QEMU itself holds [default: 2]
    #[arg(long, value_name = "N")]
    pub depth: Option<u64>,

    /// Spare frames at the backup in MiB. An epoch that changes more than this forces a new full
    /// synchronization; takeover copies at most this much [default: a quarter of the guest, at
    /// least 64 and at most 1024]
    #[arg(long, value_name = "MIB")]
    pub spare_mib: Option<u64>,

    /// Staging memory on this host in MiB. A larger epoch is sent while the guest is paused
    /// [default: 64]
    #[arg(long, value_name = "MIB")]
    pub staging_mib: Option<u64>,

    /// Back-pressure: how long the guest may stay paused, in milliseconds, until the backup has room
    /// for its epoch (commits and copies home free it). Longer sustains heavier loads; what does not
    /// fit in time joins the next epoch, and more than --spare-mib forces a new full
    /// synchronization. 0 turns it off [default: 1000]
    #[arg(long, value_name = "MS")]
    pub throttle_ms: Option<u64>,

    /// `staged` copies dirty pages (of a large epoch those that the network does not take at once)
    /// and lets the guest run on while they are sent; `direct` sends all of them from guest memory
    /// while it is paused [default: staged]
    #[arg(long, value_name = "MODE")]
    pub capture: Option<String>,

    /// Threads that help to copy the dirty pages of large epochs [default: 0]
    #[arg(long, value_name = "N")]
    pub copy_threads: Option<usize>,

    /// Threads that scan the guest's page tables; more help above some 16 GiB [default: 1]
    #[arg(long, value_name = "N")]
    pub scan_threads: Option<usize>,

    /// Largest CPU and device state accepted, in KiB [default: 4096]
    #[arg(long, value_name = "KIB")]
    pub state_kib: Option<u64>,

    /// Protect a guest with a writable disk although disks are not replicated: after a takeover
    /// its disk is AHEAD of its memory, and what it holds is probably damaged
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_unreplicated_disk: Option<bool>,

    /// What becomes of a network card's output: `NIC=commit` holds it until its epoch is committed,
    /// `NIC=none` lets it leave at once. NIC is the id of a card or of its -netdev (Xen: vif0 or
    /// its interface), or `all`; may be repeated, the later one wins. DANGER of `none`: after a
    /// takeover clients have seen answers that the guest no longer knows of; only for networks
    /// whose traffic may be taken back, as for management [default: all=commit]
    #[arg(long, value_name = "NIC=GATE")]
    pub gate: Option<Vec<String>>,

    /// Memory for the held output of each network card in MiB, used as it is needed. The epoch ends
    /// early when half of it is in use [default: 256]
    #[arg(long, value_name = "MIB")]
    pub gate_mib: Option<u64>,

    /// Run without the guard process: a guest that is paused when Romulus is killed stays paused
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub no_guard: Option<bool>,

    /// What happens when the backup is lost: `automatic` (go on alone, if the arbiter grants it) or
    /// `manual` (hold output until an operator says `romulus stop`) [default: automatic]
    #[arg(long, value_name = "HOW")]
    pub solo: Option<String>,

    #[command(flatten)]
    #[serde(skip)]
    #[allow(missing_docs)]
    pub common: CommonOptions,
}

impl ProtectOptions {
    /// Takes what is unset from the settings file.
    pub fn or(mut self, file: ProtectOptions) -> Self {
        fill_unset!(
            self,
            file,
            [
                guest,
                backup,
                name,
                interval_ms,
                watermark_pages,
                depth,
                spare_mib,
                staging_mib,
                throttle_ms,
                capture,
                copy_threads,
                scan_threads,
                state_kib,
                allow_unreplicated_disk,
                gate,
                gate_mib,
                no_guard,
                solo
            ]
        );
        self.common = self.common.or(file.common);
        self
    }

    /// Length of an epoch.
    pub fn interval(&self) -> Result<Duration, Failure> {
        let ms = self.interval_ms.unwrap_or(25.0);
        if !(0.5..=60_000.0).contains(&ms) {
            return Err(Failure::usage(format!("--interval-ms {ms}: 0.5 to 60000 are possible")));
        }
        Ok(Duration::from_secs_f64(ms / 1_000.0))
    }

    /// D.
    pub fn depth(&self) -> Result<u64, Failure> {
        match self.depth.unwrap_or(2) {
            n @ 1..=16 => Ok(n),
            n => Err(Failure::usage(format!("--depth {n}: 1 to 16 are possible"))),
        }
    }

    /// Spare frames for a guest of this many pages.
    pub fn spare_pages(&self, guest_pages: u64) -> Result<u64, Failure> {
        let pages_per_mib = (1 << 20) / romulus_checkpoint::PAGE_BYTES;
        match self.spare_mib {
            Some(mib) => Ok(bounded("--spare-mib", mib, 1, 1 << 20)? * pages_per_mib),
            None => Ok((guest_pages / 4).clamp(64 * pages_per_mib, 1024 * pages_per_mib)),
        }
    }

    /// Staging memory in bytes.
    pub fn staging_bytes(&self) -> Result<u64, Failure> {
        Ok(bounded("--staging-mib", self.staging_mib.unwrap_or(64), 2, 1 << 20)? << 20)
    }

    /// How long the guest may stay paused for want of room at the backup.
    pub fn throttle_pause(&self) -> Result<Duration, Failure> {
        Ok(Duration::from_millis(bounded("--throttle-ms", self.throttle_ms.unwrap_or(1000), 0, 60_000)?))
    }

    /// Largest state in bytes.
    pub fn state_bytes(&self) -> Result<u64, Failure> {
        Ok(bounded("--state-kib", self.state_kib.unwrap_or(4096), 64, 1 << 20)? << 10)
    }

    /// Which cards' output is held.
    pub fn gates(&self) -> Result<GateChoices, Failure> {
        let choices = self.gate.iter().flatten().map(String::as_str);
        GateChoices::parse(choices).map_err(|e| Failure::usage(format!("--gate {e}")))
    }

    /// Memory of each card's gate in bytes.
    pub fn gate_bytes(&self) -> Result<u64, Failure> {
        Ok(bounded("--gate-mib", self.gate_mib.unwrap_or(256), 1, 1 << 20)? << 20)
    }

    /// `staged` or `direct`.
    pub fn direct_capture(&self) -> Result<bool, Failure> {
        word(&self.capture, "--capture", "staged", "direct").map(|staged| !staged)
    }

    /// Whether the primary goes solo by itself.
    pub fn solo_automatic(&self) -> Result<bool, Failure> {
        word(&self.solo, "--solo", "automatic", "manual")
    }
}

/// Whether a two-valued option has its first value, which is the default.
pub(crate) fn word(value: &Option<String>, option: &str, first: &str, second: &str) -> Result<bool, Failure> {
    match value.as_deref() {
        None => Ok(true),
        Some(word) if word == first => Ok(true),
        Some(word) if word == second => Ok(false),
        Some(other) => Err(Failure::usage(format!("{option} {other}: `{first}` or `{second}` is possible"))),
    }
}
