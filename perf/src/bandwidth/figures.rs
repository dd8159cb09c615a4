//! What was measured, as figures of the results.

use super::FabricCommand;
use super::client::Measured;
use crate::exit::{Failure, OrFail};
use crate::results::{Beside, Better, HistogramRecord, Labels, Measurement, Run, Sampled, names};

/// Fills a run with all of it.
pub fn fill(run: &mut Run, command: &FabricCommand, measured: &Measured) -> Result<(), Failure> {
    run.device = command.fabric.used_device();
    let labels = Labels::default().with("fabric", measured.fabric).with("streams", command.fabric.streams);
    for result in &measured.bandwidth {
        let size_bytes = result.size.0;
        let labels = labels.clone().with("size_bytes", size_bytes);
        let limit = Beside::paired(measured.limit, &result.pairs);
        let rates = || result.pairs.iter().map(|pair| pair.0);
        let bandwidth = Sampled::of(rates());
        let bandwidth = Measurement::new(names::WRITE_BANDWIDTH, &labels, "MB/s", Better::Higher, bandwidth);
        let writes = Sampled::of(rates().map(|rate| rate * 1e6 / size_bytes as f64));
        let writes = Measurement::new(names::WRITE_RATE, &labels, "1/s", Better::Higher, writes);
        run.measurements.extend([bandwidth.with_limit(limit), writes]);
    }
    for latency in &measured.latency {
        let figure = |what: &str, value| {
            Measurement::single(&format!("{}_{what}_us", latency.name), &labels, "us", Better::Lower, value)
        };
        let mean = latency.times.mean_us();
        // Of a write of a page, its fence and the ack; the limit has the write alone, and tells its mean.
        let limit = measured.limit_latency.first().filter(|_| latency.name == "fence_4k");
        let limit = limit.filter(|_| measured.limit_latency_starved.is_none());
        let limit = limit.and_then(|limit| Beside::single(limit.name, limit.mean_us, mean));
        run.measurements.push(figure("p50", latency.times.quantile_us(0.5)));
        run.measurements.push(figure("mean", mean).with_limit(limit));
        let record = HistogramRecord::of_ns(latency.name, &labels, latency.times.histogram())?;
        run.histograms.push(record);
    }
    for limit in &measured.limit_latency {
        let name = format!("{}_mean_us", limit.name);
        let labels = labels.clone().with("size_bytes", limit.size.0);
        run.measurements.push(Measurement::single(&name, &labels, "us", Better::Lower, limit.mean_us));
    }
    run.notes.extend(measured.limit_latency_starved.clone());
    run.notes.extend(measured.no_limit_because.iter().map(|why| format!("no limit was measured: {why}")));
    run.result = serde_json::to_value(measured).or_fail("what was measured as JSON")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::super::client::{Latency, LimitLatency};
    use super::*;
    use crate::histogram::Latencies;
    use crate::machine::Machine;
    use crate::results::RunClock;
    use crate::size::Size;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        command: FabricCommand,
    }

    /// Fences of 100, 100 and 400 us beside writes of 50 us.
    fn filled(limit_latency_starved: Option<String>) -> Run {
        let mut times = Latencies::default();
        [100, 100, 400].into_iter().for_each(|us| times.record(Duration::from_micros(us)));
        let measured = Measured {
            fabric: "rdma",
            limit: "ib_write_bw",
            no_limit_because: None,
            server: Machine::here(),
            bandwidth: vec![],
            latency: vec![Latency { name: "fence_4k", times }],
            limit_latency: vec![LimitLatency { name: "ib_write_lat", size: Size(4096), mean_us: 50.0 }],
            limit_latency_starved,
            no_limit_latency_because: None,
        };
        let mut run = RunClock::start().run("fabric", &()).unwrap();
        fill(&mut run, &Line::parse_from(["fabric"]).command, &measured).unwrap();
        run
    }

    #[test]
    fn a_mean_stands_beside_a_mean() {
        let run = filled(None);
        let find = |name| run.find(name, &Labels::default()).unwrap();
        assert_eq!(find("fence_4k_p50_us").limit, None);
        let limit = find("fence_4k_mean_us").limit.as_ref().unwrap();
        assert!((limit.ratio - 4.0).abs() < 0.01, "{limit:?}");
    }

    #[test]
    fn a_program_that_was_starved_is_shown_and_no_limit() {
        let run = filled(Some("too few cores".into()));
        let find = |name| run.find(name, &Labels::default()).unwrap();
        assert_eq!(find("fence_4k_mean_us").limit, None);
        assert!((find("ib_write_lat_mean_us").value.median - 50.0).abs() < 0.01);
        assert_eq!(run.notes, ["too few cores"]);
    }
}
