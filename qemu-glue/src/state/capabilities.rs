//! QEMU's migration capabilities: set for Romulus, then put back.

use serde_json::{Value, json};

use crate::error::QemuError;
use crate::qmp::{Client, QmpError};

const IGNORE_SHARED: &str = "x-ignore-shared";
const EVENTS: &str = "events";

/// Capabilities that were changed, with what they were.
#[derive(Debug, Default)]
pub struct Capabilities {
    before: Vec<(String, bool)>,
}

impl Capabilities {
    /// Turns on what a state without RAM needs, and off whatever else is on, since it could
    /// change the form of the stream.
    pub fn set(client: &mut Client) -> Result<Self, QemuError> {
        Self::set_with(client, &[IGNORE_SHARED, EVENTS])
    }

    /// As [`set`](Self::set) for a standby: its disks stay closed until it runs.
    pub fn set_for_standby(client: &mut Client) -> Result<Self, QemuError> {
        Self::set_with(client, &[IGNORE_SHARED, EVENTS, "late-block-activate"])
    }

    fn set_with(client: &mut Client, wanted: &[&str]) -> Result<Self, QemuError> {
        let present = client.execute("query-migrate-capabilities", json!({}))?;
        let mut before = Vec::new();
        let mut known_ignore_shared = false;
        for entry in present.as_array().into_iter().flatten() {
            let Some(name) = entry["capability"].as_str() else { continue };
            let state = entry["state"].as_bool().unwrap_or(false);
            known_ignore_shared |= name == IGNORE_SHARED;
            if state != wanted.contains(&name) {
                before.push((name.to_owned(), state));
            }
        }
        if !known_ignore_shared {
            return Err(QemuError::Refused(
                "this QEMU cannot leave shared memory out of a saved state (x-ignore-shared, since 4.0)"
                    .into(),
            ));
        }
        apply(client, before.iter().map(|(name, state)| (name.as_str(), !state)))?;
        Ok(Self { before })
    }

    /// Puts back what [`set`](Self::set) found. Idempotent.
    pub fn restore(&mut self, client: &mut Client) -> Result<(), QemuError> {
        let before = std::mem::take(&mut self.before);
        apply(client, before.iter().map(|(name, state)| (name.as_str(), *state)))?;
        Ok(())
    }
}

fn apply<'a>(client: &mut Client, states: impl Iterator<Item = (&'a str, bool)>) -> Result<(), QmpError> {
    let list: Vec<Value> = states.map(|(name, state)| json!({"capability": name, "state": state})).collect();
    if !list.is_empty() {
        client.execute("migrate-set-capabilities", json!({"capabilities": list}))?;
    }
    Ok(())
}
