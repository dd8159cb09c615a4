//! `romulus-perf fabric`: what a fabric moves, beside what the network moves without it.
//!
//! A client measures and a server lends memory; in the role `both` the server is a thread of the
//! same process. Measurement and limit alternate, pair by pair, in changing order, and the ratio
//! is taken of each pair: a machine that others use too is as slow for the one as for the other.

pub use limits::plain::touch;
pub use load::cpu_seconds;

mod client;
mod control;
mod figures;
pub mod limits;
mod load;
mod server;
mod table;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::exit::{Failure, OrFail};
use crate::fabrics::{FabricOptions, thread_setup};
use crate::results::RunClock;
use crate::size::Size;

/// Which ends are in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Client and server in one process
    Both,
    /// Lends memory to a client on another host
    Server,
    /// Measures, with a server on another host
    Client,
}

/// What the network moves without Romulus, and by what that is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// What fits the fabric
    Auto,
    /// Plain TCP streams
    Plain,
    /// ib_write_bw and ib_write_lat (Debian package perftest)
    Perftest,
    /// Nothing
    None,
}

/// What a ratio is to be at least.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Demand {
    /// Of the writes of this size.
    pub size: Size,
    /// Fabric by limit, the median of the pairs.
    pub ratio: f64,
}

impl FromStr for Demand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not SIZE=RATIO, as in 1m=0.9");
        let (size, ratio) = text.split_once('=').ok_or_else(wrong)?;
        let ratio = ratio.parse().ok().filter(|ratio: &f64| ratio.is_finite() && *ratio >= 0.0);
        Ok(Self { size: size.parse()?, ratio: ratio.ok_or_else(wrong)? })
    }
}

/// Options of `romulus-perf fabric`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct FabricCommand {
    #[command(flatten)]
    fabric: FabricOptions,

    /// Which ends are here
    #[arg(long, value_enum, default_value_t = Role::Both)]
    role: Role,

    /// Where the server takes orders (the fabric listens on a port of its own at the same address)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Client: where the server takes orders
    #[arg(long, value_name = "ADDR:PORT", required_if_eq("role", "client"))]
    peer: Option<SocketAddr>,

    /// Client: how long to try to reach the server, in seconds
    #[arg(long, value_name = "S", default_value_t = 30)]
    patience: u64,

    /// Server: end when the first client has gone
    #[arg(long)]
    once: bool,

    /// Sizes of the writes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4k,64k,1m")]
    sizes: Vec<Size>,

    /// Writes that are on their way at a time (as tx-depth of ib_write_bw)
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(2..=65_536))]
    depth: u64,

    /// Memory that is written and read, on both sides. 0: one write's length, as ib_write_bw does;
    /// more shows what caches hide
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=65_536))]
    window_mib: u64,

    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,

    /// Pairs of measurements of each size
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,

    /// What is measured beside the fabric
    #[arg(long, value_enum, default_value_t = Limit::Auto)]
    limit: Limit,

    /// Leave the latencies out
    #[arg(long)]
    no_latency: bool,

    /// End with status 6 if the median ratio of a size is lower, as in 1m=0.9,4k=0.8
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    require_ratio: Vec<Demand>,

    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl FabricCommand {
    fn check(&self) -> Result<(), Failure> {
        if !(self.seconds > 0.0 && self.seconds <= 3600.0) {
            return Err(Failure::usage(format!("--seconds {}: more than 0, at most 3600", self.seconds)));
        }
        if let Some(size) = self.sizes.iter().find(|size| size.0 > 1 << 30) {
            return Err(Failure::usage(format!("--sizes {size}: at most 1g")));
        }
        match self.require_ratio.iter().find(|demand| !self.sizes.contains(&demand.size)) {
            Some(demand) => {
                Err(Failure::usage(format!("--require-ratio {}: not among --sizes", demand.size)))
            }
            None if self.limit == Limit::None && !self.require_ratio.is_empty() => {
                Err(Failure::usage("--require-ratio needs a limit; leave --limit none out"))
            }
            None => Ok(()),
        }
    }
}

/// Runs the command.
pub fn run(command: &FabricCommand) -> Result<ExitCode, Failure> {
    let clock = RunClock::start();
    command.check()?;
    let setup = thread_setup(command.fabric.plan()?);
    let fabric = command.fabric.open(&setup, Some(command.depth as u32))?;
    let bind = || TcpListener::bind(command.listen).or_fail(format!("--listen {}", command.listen));
    let serve = |listener: &TcpListener, once| server::run(listener, &*fabric, &command.fabric, once);
    let measured = match command.role {
        Role::Server => {
            let listener = bind()?;
            eprintln!("romulus-perf: taking orders at {}", listener.local_addr().or_fail("listening")?);
            serve(&listener, command.once)?;
            return Ok(ExitCode::SUCCESS);
        }
        Role::Client => {
            let peer = command.peer.ok_or_else(|| Failure::usage("--role client needs --peer ADDR:PORT"))?;
            client::run(command, &*fabric, peer)?
        }
        Role::Both => {
            let listener = bind()?;
            let peer = listener.local_addr().or_fail("listening")?;
            std::thread::scope(|scope| {
                let serving = scope.spawn(|| serve(&listener, true));
                let measured = client::run(command, &*fabric, peer);
                // A client that failed has left, or never came: the server ends either way.
                if measured.is_err() {
                    drop(std::net::TcpStream::connect(peer));
                }
                let served = serving.join().unwrap_or_else(|_| Err(Failure::failed("the server panicked")));
                measured.and_then(|measured| served.map(|()| measured))
            })?
        }
    };
    print!("{}", table::of(&measured));
    let mut run = clock.run("fabric", command)?;
    figures::fill(&mut run, command, &measured)?;
    run.write(command.json.as_deref())?;
    measured.check(&command.require_ratio)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_are_read_and_nonsense_is_refused() {
        assert_eq!("1m=0.9".parse(), Ok(Demand { size: Size(1 << 20), ratio: 0.9 }));
        for bad in ["1m", "=1", "1m=", "1m=x", "1m=-1", "1m=nan", "x=1"] {
            assert!(bad.parse::<Demand>().is_err(), "{bad}");
        }
    }
}
