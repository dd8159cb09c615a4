//! What both commands have in common.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use romulus_checkpoint::arbiter::Arbiter;
use romulus_checkpoint::arbiter::none::AutomaticMoves;
use romulus_checkpoint::arbiter::spec::ArbiterSpec;
use serde::Serialize;

use crate::exit::{Failure, OrFail};

/// The guest's name: one guest a pair of hosts.
pub const GUEST: &str = "synthetic";

/// Options of both.
#[derive(Args, Clone, Debug, Serialize)]
pub struct CommonOptions {
    /// Who decides which host runs the guest: `file:PATH`, reached by both hosts and with working
    /// locks, or `none`: the backup takes over by itself, a primary that lost its backup holds all
    /// output
    #[arg(long, value_name = "ARBITER", default_value = "none")]
    pub arbiter: String,

    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl CommonOptions {
    /// The arbiter, and whether both sides share it.
    pub fn arbiter(&self) -> Result<(Arc<dyn Arbiter>, bool), Failure> {
        let spec = ArbiterSpec::from_str(&self.arbiter)
            .map_err(|error| Failure::usage(format!("--arbiter: {error}")))?;
        let arbiter = spec.open(AutomaticMoves::Takeover).or_fail(format!("--arbiter {}", self.arbiter))?;
        Ok((arbiter, spec != ArbiterSpec::None))
    }
}

/// SIGTERM, SIGINT and SIGHUP ask for a clean end.
#[derive(Clone, Debug)]
pub struct EndRequest(Arc<AtomicBool>);

impl EndRequest {
    /// Begins to watch.
    pub fn watch() -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).or_fail("watching for signals")?;
        }
        Ok(Self(flag))
    }

    /// Whether an end was asked for.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
