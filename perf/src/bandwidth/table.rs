//! What was measured, for people.

use std::fmt::Write;

use super::client::Measured;

/// A table of it.
pub fn of(measured: &Measured) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, measured);
    text
}

fn write_all(text: &mut String, measured: &Measured) -> std::fmt::Result {
    let limit = if measured.limit.is_empty() { "no limit" } else { measured.limit };
    writeln!(text, "one-sided writes over {}, medians in MB/s; limit: {limit}", measured.fabric)?;
    if let Some(why) = &measured.no_limit_because {
        writeln!(text, "no limit was measured: {why}")?;
    }
    writeln!(
        text,
        "{:>8} {:>10} {:>10} {:>8}  ratio, lowest to highest",
        "size", "fabric", "limit", "ratio"
    )?;
    for result in &measured.bandwidth {
        write!(text, "{:>8} {:>10.1}", result.size.to_string(), result.fabric_mb_s.median)?;
        if measured.no_limit_because.is_none() {
            let ratio = result.ratio;
            write!(text, " {:>10.1} {:>6.1} %", result.limit_mb_s.median, 100.0 * ratio.median)?;
            write!(text, "  {:.1} to {:.1} %", 100.0 * ratio.min, 100.0 * ratio.max)?;
        }
        writeln!(text)?;
    }
    for latency in &measured.latency {
        writeln!(text, "{:>12} round trip: mean {:.1} us", latency.name, latency.times.mean_us())?;
        writeln!(text, "{:>12} {}", "", latency.times.line())?;
    }
    for latency in &measured.limit_latency {
        writeln!(
            text,
            "{:>12} of {} round trip: mean {:.1} us",
            latency.name, latency.size, latency.mean_us
        )?;
    }
    if let Some(why) = &measured.limit_latency_starved {
        writeln!(text, "{why}")?;
    }
    if let Some(why) = &measured.no_limit_latency_because {
        writeln!(text, "no limit of the latencies was measured: {why}")?;
    }
    Ok(())
}
