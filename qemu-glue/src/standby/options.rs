//! How to make a standby.

use std::path::PathBuf;
use std::time::Duration;

use super::template;
use crate::error::QemuError;

/// Settings of a [`QemuStandby`](super::QemuStandby).
#[derive(Clone, Debug)]
pub struct StandbyOptions {
    /// The command that starts QEMU for this guest, program first, with placeholders:
    ///
    /// | placeholder | becomes |
    /// |---|---|
    /// | `{image}` | the path of the guest's RAM file, for guests with one RAM block |
    /// | `{image:NAME}` | the path of the file of RAM block NAME |
    /// | `{qmp}` | the path of the QMP socket; without it `-qmp` is added |
    /// | `{run}` | a private directory of this QEMU, for sockets |
    ///
    /// `-incoming defer -S` is added. RAM has to be `share=on` and not preallocated.
    pub command: Vec<String>,
    /// The command for trial loads; default: made from [`command`](Self::command), with private
    /// RAM, nothing connected to its serial ports and fresh taps in place of the network.
    pub trial_command: Option<Vec<String>>,
    /// Where directories for sockets and logs are made.
    pub run_dir: PathBuf,
    /// How long QEMU may take to start. Default 30 s.
    pub start_timeout: Duration,
    /// How long QEMU may take to load a state. Default 30 s.
    pub load_timeout: Duration,
}

impl StandbyOptions {
    /// The defaults for a command.
    pub fn new(command: Vec<String>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            command,
            trial_command: None,
            run_dir: run_dir.into(),
            start_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(30),
        }
    }

    /// Refuses a command that could start no standby of any guest. What is wrong with it for one guest
    /// comes out when that guest is there.
    pub fn check(&self) -> Result<(), QemuError> {
        template::check_before(&self.command)
    }
}
