//! What the network moves: plain TCP streams over the loopback, and the raw verbs.

use std::net::TcpListener;

use super::command::{Found, LimitsCommand};
use crate::bandwidth::limits::perftest::{self, Run, Tool};
use crate::bandwidth::limits::plain;
use crate::exit::{Failure, OrFail};
use crate::fabrics::{FabricOptions, Kind, thread_setup};
use crate::results::{Better, Labels, Measurement, Sampled, names};

/// Numbers of streams.
const STREAMS: [usize; 3] = [1, 2, 4];
/// Bytes of a call.
const SPAN_BYTES: u64 = 1 << 20;
/// Memory of a stream.
const WINDOW_BYTES: u64 = 4 << 20;

/// Plain streams, both ends in this process.
pub fn measure_tcp(command: &LimitsCommand, found: &mut Found) -> Result<(), Failure> {
    for streams in STREAMS {
        let once = |_| -> Result<(f64, f64), Failure> {
            let listener = TcpListener::bind((command.address, 0))
                .or_fail(format!("listening at {}", command.address))?;
            let address = listener.local_addr().or_fail("listening")?;
            let window_bytes = WINDOW_BYTES * streams as u64;
            let (from, into) = (plain::touched(window_bytes)?, plain::touched(window_bytes)?);
            std::thread::scope(|scope| {
                let receiving = scope.spawn(|| plain::receive(&listener, streams, &into, SPAN_BYTES));
                let moved = plain::send(address, streams, &from, SPAN_BYTES, command.time())?;
                receiving.join().unwrap_or_else(|_| Err(Failure::failed("a receiver panicked")))?;
                Ok((moved.mb_per_second(), moved.cpu_seconds / (moved.bytes as f64 / f64::from(1 << 30))))
            })
        };
        let moved: Vec<_> = (0..command.rounds).map(once).collect::<Result<_, _>>()?;
        let labels = Labels::default().with("streams", streams as u64).with("size_bytes", SPAN_BYTES);
        let rates = Sampled::of(moved.iter().map(|(rate, _)| *rate));
        found.push(Measurement::new(names::TCP_BANDWIDTH, &labels, "MB/s", Better::Higher, rates));
        let costs = Sampled::of(moved.iter().map(|(_, cost)| *cost));
        found.push(Measurement::new("tcp_cpu_s_per_gib", &labels, "s/GiB", Better::Lower, costs));
    }
    Ok(())
}

/// The raw verbs, by perftest run at both ends from here.
pub fn measure_verbs(command: &LimitsCommand, found: &mut Found) -> Result<(), Failure> {
    let options = FabricOptions { fabric: Kind::Rdma, ..command.fabric.clone() };
    // A device that is not there is told here, in the fabric's words.
    options.open(&thread_setup(options.plan()?), None)?;
    for tool in [Tool::WriteBw, Tool::WriteLat] {
        if !tool.is_installed() {
            return Err(Failure::failed(format!(
                "{} is not installed (Debian package perftest)",
                tool.name()
            )));
        }
    }
    let seconds = (command.seconds.ceil() as u64).max(1);
    let run = |tool, size_bytes, depth| Run { tool, size_bytes, depth, queue_pairs: 1, seconds };
    let counts = |run: Run| -> Result<Vec<f64>, Failure> {
        let once = |_| perftest::count_here(&options, &run, command.address).map(|count| count as f64);
        (0..command.rounds.min(3)).map(once).collect()
    };
    let labels = |size_bytes: u64| Labels::default().with("size_bytes", size_bytes).with("by", "perftest");
    let per_second = seconds as f64;
    for size_bytes in [4 << 10, 64 << 10, 1 << 20] {
        let rates = counts(run(Tool::WriteBw, size_bytes, 128))?;
        let rates = Sampled::of(rates.iter().map(|count| count * size_bytes as f64 / per_second / 1e6));
        found.push(Measurement::new(
            "verbs_write_bandwidth",
            &labels(size_bytes),
            "MB/s",
            Better::Higher,
            rates,
        ));
    }
    let rates = Sampled::of(counts(run(Tool::WriteBw, 8, 128))?.iter().map(|count| count / per_second));
    found.push(Measurement::new("verbs_write_rate", &labels(8), "1/s", Better::Higher, rates));
    for size_bytes in [8, 4 << 10] {
        let times = counts(run(Tool::WriteLat, size_bytes, 1))?;
        let times = Sampled::of(times.iter().map(|count| 1e6 * per_second / count));
        found.push(Measurement::new("verbs_round_trip_us", &labels(size_bytes), "us", Better::Lower, times));
    }
    Ok(())
}
