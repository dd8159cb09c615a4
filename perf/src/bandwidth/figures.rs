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
        // Of a write of a page, its fence and the ack; the limit has the write alone.
        let limit = measured.limit_latency.first().filter(|_| latency.name == "fence_4k");
        let median = latency.times.quantile_us(0.5);
        let limit = limit.and_then(|limit| Beside::single(limit.name, limit.mean_us, median));
        let name = format!("{}_p50_us", latency.name);
        let figure = Measurement::single(&name, &labels, "us", Better::Lower, median);
        run.measurements.push(figure.with_limit(limit));
        let record = HistogramRecord::of_ns(latency.name, &labels, latency.times.histogram())?;
        run.histograms.push(record);
    }
    run.notes.extend(measured.no_limit_because.iter().map(|why| format!("no limit was measured: {why}")));
    run.result = serde_json::to_value(measured).or_fail("what was measured as JSON")?;
    Ok(())
}
