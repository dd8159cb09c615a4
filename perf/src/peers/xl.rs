//! `xl remus`, Xen's own checkpoints: figures of what `scripts/xen-beside` measured in the Xen lab.

use super::xl_file::{Attempts, Measured, Side, XenBeside};
use crate::exit::{Code, Failure};
use crate::results::{Beside, Better, Labels, Measurement, Run, names};

/// What it is called where it stands beside a figure.
const PEER: &str = "xl remus";

/// What is told where there is no file.
pub const NOT_MEASURED: &str = "xl remus: not measured: it needs Xen; as root, `scripts/xen-beside --json FILE` measures it and Romulus \
     in the Xen lab, and `romulus-perf peers --peers xl --xl-results FILE` makes figures of that (`scripts/bench` does both)";

/// Fills a run with the figures of a file. What failed is a note and the rest is kept; an error says at
/// last that there are no figures of Romulus, or none at all.
pub fn fill(run: &mut Run, beside: &XenBeside) -> Result<(), Failure> {
    run.scenario = Some("xl".into());
    run.started_at.clone_from(&beside.written_at);
    run.result = beside.whole.clone();
    // It is not this program that was measured; the script builds for release.
    run.machine.revision = beside.revision.clone().unwrap_or_else(|| "unknown".into());
    run.machine.debug_assertions = false;
    let settings = &beside.settings;
    let labels = Labels::default()
        .with("guest_mib", settings.guest_mib)
        .with("content_mib", settings.check_mib)
        .with("interval_ms", settings.interval)
        .with("dirty_mib_per_second", settings.dirty_mib_per_second);
    let (ours, ours_failed) = usable("Romulus", beside.romulus.as_ref(), run);
    let (theirs, _) = usable(PEER, beside.xl_remus.as_ref(), run);
    match (ours, theirs) {
        (Some(ours), theirs) => {
            let labels = labels.with("beside", PEER);
            run.measurements = figures(ours, theirs, &labels);
        }
        // Without anything to compare it with: told as what it is.
        (None, Some(theirs)) => run.measurements = figures(theirs, None, &labels.with("of", PEER)),
        (None, None) => {}
    }
    run.seconds = [ours, theirs].into_iter().flatten().map(|side| side.seconds).sum();
    if run.measurements.is_empty() {
        return Err(Failure::failed(format!(
            "--xl-results {}: nothing was measured: {}",
            beside.name,
            run.notes.join("; ")
        )));
    }
    println!("{}", table(ours, theirs));
    let counted: Vec<String> = [(PEER, theirs), ("Romulus", ours)]
        .into_iter()
        .filter_map(|(name, side)| side.map(|side| format!("{} checkpoints by {name}", side.checkpoints)))
        .collect();
    run.notes.push(format!(
        "written then by scripts/xen-beside: Xen hosts, emulated, {} s of each, {}; xl remus sends over TCP and holds no \
         output, Romulus over rdma with its gate; clock and thread by a probe in the guest",
        settings.seconds,
        counted.join(", ")
    ));
    ours_failed
}

/// A side with figures to quote; otherwise a note says why there are none, and the error is one for
/// the side that this project answers for.
fn usable<'a>(
    name: &str,
    side: Option<&'a Side>,
    run: &mut Run,
) -> (Option<&'a Measured>, Result<(), Failure>) {
    let (code, why) = match side {
        Some(Side::Measured(measured)) if measured.corrupt_pages == 0 => {
            if let [.., last] = &measured.tries.failures[..] {
                run.notes
                    .push(format!("{name}: attempt {} went well; before: {last}", measured.tries.attempts));
            }
            return (Some(measured), Ok(()));
        }
        // Losing pages is a way to be fast.
        Some(Side::Measured(measured)) => (
            Code::NotExact,
            format!("NOT EXACT, its figures are left out: {} corrupt pages", measured.corrupt_pages),
        ),
        Some(Side::Failed(Attempts { attempts, failures })) => {
            let last = failures.last().map_or("", String::as_str);
            (Code::Failed, format!("not measured: {attempts} attempts failed, the last: {last}"))
        }
        None => {
            run.notes.push(format!("{name}: not measured (`scripts/xen-beside --only`)"));
            return (None, Ok(()));
        }
    };
    let text = format!("{name}: {why}");
    run.notes.push(text.clone());
    (None, Err(Failure::new(code, text)))
}

