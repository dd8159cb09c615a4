//! The program's `epochs` and `limits`: what they write, and that the harness finds what is put into
//! a run on purpose.

use std::process::{Command, Output};

use romulus_perf::results::{HistogramRecord, Labels, Results, Run, names};

const NOT_EXACT: i32 = 3;

/// Runs `romulus-perf` with these arguments and `--json`; its end and what it wrote.
fn perf(arguments: &[&str]) -> (Output, Option<Results>) {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("out.json");
    let output = Command::new(env!("CARGO_BIN_EXE_romulus-perf"))
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("it runs");
    let results = json.exists().then(|| Results::read(&json).expect("results that can be read"));
    (output, results)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// One run that must go well.
fn run(arguments: &[&str]) -> Run {
    let (output, results) = perf(arguments);
    assert!(output.status.success(), "{}", said(&output));
    results.expect("results").runs.remove(0)
}

fn histogram<'a>(run: &'a Run, name: &str) -> &'a HistogramRecord {
    let mine = |record: &&HistogramRecord| {
        record.name == name && record.labels.contains(&Labels::default().with("side", "primary"))
    };
    run.histograms.iter().find(mine).unwrap_or_else(|| panic!("no histogram {name}"))
}

#[test]
fn a_case_is_measured_beside_its_limits_and_verified() {
    let run = run(&["epochs", "smoke", "--set", "guest_mib=32"]);
    assert_eq!((run.subcommand.as_str(), run.scenario.as_deref()), ("epochs", Some("smoke")));
    let labels = Labels::default().with("guest_mib", 32u64).with("dirty_pages", 200u64);
    let figure = |name| run.find(name, &labels).unwrap_or_else(|| panic!("no figure {name}")).clone();
    assert!(figure(names::CHECKPOINTS_PER_SECOND).value.median > 0.0);
    let pause = figure(names::PAUSE_P50_US);
    let limit = pause.limit.expect("a memcpy beside it");
    assert!((limit.ratio - pause.value.median / limit.value).abs() < 1e-9 && limit.value > 0.0);
    assert!(figure(names::MEMCPY_US).value.samples.len() > 10);
    assert!(figure(names::BYTES_PER_DIRTY_BYTE).value.median >= 1.0);
    let epochs = run.result[0]["epochs"].as_u64().unwrap();
    let commits = histogram(&run, "commit_latency");
    assert!(epochs > 0 && commits.count == epochs, "{} of {epochs}", commits.count);
    assert_eq!(commits.histogram().unwrap().len(), commits.count);
    assert_eq!(run.result[0]["verified"]["exact"], true);
    assert!(run.series.iter().all(|series| series.points.len() >= 5));
    assert!(histogram(&run, "collect").lowest < 1000.0, "nothing is delayed here");
}

#[test]
fn a_delay_in_one_phase_shows_there_and_in_the_totals_and_nowhere_else() {
    for phase in ["stop", "gate", "state", "collect", "resume"] {
        let delay = format!("{phase}=1ms");
        let run =
            run(&["epochs", "smoke", "--set", "guest_mib=32", "--seconds", "0.5", "--delay-phase", &delay]);
        let lowest = |name: &str| histogram(&run, name).lowest;
        for total in [phase, "pause", "pause_from_due", "commit_latency", "commit_from_due"] {
            // A histogram tells values apart by a thousandth.
            assert!(lowest(total) >= 998.0, "{total} with {delay}: {}", lowest(total));
        }
        for other in ["stop", "gate", "state", "collect", "place", "copy", "resume"] {
            assert!(other == phase || lowest(other) < 1000.0, "{other} with {delay}: {}", lowest(other));
        }
    }
}

#[test]
fn a_stall_counts_for_every_epoch_that_was_due_in_it() {
    let run = run(&["epochs", "smoke", "--set", "guest_mib=32", "--delay-phase", "collect=300ms@20"]);
    // 30 epochs of 10 ms were due in it; 20 of them at least 100 ms before its end.
    for (name, clock) in [("pause_from_due", "pause"), ("commit_from_due", "commit_latency")] {
        let (due, clock) = (histogram(&run, name), histogram(&run, clock));
        assert!(due.count >= clock.count + 25, "{name}: {} for {} epochs", due.count, clock.count);
        let slow = due.histogram().unwrap().count_between(100_000_000, u64::MAX);
        assert!(slow >= 19, "{name}: {slow}");
    }
}

#[test]
fn a_corrupted_page_is_caught_and_named() {
    for sparse in [false, true] {
        let mut arguments = vec!["epochs", "smoke", "--seconds", "0.2", "--corrupt-page", "77"];
        if sparse {
            arguments.extend(["--set", "filled_mib=16"]);
        }
        let (output, results) = perf(&arguments);
        assert_eq!(output.status.code(), Some(NOT_EXACT), "{}", said(&output));
        assert!(said(&output).contains("page 77:"), "{}", said(&output));
        let run = results.expect("results").runs.remove(0);
        assert_eq!(run.result[0]["verified"]["exact"], false);
        assert_eq!(run.result[0]["verified"]["corrupt_pages"], 1);
        assert!(
            run.measurements.is_empty() && run.histograms.is_empty(),
            "figures of an engine that lost a page"
        );
        assert!(run.notes.iter().any(|note| note.contains("NOT EXACT")), "{:?}", run.notes);
    }
}

