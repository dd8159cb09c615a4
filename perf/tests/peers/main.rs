//! The program's `peers --xl-results`, down to the page of Markdown: needs neither root nor Xen.

use std::path::Path;
use std::process::{Command, Output};

use romulus_perf::results::{Labels, Results, names};

fn perf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_romulus-perf")).args(arguments).output().expect("it runs")
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

/// What `scripts/xen-beside` writes of a side.
fn side(rate: f64) -> serde_json::Value {
    serde_json::json!({
        "attempts": 2,
        "failures": ["the first try crashed"],
        "seconds": 30.1,
        "checkpoints": 60,
        "checkpoints_per_second": rate,
        "guest_stopped_us": {"p50": 40_334, "p99": 100_026, "max": 100_026},
        "guest_away_us": {"p50": 212_063, "p99": 425_108, "max": 425_108},
        "sent_bytes": 120_000_000,
        "sent_bytes_per_checkpoint": 2_000_000,
        "workload_steps_per_second": 11.9,
        "corrupt_pages": 0,
    })
}

#[test]
fn what_xen_beside_measured_becomes_a_table_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, json, page] = ["beside.json", "xen.json", "page.md"].map(|name| folder.path().join(name));
    let settings = serde_json::json!({
        "guest_mib": 128, "check_mib": 16, "interval": 100, "dirty_mib_per_second": 1.5, "seconds": 30.0,
    });
    let beside = serde_json::json!({"settings": settings, "xl-remus": side(0.75), "romulus": side(3.0)});
    std::fs::write(&file, beside.to_string()).unwrap();
    let output = perf(&["peers", "--peers", "xl", "--xl-results", text(&file), "--json", text(&json)]);
    assert!(output.status.success(), "{}", said(&output));
    let results = Results::read(&json).expect("results that can be read");
    assert_eq!(results.runs.len(), 1);
    let rate = results.runs[0].find(names::CHECKPOINTS_PER_SECOND, &Labels::default()).expect("a rate");
    assert_eq!(rate.peer.as_ref().map(|peer| peer.ratio), Some(4.0));

    std::fs::write(
        &page,
        "a\n<!-- romulus-perf peers -->\nkept\n<!-- /romulus-perf peers -->\n\
         <!-- romulus-perf peers xl -->\n<!-- /romulus-perf peers xl -->\nb\n",
    )
    .unwrap();
    let output = perf(&["report", text(&json), "--markdown", text(&page)]);
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(
        page.starts_with("a\n<!-- romulus-perf peers -->\nkept\n<!-- /romulus-perf peers -->\n"),
        "{page}"
    );
    assert!(page.contains("| checkpoints per second | 3 | 0.75 | 4.00 |"), "{page}");
    assert!(page.contains("| figure | median (range) | xl remus | ratio |"), "{page}");
    assert!(page.contains("| clock still p50, ms | 40.3 | 40.3 | 1.00 |"), "{page}");
    assert!(
        page.contains(
            "beside xl remus, 16 MiB with content, 1.5 MiB/s rewritten, guest of 128 MiB, every 100 ms"
        ),
        "{page}"
    );
    assert!(page.contains("the first try crashed"), "{page}");
}

#[test]
fn without_the_file_it_is_said_how_to_get_it() {
    let output = perf(&["peers", "--peers", "xl"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("scripts/xen-beside --json FILE"), "{}", said(&output));

    let output = perf(&["peers", "--peers", "xl", "--xl-results", "/nonexistent/beside.json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("/nonexistent/beside.json"), "{}", said(&output));

    let output = perf(&["peers", "--peers", "qemu", "--xl-results", "/nonexistent/beside.json"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
