//! Which fabric, and how it is set up: the one place that knows them all.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use romulus_host::pinning::{Pinner, PinningPlan};
use romulus_host::priority;
use romulus_transport::rdma::{RdmaConfig, RdmaFabric};
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Fabric, TransportError};
use serde::{Deserialize, Serialize};

use crate::bandwidth::Limit;
use crate::exit::Failure;
use crate::machine::Machine;

/// A fabric by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// TCP streams, on any network
    Tcp,
    /// RDMA queue pairs, on any device with verbs
    Rdma,
}

impl Kind {
    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "tcp",
            Kind::Rdma => "rdma",
        }
    }

    /// The limit that fits it.
    pub fn limit(self) -> Limit {
        match self {
            Kind::Tcp => Limit::Plain,
            Kind::Rdma => Limit::Perftest,
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

    /// Microseconds that a waiting thread spins before it blocks; good only with cores to spare.
    /// Default: 0, and for the completions of rdma what the fabric finds right for the device
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub spin_us: Option<u64>,

    /// rdma: the device, as in rxe0; default: the one that has the address used
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// rdma: the device's port, from 1
    #[arg(long, value_name = "N")]
    pub device_port: Option<u8>,

    /// rdma: the index of the GID
    #[arg(long, value_name = "N")]
    pub gid_index: Option<u8>,

    /// rdma: traffic class of the packets that this side sends, 0 to 254: 4 times the DSCP, plus 2
    /// for packets that congestion control may mark (ECN) [default: 0]
    #[arg(long, value_name = "N")]
    pub traffic_class: Option<u8>,

    /// rdma: service level of the packets that this side sends, 0 to 7 on RoCE, 0 to 15 on
    /// InfiniBand [default: 0]
    #[arg(long, value_name = "N")]
    pub service_level: Option<u8>,

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
        Duration::from_micros(self.spin_us.unwrap_or(0))
    }

    /// The plan of the option `--pin`.
    pub fn plan(&self) -> Result<PinningPlan, Failure> {
        PinningPlan::parse(&self.pin).map_err(|error| Failure::usage(format!("--pin {}: {error}", self.pin)))
    }

    /// Opens it; its threads are set up by `setup`. With `depth`: so many writes on their way on
    /// each stream, where the fabric has such a bound. A device that is not there, or not as the
    /// options say, is an error here.
    pub fn open(&self, setup: &ThreadSetup, depth: Option<u32>) -> Result<Arc<dyn Fabric>, Failure> {
        let streams = self.streams as usize;
        let silent_after = Duration::from_millis(self.silent_ms);
        let heartbeat_every = self.heartbeat_every();
        let on_thread_start = Some(setup.clone());
        match self.fabric {
            Kind::Tcp => Ok(Arc::new(TcpFabric::new(TcpConfig {
                streams,
                silent_after,
                heartbeat_every,
                on_thread_start,
                ..TcpConfig::default()
            }))),
            Kind::Rdma => {
                let default = RdmaConfig::default();
                let fabric = RdmaFabric::new(RdmaConfig {
                    device: self.device.clone(),
                    port: self.device_port,
                    gid_index: self.gid_index,
                    traffic_class: self.traffic_class.unwrap_or(default.traffic_class),
                    service_level: self.service_level.unwrap_or(default.service_level),
                    streams,
                    depth: depth.unwrap_or(default.depth),
                    spin: self.spin_us.map(Duration::from_micros),
                    silent_after,
                    heartbeat_every,
                    on_thread_start,
                    ..default
                });
                fabric.check().map_err(|error| match error {
                    TransportError::Invalid(_) => Failure::usage(format!("--fabric rdma: {error}")),
                    _ => Failure::failed(format!("--fabric rdma: {error}")),
                })?;
                Ok(Arc::new(fabric))
            }
        }
    }

    /// The RDMA device of the results: the one asked for, or the only one there is.
    pub fn used_device(&self) -> Option<String> {
        if self.fabric != Kind::Rdma {
            return None;
        }
        self.device.clone().or_else(|| match &Machine::here().rdma_devices[..] {
            [only] => Some(only.clone()),
            _ => None,
        })
    }

    /// What the programs of perftest are to be told of the device.
    pub fn perftest_arguments(&self) -> Vec<String> {
        let device = self.device.iter().flat_map(|device| ["-d".to_owned(), device.clone()]);
        let number = |name: &'static str, value: Option<u8>| {
            value.into_iter().flat_map(|value| [name.to_owned(), value.to_string()]).collect::<Vec<_>>()
        };
        let numbers = [
            ("-i", self.device_port),
            ("-x", self.gid_index),
            ("--tclass", self.traffic_class),
            ("--sl", self.service_level),
        ];
        device.chain(numbers.into_iter().flat_map(|(name, value)| number(name, value))).collect()
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
