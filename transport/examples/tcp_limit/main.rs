//! How close the tcp fabric comes to what plain `sendmsg` and `recv` move over as many streams
//! on this machine, in this very run:
//! `cargo run --release -p romulus-transport --example tcp_limit`.
//!
//! Each round measures pairs: plain, then the fabric with the same memory. *Sync* posts extents
//! of 1 MiB one after the other, as an initial synchronization does. *Epochs* posts 50 MiB as
//! single pages for scattered places, then a marker, and waits for the acknowledgement of the
//! epoch before the last, as steady replication does. The ratios of the pairs are what counts:
//! absolute figures of a shared machine vary.

mod fabric;
mod plain;

use std::time::{Duration, Instant};

use clap::Parser;
use romulus_transport::Memory;

/// Page and extent lengths of the loads, in bytes.
const PAGE_BYTES: u64 = 4096;
/// Length of an extent of the sync load.
const EXTENT_BYTES: u64 = 1 << 20;
/// What one epoch of the epochs load writes.
const EPOCH_BYTES: u64 = 50 << 20;

#[derive(Parser)]
#[command(about = "Compares the tcp fabric with plain sockets")]
struct Options {
    /// How much each measurement moves, in GiB.
    #[arg(long, default_value_t = 4.0)]
    gib: f64,
    /// Data streams.
    #[arg(long, default_value_t = 2)]
    streams: usize,
    /// Pairs of measurements of each load.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Memory of the sender (for sync) and of the receiver, in MiB.
    #[arg(long, default_value_t = 1024)]
    memory_mib: usize,
    /// Measure only this load.
    #[arg(long, value_parser = ["sync", "epochs"])]
    only: Option<String>,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn total_bytes(&self) -> u64 {
        (self.gib * f64::from(1 << 30)) as u64
    }
}

/// One measurement.
struct Measured {
    gib_per_second: f64,
    /// Processor time of all threads of both ends; tells the cost also on a busy machine.
    cpu_seconds_per_gib: f64,
}

/// Measures from `start` to `finish`.
struct Meter {
    start: Instant,
    cpu_start: Duration,
}

fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).expect("a time since the process began")
}

impl Meter {
    fn start() -> Self {
        Meter { start: Instant::now(), cpu_start: cpu_time() }
    }

    fn finish(self, total_bytes: u64) -> Measured {
        let gib = total_bytes as f64 / f64::from(1 << 30);
        Measured {
            gib_per_second: gib / self.start.elapsed().as_secs_f64(),
            cpu_seconds_per_gib: (cpu_time() - self.cpu_start).as_secs_f64() / gib,
        }
    }
}

/// Plain sockets and the fabric, one after the other.
struct Pair {
    plain: Measured,
    fabric: Measured,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.fabric.gib_per_second / self.plain.gib_per_second
    }

    fn cpu_ratio(&self) -> f64 {
        self.fabric.cpu_seconds_per_gib / self.plain.cpu_seconds_per_gib
    }
}

/// A load: its name, the memory it is sent from, and what was measured.
struct Load {
    name: &'static str,
    source: Memory,
    pairs: Vec<Pair>,
}

/// Memory whose pages all exist.
fn touched(len_bytes: usize) -> Memory {
    let memory = Memory::anonymous(len_bytes);
    let page = [0x5a; PAGE_BYTES as usize];
    (0..len_bytes / page.len()).for_each(|index| memory.write(index * page.len(), &page));
    memory
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let options = Options::parse();
    let target = touched(options.memory_mib << 20);
    let mut loads = vec![
        Load { name: "sync", source: touched(options.memory_mib << 20), pairs: Vec::new() },
        Load { name: "epochs", source: touched(2 * EPOCH_BYTES as usize), pairs: Vec::new() },
    ];
    loads.retain(|load| options.only.as_deref().is_none_or(|only| only == load.name));
    for round in 1..=options.rounds {
        for load in &mut loads {
            let plain = plain::measure(&options, &load.source, &target);
            let fabric = match load.name {
                "sync" => fabric::measure_sync(&options, &load.source, &target),
                _ => fabric::measure_epochs(&options, &load.source, &target),
            };
            let pair = Pair { plain, fabric };
            if !options.json {
                println!("round {round} {}", line(load.name, &pair));
            }
            load.pairs.push(pair);
        }
    }
    report(&options, &loads);
}

fn line(name: &str, pair: &Pair) -> String {
    let figures = |measured: &Measured| {
        format!("{:.2} GiB/s ({:.2} CPU s/GiB)", measured.gib_per_second, measured.cpu_seconds_per_gib)
    };
    let (plain, fabric) = (figures(&pair.plain), figures(&pair.fabric));
    format!("{name}: plain {plain}, fabric {fabric}, ratio {:.0} %", 100.0 * pair.ratio())
}

fn report(options: &Options, loads: &[Load]) {
    let mut results = serde_json::Map::new();
    for Load { name, pairs, .. } in loads {
        let of = |value: fn(&Pair) -> f64| median(pairs.iter().map(value).collect());
        let (ratio, cpu_ratio) = (of(Pair::ratio), of(Pair::cpu_ratio));
        if !options.json {
            let (percent, cpu_percent) = (100.0 * ratio, 100.0 * cpu_ratio);
            println!("{name}: median ratio {percent:.0} % of plain, for {cpu_percent:.0} % of its CPU time");
        }
        let result = serde_json::json!({
            "plain_gib_per_second": of(|pair| pair.plain.gib_per_second),
            "fabric_gib_per_second": of(|pair| pair.fabric.gib_per_second),
            "plain_cpu_seconds_per_gib": of(|pair| pair.plain.cpu_seconds_per_gib),
            "fabric_cpu_seconds_per_gib": of(|pair| pair.fabric.cpu_seconds_per_gib),
            "ratio": ratio,
            "ratios": pairs.iter().map(Pair::ratio).collect::<Vec<_>>(),
            "cpu_ratio": cpu_ratio,
        });
        results.insert((*name).to_string(), result);
    }
    if options.json {
        let (streams, gib) = (options.streams, options.gib);
        println!("{}", serde_json::json!({"streams": streams, "gib": gib, "loads": results}));
    }
}
