//! The client: measures fabric and limit in turn.

use std::net::SocketAddr;
use std::time::Duration;

use romulus_transport::Fabric;
use serde::Serialize;

use super::control::{Answer, Control, Order, VERSION};
use super::limits::perftest::{self, Tool};
use super::limits::plain;
use super::load::{Places, Session};
use super::{Demand, FabricCommand, Limit, Role};
use crate::exit::{Code, Failure};
use crate::histogram::Latencies;
use crate::machine::Machine;
use crate::size::Size;
use crate::statistics::{Spread, ratios};

/// Writes of one size.
#[derive(Debug, Serialize)]
pub struct SizeResult {
    /// Bytes of a write.
    pub size: Size,
    /// The fabric, in MB/s.
    pub fabric_mb_s: Spread,
    /// Processor time of this process by what the fabric moved, in seconds a GiB (of both ends in
    /// the role `both`).
    pub fabric_cpu_s_per_gib: Spread,
    /// The limit, in MB/s.
    pub limit_mb_s: Spread,
    /// Fabric by limit, of each pair.
    pub ratio: Spread,
    /// Fabric and limit of each pair, in MB/s, in the order measured.
    pub pairs: Vec<(f64, f64)>,
}

/// A latency, and its limit where there is one.
#[derive(Debug)]
pub struct Latency {
    /// What is waited for.
    pub name: &'static str,
    /// How long.
    pub times: Latencies,
}

/// A round trip that a program of perftest measured.
#[derive(Debug, Serialize)]
pub struct LimitLatency {
    /// The program.
    pub name: &'static str,
    /// Bytes each way.
    pub size: Size,
    /// Mean of a round trip, in microseconds.
    pub mean_us: f64,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// The fabric's name.
    pub fabric: &'static str,
    /// What the limit is; empty without one.
    pub limit: &'static str,
    /// Why there is no limit.
    pub no_limit_because: Option<String>,
    /// What the server runs on.
    pub server: Machine,
    /// Bandwidth by size.
    pub bandwidth: Vec<SizeResult>,
    /// Latencies.
    #[serde(serialize_with = "latencies_json")]
    pub latency: Vec<Latency>,
    /// Latencies of the limit.
    pub limit_latency: Vec<LimitLatency>,
    /// Why they say nothing of the network, where they do not.
    pub limit_latency_starved: Option<String>,
    /// Why there are none, where they failed.
    pub no_limit_latency_because: Option<String>,
}

fn latencies_json<S: serde::Serializer>(latencies: &[Latency], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(latencies.iter().map(|latency| (latency.name, latency.times.json())))
}

impl Measured {
    /// Whether the ratios are what is demanded.
    pub fn check(&self, demands: &[Demand]) -> Result<(), Failure> {
        if let Some(why) = self.no_limit_because.as_ref().filter(|_| !demands.is_empty()) {
            return Err(Failure::new(Code::Short, format!("--require-ratio cannot be judged: {why}")));
        }
        let short = demands.iter().filter_map(|demand| {
            let found = self.bandwidth.iter().find(|result| result.size == demand.size)?.ratio.median;
            (found < demand.ratio).then(|| format!("{}: {found:.3} of {}", demand.size, demand.ratio))
        });
        match short.collect::<Vec<_>>() {
            short if short.is_empty() => Ok(()),
            short => {
                Err(Failure::new(Code::Short, format!("below the ratio required: {}", short.join(", "))))
            }
        }
    }
}

/// The limit that is measured beside a fabric, or why there is none.
fn limit_of(command: &FabricCommand) -> Result<Limit, String> {
    let wanted = match command.limit {
        Limit::Auto => command.fabric.fabric.limit(),
        wanted => wanted,
    };
    match wanted {
        Limit::Plain | Limit::Auto => Ok(Limit::Plain),
        Limit::None => Err("--limit none was given".into()),
        Limit::Perftest if Tool::WriteBw.is_installed() => Ok(Limit::Perftest),
        Limit::Perftest => Err("ib_write_bw is not installed (Debian package perftest)".into()),
    }
}