type Get = fn(&Measured) -> f64;

/// Name, unit, which direction is better, and where the figure is.
const FIGURES: [(&str, &str, Better, Get); 7] = [
    (names::CHECKPOINTS_PER_SECOND, "1/s", Better::Higher, |side| side.checkpoints_per_second),
    ("clock_still_p50_ms", "ms", Better::Lower, |side| side.guest_stopped_us.p50 / 1e3),
    ("clock_still_p99_ms", "ms", Better::Lower, |side| side.guest_stopped_us.p99 / 1e3),
    ("thread_away_p50_ms", "ms", Better::Lower, |side| side.guest_away_us.p50 / 1e3),
    ("thread_away_p99_ms", "ms", Better::Lower, |side| side.guest_away_us.p99 / 1e3),
    ("sent_per_checkpoint_mb", "MB", Better::Lower, |side| side.sent_bytes_per_checkpoint as f64 / 1e6),
    ("work_rate", "steps/s", Better::Higher, |side| side.workload_steps_per_second),
];

fn figures(side: &Measured, peer: Option<&Measured>, labels: &Labels) -> Vec<Measurement> {
    let figure = |(name, unit, better, get): &(&str, &str, Better, Get)| {
        let value = get(side);
        let peer = peer.and_then(|peer| Beside::single(PEER, get(peer), value));
        Measurement::single(name, labels, unit, *better, value).with_peer(peer)
    };
    FIGURES.iter().map(figure).collect()
}

