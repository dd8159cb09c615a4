//! Runs the independent reader `scripts/verify_protocol.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the verifier over recordings; for each, whether it obeys the protocol, and the report.
pub fn verify(recordings: &[PathBuf]) -> Vec<(bool, String)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/verify_protocol.py");
    let output = Command::new("python3")
        .arg(script)
        .arg("--json")
        .args(recordings)
        .output()
        .expect("python3 is required by the tests");
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let reports: Vec<(bool, String)> =
        text.lines().map(|line| (line.contains("\"errors\": []"), line.to_owned())).collect();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(reports.len(), recordings.len(), "{stderr}");
    let status = i32::from(reports.iter().any(|(good, _)| !good));
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    reports
}
