//! What was measured, as one JSON object in a file.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::exit::{Failure, OrFail};
use crate::machine::Machine;

/// The layout of the file; grows when a field changes its meaning.
pub const FORMAT: u32 = 1;

/// The whole object: what ran, where, with which options, and what came of it.
pub fn envelope(command: &str, options: &impl Serialize, result: &impl Serialize) -> Value {
    json!({
        "program": "romulus-perf",
        "format": FORMAT,
        "command": command,
        "machine": Machine::here(),
        "options": options,
        "result": result,
    })
}

/// Writes it where the options say; the file is there in full or not at all.
pub fn write(
    path: Option<&Path>,
    command: &str,
    options: &impl Serialize,
    result: &impl Serialize,
) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(&envelope(command, options, result)).or_fail("JSON")? + "\n";
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .or_fail(format!("--json {}", path.display()))
}