fn table(ours: Option<&Measured>, theirs: Option<&Measured>) -> String {
    let mut lines = vec![format!("{:<28} {:>10} {:>10}", "", PEER, "Romulus")];
    for (name, unit, _, get) in FIGURES {
        let text = |side: Option<&Measured>| side.map_or("-".into(), |side| format!("{:.2}", get(side)));
        lines.push(format!("{name:<28} {:>10} {:>10} {unit}", text(theirs), text(ours)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};

    use super::*;
    use crate::results::RunClock;

    fn side(rate: f64, still_us: u64) -> Value {
        json!({
            "attempts": 1,
            "failures": [],
            "seconds": 30.5,
            "checkpoints": 24,
            "checkpoints_per_second": rate,
            "guest_stopped_us": {"p50": still_us, "p99": 2 * still_us, "max": 3 * still_us},
            "guest_away_us": {"p50": 1_000_000, "p99": 1_500_000, "max": 1_500_000},
            "sent_bytes": 47_000_000,
            "sent_bytes_per_checkpoint": 2_000_000,
            "workload_steps_per_second": 3.0,
            "corrupt_pages": 0,
        })
    }

    fn file() -> Value {
        json!({
            "revision": "0123456789ab",
            "settings": {"guest_mib": 128, "check_mib": 16, "interval": 100, "dirty_mib_per_second": 1, "seconds": 30},
            "xl-remus": side(0.8, 1_000_000),
            "romulus": side(2.8, 40_000),
        })
    }

    fn parse(file: &Value) -> Result<XenBeside, String> {
        XenBeside::parse(
            file.to_string().as_bytes(),
            "beside.json".into(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1),
        )
    }

    fn filled(file: &Value) -> (Run, Result<(), Failure>) {
        let mut run = RunClock::start().run("peers", &()).unwrap();
        let verdict = fill(&mut run, &parse(file).unwrap());
        (run, verdict)
    }

    #[test]
    fn both_sides_are_figures_beside_each_other() {
        let (run, verdict) = filled(&file());
        assert!(verdict.is_ok());
        assert_eq!((run.scenario.as_deref(), &*run.started_at), (Some("xl"), "1970-01-01T00:00:01Z"));
        assert_eq!((run.measurements.len(), run.seconds), (7, 61.0));
        assert_eq!((&*run.machine.revision, run.machine.debug_assertions), ("0123456789ab", false));
        let labels = Labels::default().with("guest_mib", 128u64).with("interval_ms", 100u64);
        let rate = run.find(names::CHECKPOINTS_PER_SECOND, &labels).unwrap();
        let peer = rate.peer.as_ref().unwrap();
        assert_eq!((rate.value.median, peer.value, &*peer.name), (2.8, 0.8, "xl remus"));
        assert!((peer.ratio - 3.5).abs() < 1e-9);
        assert_eq!(run.find("clock_still_p99_ms", &labels).unwrap().value.median, 80.0);
        assert_eq!(run.find("sent_per_checkpoint_mb", &labels).unwrap().value.median, 2.0);
        assert_eq!(run.result["romulus"]["checkpoints"], 24, "the whole file is kept");
    }

    #[test]
    fn a_side_that_failed_is_noted_and_the_other_kept() {
        let failed = json!({"attempts": 5, "failures": ["one", "it crashed"]});
        let mut theirs = file();
        theirs["xl-remus"] = failed.clone();
        let (run, verdict) = filled(&theirs);
        assert!(verdict.is_ok() && run.measurements.iter().all(|figure| figure.peer.is_none()));
        assert!(
            run.notes.contains(&"xl remus: not measured: 5 attempts failed, the last: it crashed".into())
        );

        let mut ours = file();
        ours["romulus"] = failed.clone();
        let (run, verdict) = filled(&ours);
        assert_eq!(verdict.unwrap_err().code, Code::Failed);
        let of_peer = Labels::default().with("of", "xl remus");
        assert_eq!(run.find(names::CHECKPOINTS_PER_SECOND, &of_peer).unwrap().value.median, 0.8);

        let mut both = ours;
        both["xl-remus"] = failed;
        let (run, verdict) = filled(&both);
        assert!(run.measurements.is_empty());
        let message = verdict.unwrap_err().message;
        assert!(message.contains("nothing was measured") && message.contains("it crashed"), "{message}");
    }

    #[test]
    fn figures_of_a_side_that_lost_pages_are_left_out() {
        let mut file = file();
        file["romulus"]["corrupt_pages"] = 2.into();
        let (run, verdict) = filled(&file);
        assert_eq!(verdict.unwrap_err().code, Code::NotExact);
        assert!(run.measurements.iter().all(|figure| figure.labels.get("of").is_some()));
    }

    #[test]
    fn a_side_that_was_not_asked_for_is_said() {
        let mut file = file();
        file.as_object_mut().unwrap().remove("xl-remus");
        let (run, verdict) = filled(&file);
        assert!(verdict.is_ok());
        assert!(run.notes[0].starts_with("xl remus: not measured"), "{:?}", run.notes);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let parse_text = |text: &str| {
            XenBeside::parse(text.as_bytes(), String::new(), SystemTime::UNIX_EPOCH).unwrap_err()
        };
        assert!(parse_text("").starts_with("no JSON"));
        assert!(parse_text("[1]").contains("not what scripts/xen-beside writes"));
        assert!(parse_text(r#"{"romulus": {}}"#).contains("missing field `settings`"));
        for (side, field) in [("romulus", "guest_away_us"), ("xl-remus", "workload_steps_per_second")] {
            let mut file = file();
            file[side].as_object_mut().unwrap().remove(field);
            let why = parse(&file).unwrap_err();
            assert!(why.contains(side) && why.contains(&format!("missing field `{field}`")), "{why}");
        }
        let mut empty = file();
        empty["romulus"] = json!({"attempts": 0, "failures": []});
        assert_eq!(parse(&empty).unwrap_err(), "romulus: neither `checkpoints` nor `failures`");
        let mut odd = file();
        odd["romulus"]["checkpoints"] = "many".into();
        assert!(parse(&odd).unwrap_err().contains("romulus: invalid type"));
        let missing = XenBeside::read("/nonexistent/beside.json".as_ref()).unwrap_err();
        assert!(missing.message.contains("--xl-results /nonexistent/beside.json"), "{}", missing.message);
        assert!(missing.message.contains("scripts/xen-beside --json"), "{}", missing.message);
    }
}
