//! Names and units of figures, for people.

use super::scale::tick_text;
use crate::results::Measurement;

/// A figure's name in words, and its unit where the name does not say it.
pub fn words(name: &str, unit: &str) -> (String, Option<String>) {
    let last = match unit {
        "%" => "percent".to_owned(),
        other => other.to_lowercase(),
    };
    let (said, named) = match name.strip_suffix(&format!("_{last}")) {
        Some(rest) => (rest, false),
        None => (name, unit == "1" || is_part(name, &key(unit))),
    };
    let unit = match unit {
        "1/s" => "per second",
        other => other,
    };
    (said.split('_').map(word).collect::<Vec<_>>().join(" "), (!named).then(|| unit.to_owned()))
}

/// The unit as names of figures have it: `s/GiB` is `s_per_gib` there.
fn key(unit: &str) -> String {
    match unit {
        "1/s" => "per_second".to_owned(),
        other => other.to_lowercase().replace('/', "_per_"),
    }
}

fn is_part(name: &str, part: &str) -> bool {
    format!("_{name}_").contains(&format!("_{part}_"))
}

fn word(token: &str) -> &str {
    match token {
        "cpu" => "CPU",
        "tcp" => "TCP",
        "gib" => "GiB",
        "mib" => "MiB",
        "mb" => "MB",
        "4k" => "4 KiB",
        other => other,
    }
}

/// What stands above a figure's values, which then need no unit; with what else tells it from others.
pub fn head(name: &str, unit: Option<&str>, of: Option<&str>) -> String {
    let (name, unit) = unit.map_or_else(|| (words(name, "").0, None), |unit| words(name, unit));
    let parts = [Some(name), of.map(str::to_owned), unit];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A value with the unit, where no head names it.
pub fn with_unit(value: &str, unit: &str) -> String {
    match unit {
        "1" => value.to_owned(),
        "1/s" => format!("{value} per second"),
        unit => format!("{value} {unit}"),
    }
}

/// From the lowest to the highest of repeated values, where they can be told apart when written.
pub fn spread(figure: &Measurement) -> Option<String> {
    let value = &figure.value;
    let (low, high) = (tick_text(value.lowest), tick_text(value.highest));
    let shows = value.samples.len() > 1 && (low != high || low != tick_text(value.median));
    shows.then(|| format!("{low} to {high}"))
}

/// A ratio, with the range of the pairs that it is the median of.
pub fn ratio(ratio: f64, range: Option<(f64, f64)>) -> (String, Option<String>) {
    let text = |ratio: f64| {
        if ratio.abs() >= 0.1 || ratio == 0.0 { format!("{ratio:.2}") } else { format!("{ratio:.3}") }
    };
    let range = range.filter(|(low, high)| high > low);
    (text(ratio), range.map(|(low, high)| format!("{} to {}", text(low), text(high))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Better, Labels, Sampled};

    #[test]
    fn a_name_says_its_unit_once() {
        for (name, unit, text) in [
            ("pause_p50_us", "us", "pause p50, us"),
            ("late_epochs_percent", "%", "late epochs, %"),
            ("checkpoints_per_second", "1/s", "checkpoints per second"),
            ("write_rate", "1/s", "write rate, per second"),
            ("cpu_s_per_gib", "s/GiB", "CPU s per GiB"),
            ("cpu_us_per_epoch", "us", "CPU us per epoch"),
            ("page_scan_us_per_gib", "us/GiB", "page scan us per GiB"),
            ("tcp_bandwidth", "MB/s", "TCP bandwidth, MB/s"),
            ("fence_4k_p50_us", "us", "fence 4 KiB p50, us"),
            ("dirty_pages_p50", "pages", "dirty pages p50"),
            ("bytes_per_dirty_byte", "1", "bytes per dirty byte"),
            ("sync_sent_mb", "MB", "sync sent, MB"),
            ("sync_s", "s", "sync, s"),
        ] {
            assert_eq!(head(name, Some(unit), None), text);
        }
        assert_eq!(head("cpu_us_per_epoch", Some("us"), Some("primary")), "CPU us per epoch, primary");
        assert_eq!(head("pause_p50_us", Some("us"), Some("primary")), "pause p50, primary, us");
        assert_eq!(head("work_rate", None, None), "work rate");
    }

    #[test]
    fn a_range_that_shows_nothing_is_left_out() {
        let spread = |samples: &[f64]| {
            let value = Sampled::of(samples.iter().copied());
            spread(&Measurement::new("x_us", &Labels::default(), "us", Better::Lower, value))
        };
        assert_eq!(spread(&[5.0]), None);
        assert_eq!(spread(&[0.0, 0.0]), None);
        assert_eq!(spread(&[99.98, 100.01]), None);
        assert_eq!(spread(&[99.0, 101.0]).as_deref(), Some("99 to 101"));
        assert_eq!(ratio(1.5, Some((1.5, 1.5))), ("1.50".into(), None));
        assert_eq!(ratio(0.0395, Some((0.03, 0.2))), ("0.040".into(), Some("0.030 to 0.20".into())));
    }
}