/// Whether and why programs that wait by polling are slower than the network: each of the host's ends takes a
/// core, and what moves the bytes may need one (all of soft-RoCE is the kernel's work).
fn starved(role: Role, cores: usize) -> Option<String> {
    let ends = if role == Role::Both { 2 } else { 1 };
    (cores <= ends).then(|| {
        format!(
            "{} is no limit here: it polls, and leaves none of {cores} cores to what moves the bytes",
            Tool::WriteLat.name()
        )
    })
}

fn name_of(limit: Limit) -> &'static str {
    match limit {
        Limit::Plain | Limit::Auto => "plain TCP streams",
        Limit::Perftest => "ib_write_bw",
        Limit::None => "",
    }
}

/// Measures with the server at `peer`.
pub fn run(command: &FabricCommand, fabric: &dyn Fabric, peer: SocketAddr) -> Result<Measured, Failure> {
    let mut control = Control::connect(peer, Duration::from_secs(command.patience))?;
    let hello = Order::Hello { version: VERSION, fabric: command.fabric.fabric };
    let server = match control.order(&hello)? {
        Answer::Hello { machine } => machine,
        other => return Err(Failure::failed(format!("{} answered {other:?} to hello", control.peer()))),
    };
    let limit = limit_of(command);
    let mut client = Client { command, fabric, control, limit: limit.clone().ok() };
    let bandwidth = client.bandwidths()?;
    let (mut latency, mut limit_latency) = (Vec::new(), Ok(Vec::new()));
    if !command.no_latency {
        eprintln!("latencies");
        latency = client.latencies()?;
        eprintln!("latencies of the limit");
        limit_latency = client.limit_latencies();
    }
    let cores = Machine::here().cores.min(server.cores);
    let limit_latency_starved =
        starved(command.role, cores).filter(|_| limit_latency.as_ref().is_ok_and(|all| !all.is_empty()));
    // Without them the figures of the fabric are worth as much.
    let no_limit_latency_because = limit_latency.as_ref().err().map(Failure::to_string);
    Ok(Measured {
        fabric: command.fabric.fabric.name(),
        no_limit_because: limit.clone().err(),
        limit: limit.map_or("", name_of),
        server,
        bandwidth,
        latency,
        limit_latency: limit_latency.unwrap_or_default(),
        limit_latency_starved,
        no_limit_latency_because,
    })
}

struct Client<'a> {
    command: &'a FabricCommand,
    fabric: &'a dyn Fabric,
    control: Control,
    limit: Option<Limit>,
}

