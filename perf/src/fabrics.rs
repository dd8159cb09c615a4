//! Which fabric, and how it is set up: the one place that knows them all.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use romulus_host::pinning::{Pinner, PinningPlan};
use romulus_host::priority;
use romulus_transport::Fabric;
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use serde::{Deserialize, Serialize};

use crate::bandwidth::Limit;
use crate::exit::Failure;

/// A fabric by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// TCP streams, on any network
    Tcp,
}

impl Kind {
    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "tcp",
        }
    }

    /// The limit that fits it.
    pub fn limit(self) -> Limit {
        match self {
            Kind::Tcp => Limit::Plain,
        }
    }
}

/// Options of the fabric and of the threads, the same for all commands.
#[derive(Args, Clone, Debug, Serialize)]
pub struct FabricOptions {
    /// What moves the bytes
    #[arg(long, value_enum, default_value_t = Kind::Tcp)]
    pub fabric: Kind,

    /// Data streams of a connection, 1 to 16 (the primary's or client's wish counts)
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=16))]
    pub streams: u64,

    /// Microseconds that a waiting thread spins before it blocks; good only with cores to spare
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub spin_us: u64,

    /// Threads and their cores: off, auto, or a list as in capture=2,sender=3
    #[arg(long, value_name = "PLAN", default_value = "off")]
    pub pin: String,

    /// The fabric takes a peer that is silent for so long for dead
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub silent_ms: u64,
}

impl FabricOptions {
    /// How long waiting threads spin.
    pub fn spin(&self) -> Duration {
        Duration::from_micros(self.spin_us)
    }

    /// The plan of the option `--pin`.
    pub fn plan(&self) -> Result<PinningPlan, Failure> {
        PinningPlan::parse(&self.pin).map_err(|error| Failure::usage(format!("--pin {}: {error}", self.pin)))
    }

    /// Opens it; its threads are set up by `setup`.
    pub fn open(&self, setup: &ThreadSetup) -> Result<Arc<dyn Fabric>, Failure> {
        match self.fabric {
            Kind::Tcp => Ok(Arc::new(TcpFabric::new(TcpConfig {
                streams: self.streams as usize,
                silent_after: Duration::from_millis(self.silent_ms),
                heartbeat_every: self.heartbeat_every(),
                on_thread_start: Some(setup.clone()),
                ..TcpConfig::default()
            }))),
        }
    }

    /// What the programs of perftest are to be told of the device.
    pub fn perftest_arguments(&self) -> Vec<String> {
        match self.fabric {
            Kind::Tcp => Vec::new(),
        }
    }

    /// A fiftieth of the patience, as often as 20 ms at the least.
    fn heartbeat_every(&self) -> Duration {
        Duration::from_millis((self.silent_ms / 50).clamp(2, 20))
    }
}

/// Called at the start of every thread with its name.
pub type ThreadSetup = Arc<dyn Fn(&str) + Send + Sync>;

/// The setup of all threads by their names, as `romulus` does it: priority, then the core.
pub fn thread_setup(plan: PinningPlan) -> ThreadSetup {
    let pinner = Pinner::new(plan);
    Arc::new(move |thread: &str| {
        priority::started(thread);
        pinner.started(thread);
    })
}