#[test]
fn loads_in_pages_a_second_are_compared_with_the_guest_alone() {
    let set = ["--set", "guest_mib=32", "--set", "pages_per_second=[2000,0]", "--set", "pattern=zipf"];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[mine]\nabout = \"own\"\nseconds = 0.5\nalone_seconds = 0.3\n").unwrap();
    let own = ["epochs", "mine", "--scenarios", file.path().to_str().unwrap()];
    let run = run(&[&own[..], &set].concat());
    let slowdowns: Vec<_> =
        run.measurements.iter().filter(|figure| figure.name == names::GUEST_SLOWDOWN_PERCENT).collect();
    assert_eq!(slowdowns.len(), 2);
    assert!(slowdowns.iter().all(|figure| figure.value.median < 100.0));
    assert!(run.result.as_array().unwrap().iter().all(|case| case["verified"]["exact"] == true));
}

#[test]
fn the_kernels_word_on_dirty_pages_gives_an_exact_image() {
    for capture in ["staged", "direct"] {
        let capture = format!("capture={capture}");
        let set = ["--set", "guest_mib=32", "--set", "tracking=write_protect", "--set", &capture];
        let run = run(&[&["epochs", "smoke", "--seconds", "0.5"][..], &set].concat());
        assert_eq!(run.result[0]["verified"]["exact"], true);
        let dirty = histogram(&run, "dirty_pages");
        assert!(dirty.highest >= 150.0, "{}", dirty.highest);
    }
}

#[test]
fn a_sparse_guest_takes_what_it_has_written_and_no_more() {
    let set = ["guest_mib=262144", "filled_mib=4", "dirty_pages=50", "pattern=hot_set", "hot_pages=2048"];
    let mut arguments = vec!["epochs", "smoke", "--seconds", "0.5"];
    set.iter().for_each(|field| arguments.extend(["--set", field]));
    let run = run(&[&arguments[..], &["--set", "hot_percent=100"]].concat());
    let verified = &run.result[0]["verified"];
    assert_eq!(verified["exact"], true);
    assert!(verified["pages"].as_u64().unwrap() <= 4096, "{verified}");
}

#[test]
fn what_cannot_run_is_told_and_the_rest_runs() {
    let run = run(&["epochs", "smoke", "--seconds", "0.2", "--set", "guest_mib=[16,16000000]"]);
    assert_eq!(run.result.as_array().unwrap().len(), 1);
    let skipped: Vec<_> = run.notes.iter().filter(|note| note.contains("are available")).collect();
    assert_eq!(skipped.len(), 1, "{:?}", run.notes);
    for (arguments, code, word) in [
        (&["epochs", "nosuch"][..], 2, "there are: aims"),
        (&["epochs", "smoke", "--set", "colour=1"], 2, "colour"),
        (&["epochs", "smoke", "--set", "dirty_pages=100000"], 2, "dirty_pages"),
        (&["epochs", "smoke", "--delay-phase", "copy=1ms"], 2, "copy"),
        (&["epochs", "smoke", "--scenarios", "no-such-file"], 1, "no-such-file"),
        (&["epochs", "smoke", "--set", "guest_mib=16000000"], 1, "nothing could be measured"),
        (&["limits", "--only", "memcpy", "--window-mib", "1000000"], 1, "nothing could be measured"),
    ] {
        let (output, _) = perf(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn scenarios_are_listed() {
    let output = Command::new(env!("CARGO_BIN_EXE_romulus-perf")).args(["scenarios", "--fields"]).output();
    let text = said(&output.expect("it runs"));
    for word in ["smoke", "quick", "max", "sparse", "interval_ms"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn limits_are_measured_and_what_is_missing_is_told() {
    let few = ["--seconds", "0.01", "--rounds", "2", "--window-mib", "8", "--tracked-mib", "16"];
    let run = run(&[&["limits"][..], &few].concat());
    let any = Labels::default();
    for name in [
        names::MEMCPY_BANDWIDTH,
        names::PAGE_SCAN_US_PER_GIB,
        names::WRITE_PROTECT_US_PER_GIB,
        names::TCP_BANDWIDTH,
        "wake_p50_us",
    ] {
        assert!(
            run.find(name, &any).is_some_and(|figure| figure.value.median > 0.0),
            "{name}: {:?}",
            run.notes
        );
    }
    if run.machine.rdma_devices.is_empty() {
        let more = ["--fabric", "rdma", "--only", "verbs,wake"];
        let run = self::run(&[&["limits"][..], &few, &more].concat());
        assert!(run.notes.iter().any(|note| note.contains("rdma")), "{:?}", run.notes);
        assert!(run.find("wake_p50_us", &any).is_some());
    }
}
