//! Wrong use is answered in words and with status 2, before anything is started.

use std::process::Command;

fn answer(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_romulus-perf")).args(arguments).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn wrong_options_are_named() {
    let primary = ["primary", "--backup", "127.0.0.1:1"];
    let backup = ["backup", "--listen", "127.0.0.1:0"];
    for (arguments, word) in [
        (&["fabric", "--sizes", "4q"][..], "4q"),
        (&["fabric", "--sizes", "2g"], "at most 1g"),
        (&["fabric", "--role", "client"], "--peer"),
        (&["fabric", "--require-ratio", "8k=1"], "8k"),
        (&["fabric", "--limit", "none", "--require-ratio", "4k=1"], "--limit none"),
        (&["fabric", "--seconds", "0"], "--seconds 0"),
        (&["fabric", "--fabric", "pigeon"], "pigeon"),
        (&["fabric", "--pin", "capture=4095"], "capture=4095"),
        (&[&primary[..], &["--interval-ms", "0"]].concat(), "--interval-ms 0"),
        (
            &[&primary[..], &["--guest-mib", "1", "--dirty-pages-per-epoch", "200"]].concat(),
            "raise --guest-mib",
        ),
        (&[&primary[..], &["--stop-in-epoch", "1"]].concat(), "--stop-in-epoch"),
        (&[&backup[..], &["--arbiter", "chance"]].concat(), "chance"),
        (&["backup"], "--listen"),
        (&["guest", "--image-dir", "/nowhere", "--work", "sleep"], "sleep"),
        (&["guest", "--image-dir", "/nowhere", "--rates", "0"], "--rates 0"),
        (&["guest", "--image-dir", "/nowhere", "--seconds", "0.1"], "--seconds 0.1"),
        (&["guest", "--image-dir", "/nowhere", "--writer-mib", "300"], "--guest-mib 512"),
        (&["peers", "--image-dir", "/nowhere", "--peers", "vmware"], "vmware"),
        (&["peers", "--image-dir", "/nowhere", "--content-mib", "500"], "--content-mib 500"),
        (&["report", "some.json"], "--out"),
        (&["compare", "only-one.json"], "B.json"),
    ] {
        let (status, text) = answer(arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
}

#[test]
fn files_that_are_no_results_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("other.json");
    std::fs::write(&file, "{\"program\": \"other\", \"format\": 2}").expect("written");
    let file = file.to_str().expect("UTF-8");
    for (arguments, word) in [
        (&["report", file, "--out", "/nowhere/report.html"][..], "other"),
        (&["report", "/nowhere/a.json", "--out", "/nowhere/report.html"], "/nowhere/a.json"),
        (&["compare", file, file], "other"),
    ] {
        let (status, text) = answer(arguments);
        assert_eq!(status, Some(1), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
}

#[test]
fn a_peer_that_is_not_there_is_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let (status, text) =
        answer(&["fabric", "--role", "client", "--peer", &free.to_string(), "--patience", "0"]);
    assert_eq!(status, Some(1));
    assert!(text.contains(&free.to_string()) && text.contains("--role server"), "{text}");
}