impl Client<'_> {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.command.seconds)
    }

    fn places(&self, size: Size) -> Places {
        Places::new(size.0, self.command.window_mib << 20)
    }

    fn session(&mut self, size: Size) -> Result<Session, Failure> {
        let places = self.places(size);
        let lend = Order::Lend { arena_bytes: places.len_bytes() };
        let address = self.control.order_listening(&lend)?;
        Session::connect(self.fabric, address, places)
    }

    fn bandwidths(&mut self) -> Result<Vec<SizeResult>, Failure> {
        let sizes = self.command.sizes.clone();
        let mut pairs: Vec<Vec<(f64, f64)>> = vec![Vec::new(); sizes.len()];
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); sizes.len()];
        for round in 1..=self.command.rounds {
            for (index, &size) in sizes.iter().enumerate() {
                // Fabric first, then limit first, and so on: neither always has the warmer machine.
                let early = (round % 2 == 0).then(|| self.limit(size)).transpose()?;
                let moved = self.session(size)?.bandwidth(self.command.depth, self.time())?;
                let rate = moved.mb_per_second();
                let limit = early.map_or_else(|| self.limit(size), Ok)?;
                eprintln!("round {round} {size}: {}", pair_line(rate, limit));
                pairs[index].push((rate, limit));
                costs[index].push(moved.cpu_seconds / (moved.bytes as f64 / f64::from(1 << 30)));
            }
        }
        let results = sizes.iter().zip(pairs).zip(costs);
        Ok(results.map(|((size, pairs), costs)| SizeResult::of(*size, pairs, costs)).collect())
    }

    /// The limit in MB/s, 0 without one.
    fn limit(&mut self, size: Size) -> Result<f64, Failure> {
        match self.limit {
            None | Some(Limit::None) => Ok(0.0),
            Some(Limit::Plain | Limit::Auto) => self.plain(size),
            Some(Limit::Perftest) => {
                let (shape, time) = ((size.0, self.command.depth), self.time());
                perftest::bandwidth(&mut self.control, &self.command.fabric, shape, time)
            }
        }
    }

    fn plain(&mut self, size: Size) -> Result<f64, Failure> {
        let streams = self.command.fabric.streams;
        let window_bytes = self.places(size).len_bytes() * streams;
        let order = Order::Plain { streams, window_bytes, span_bytes: size.0 };
        let address = self.control.order_listening(&order)?;
        let memory = plain::touched(window_bytes)?;
        let moved = plain::send(address, streams as usize, &memory, size.0, self.time())?;
        Ok(moved.mb_per_second())
    }

    fn latencies(&mut self) -> Result<Vec<Latency>, Failure> {
        let mut session = self.session(Size(4096))?;
        let fence = Latency { name: "fence_4k", times: session.fences(self.time())? };
        let message = Latency { name: "message", times: session.messages(self.time())? };
        Ok(vec![fence, message])
    }

    /// Round trips of the raw verbs, waited for by polling.
    fn limit_latencies(&mut self) -> Result<Vec<LimitLatency>, Failure> {
        if self.limit != Some(Limit::Perftest) {
            return Ok(Vec::new());
        }
        [(Tool::WriteLat, Size(4096))]
            .into_iter()
            .filter(|(tool, _)| tool.is_installed())
            .map(|(tool, size)| {
                let (options, time) = (&self.command.fabric, self.time());
                let mean_us = perftest::round_trip_us(&mut self.control, options, (tool, size.0), time)?;
                Ok(LimitLatency { name: tool.name(), size, mean_us })
            })
            .collect()
    }
}

fn pair_line(rate: f64, limit: f64) -> String {
    if limit == 0.0 {
        return format!("{rate:.1} MB/s");
    }
    format!("{rate:.1} MB/s, limit {limit:.1} MB/s, {:.0} %", 100.0 * rate / limit)
}

impl SizeResult {
    fn of(size: Size, pairs: Vec<(f64, f64)>, costs: Vec<f64>) -> Self {
        Self {
            size,
            fabric_mb_s: Spread::of(pairs.iter().map(|pair| pair.0)),
            fabric_cpu_s_per_gib: Spread::of(costs),
            limit_mb_s: Spread::of(pairs.iter().map(|pair| pair.1)),
            ratio: ratios(&pairs),
            pairs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(no_limit_because: Option<String>) -> Measured {
        let result = SizeResult::of(Size(4096), vec![(80.0, 100.0), (90.0, 100.0), (10.0, 100.0)], vec![]);
        Measured {
            fabric: "tcp",
            limit: "plain",
            no_limit_because,
            server: Machine::here(),
            bandwidth: vec![result],
            latency: vec![],
            limit_latency: vec![],
            limit_latency_starved: None,
            no_limit_latency_because: None,
        }
    }

    #[test]
    fn programs_that_poll_need_a_core_to_spare() {
        for (role, cores, is_starved) in
            [(Role::Client, 1, true), (Role::Client, 2, false), (Role::Both, 2, true), (Role::Both, 3, false)]
        {
            assert_eq!(starved(role, cores).is_some(), is_starved, "{role:?} {cores}");
        }
    }

    #[test]
    fn a_demand_is_held_against_the_median() {
        let demand = |ratio| [Demand { size: Size(4096), ratio }];
        assert!(measured(None).check(&demand(0.8)).is_ok());
        assert_eq!(measured(None).check(&demand(0.81)).unwrap_err().code, Code::Short);
        assert!(measured(None).check(&[]).is_ok());
        let failure = measured(Some("not installed".into())).check(&demand(0.1)).unwrap_err();
        assert!(failure.message.contains("not installed"));
        assert!(measured(Some("not installed".into())).check(&[]).is_ok());
    }
}
