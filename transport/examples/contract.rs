//! Runs the whole contract suite against a fabric, with as large a load as asked:
//! `cargo run --release -p romulus-transport --example contract -- --through-gib 10`.
//!
//! `--fabric rdma` needs an RDMA device: run it in a lab (`scripts/lab`), or on a host with a
//! real one and its address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use romulus_transport::Fabric;
use romulus_transport::contract::{CHECKS, Subject};
use romulus_transport::rdma::{RdmaConfig, RdmaFabric};
use romulus_transport::tcp::{TcpConfig, TcpFabric};

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Tcp,
    Rdma,
}

#[derive(Parser)]
#[command(about = "Checks that a fabric keeps the contract of every fabric")]
struct Options {
    /// Which fabric.
    #[arg(long, value_enum, default_value_t = Kind::Tcp)]
    fabric: Kind,
    /// How much to move through a small arena, in GiB.
    #[arg(long, default_value_t = 10.0)]
    through_gib: f64,
    /// Data streams of each connection.
    #[arg(long, default_value_t = 2)]
    streams: usize,
    /// Where to listen; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// The RDMA device; by default the fabric chooses.
    #[arg(long)]
    device: Option<String>,
    /// The index of its GID; by default the fabric chooses.
    #[arg(long)]
    gid_index: Option<u8>,
    /// Look at completions for so long before blocking; by default the fabric chooses.
    #[arg(long)]
    spin_us: Option<u64>,
    /// Run only the checks whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// A fabric whose silence limit is far off, so that a busy machine is not taken for a dead peer.
fn fabric(options: &Options) -> Box<dyn Fabric> {
    let silent_after = Duration::from_secs(60);
    match options.fabric {
        Kind::Tcp => Box::new(TcpFabric::new(TcpConfig {
            streams: options.streams,
            silent_after,
            ..TcpConfig::default()
        })),
        Kind::Rdma => Box::new(RdmaFabric::new(RdmaConfig {
            streams: options.streams,
            silent_after,
            device: options.device.clone(),
            gid_index: options.gid_index,
            spin: options.spin_us.map(Duration::from_micros),
            ..RdmaConfig::default()
        })),
    }
}

fn main() {
    let options = Options::parse();
    let subject = Subject {
        listening: fabric(&options),
        connecting: fabric(&options),
        address: options.address,
        through_bytes: (options.through_gib * f64::from(1 << 30)) as u64,
        patience: Duration::from_secs(120),
    };
    let mut passed = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(&options.only)) {
        let start = Instant::now();
        check(&subject);
        println!("{name}: ok in {:.2} s", start.elapsed().as_secs_f64());
        passed += 1;
    }
    println!("{passed} passed, 0 failed");
}
