//! Settings of `romulus backup`.

use std::path::PathBuf;

use crate::exit::Failure;
use crate::settings::common::CommonOptions;
use crate::settings::fill_unset;
use crate::settings::protect::word;

/// Options of `romulus backup`.
#[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupOptions {
    /// Address to listen on for the primary
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,

    /// File with the command line of the standby QEMU, one argument a line, `#` begins a comment.
    /// It is the guest's own command line with `{image}` for the path of its RAM file; Romulus
    /// adds what a standby needs (-incoming defer, -S, a QMP socket). The word `xen` instead: a
    /// domain of this host's Xen, built like the guest
    #[arg(long, value_name = "FILE|xen")]
    pub standby: Option<PathBuf>,

    /// Folder for the standby's sockets and logs; after a takeover the guest's QMP socket is there
    /// [default: /run/romulus, or below $XDG_RUNTIME_DIR when not root]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// A Xen standby may have the disks that the primary names: files and devices of this host
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_standby_disks: Option<bool>,

    /// Largest arena lent to a primary, in MiB [default: what is available, less a tenth]
    #[arg(long, value_name = "MIB")]
    pub memory_limit_mib: Option<u64>,

    /// What happens when the primary is lost: `automatic` (take over, if the arbiter grants it)
    /// or `manual` (wait for `romulus failover`) [default: automatic with an arbiter, manual
    /// without]
    #[arg(long, value_name = "HOW")]
    pub takeover: Option<String>,

    /// Under `--arbiter none`, allow both hosts to act by themselves: a network failure between
    /// them then leaves two copies of the guest running
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub accept_split_brain: Option<bool>,

    #[command(flatten)]
    #[serde(skip)]
    #[allow(missing_docs)]
    pub common: CommonOptions,
}

impl BackupOptions {
    /// Takes what is unset from the settings file.
    pub fn or(mut self, file: BackupOptions) -> Self {
        fill_unset!(
            self,
            file,
            [listen, standby, run_dir, allow_standby_disks, memory_limit_mib, takeover, accept_split_brain]
        );
        self.common = self.common.or(file.common);
        self
    }

    /// Whether the backup takes over by itself.
    pub fn takeover_automatic(&self) -> Result<bool, Failure> {
        let unarbitrated = self.common.arbiter() == "none";
        let automatic = match self.takeover {
            None => !unarbitrated,
            _ => word(&self.takeover, "--takeover", "automatic", "manual")?,
        };
        if automatic && unarbitrated && self.accept_split_brain != Some(true) {
            return Err(Failure::usage(
                "--takeover automatic without an arbiter can leave two copies of the guest running, unless \
                 the primary runs with --solo manual, which is not to be seen from here: name an arbiter \
                 (--arbiter file:DIRECTORY/), or say --accept-split-brain"
                    .into(),
            ));
        }
        Ok(automatic)
    }
}
