//! Runs the whole contract suite against the tcp fabric, with as large a load as asked:
//! `cargo run --release -p romulus-transport --example contract -- --through-gib 10`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use romulus_transport::contract::{CHECKS, Subject};
use romulus_transport::tcp::{TcpConfig, TcpFabric};

#[derive(Parser)]
#[command(about = "Checks that the tcp fabric keeps the contract of every fabric")]
struct Options {
    /// How much to move through a small arena, in GiB.
    #[arg(long, default_value_t = 10.0)]
    through_gib: f64,
    /// Data streams of each connection.
    #[arg(long, default_value_t = 2)]
    streams: usize,
    /// Where to listen; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Run only the checks whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() {
    let options = Options::parse();
    let silent_after = Duration::from_secs(60);
    let config = TcpConfig { streams: options.streams, silent_after, ..TcpConfig::default() };
    let subject = Subject {
        listening: Box::new(TcpFabric::new(config.clone())),
        connecting: Box::new(TcpFabric::new(config)),
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
