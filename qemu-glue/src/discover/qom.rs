//! QEMU's object tree.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::qmp::{Client, QmpError};

/// Objects read at most: a guest with more is not one that people run.
const MAX_OBJECTS: usize = 20_000;

/// An object of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its path.
    pub path: String,
    /// Its type.
    pub kind: String,
}

/// A device with those of its properties that differ from their default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where and what.
    pub object: Object,
    /// Name and value as JSON text, sorted by name.
    pub properties: Vec<(String, String)>,
}

/// All objects below `root` but memory regions and interrupt lines, parents first.
pub(super) fn walk(client: &mut Client, root: &str) -> Result<Vec<Object>, QmpError> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        for entry in list(client, &path)? {
            let (Some(name), Some(kind)) = (entry["name"].as_str(), entry["type"].as_str()) else { continue };
            let Some(kind) = kind.strip_prefix("child<").and_then(|kind| kind.strip_suffix('>')) else {
                continue;
            };
            if matches!(kind, "memory-region" | "irq") {
                continue;
            }
            let object = Object { path: format!("{path}/{name}"), kind: kind.to_owned() };
            open.push(object.path.clone());
            found.push(object);
            if found.len() > MAX_OBJECTS {
                return Err(QmpError::Protocol(format!("more than {MAX_OBJECTS} objects under {root}")));
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}

/// The properties of an object: name and type.
pub(super) fn list(client: &mut Client, path: &str) -> Result<Vec<Value>, QmpError> {
    match client.execute("qom-list", json!({"path": path}))? {
        Value::Array(entries) => Ok(entries),
        _ => Ok(Vec::new()),
    }
}

/// A property's value; `None` if QEMU cannot say.
pub(super) fn get(client: &mut Client, path: &str, property: &str) -> Result<Option<Value>, QmpError> {
    match client.execute("qom-get", json!({"path": path, "property": property})) {
        Ok(value) => Ok(Some(value)),
        Err(QmpError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the properties of devices, asking once for what each type has.
#[derive(Default)]
pub(super) struct DeviceReader {
    types: BTreeMap<String, Option<Vec<(String, Value)>>>,
}

impl DeviceReader {
    /// The device at `object`, or `None` when it is no device.
    pub(super) fn read(&mut self, client: &mut Client, object: &Object) -> Result<Option<Device>, QmpError> {
        if !self.types.contains_key(&object.kind) {
            let known = properties_of_type(client, &object.kind)?;
            self.types.insert(object.kind.clone(), known);
        }
        let Some(Some(known)) = self.types.get(&object.kind) else { return Ok(None) };
        let mut properties = Vec::new();
        for (name, default) in known {
            if let Some(value) = get(client, &object.path, name)?.filter(|value| value != default) {
                properties.push((name.clone(), value.to_string()));
            }
        }
        properties.sort();
        Ok(Some(Device { object: object.clone(), properties }))
    }
}

fn properties_of_type(client: &mut Client, kind: &str) -> Result<Option<Vec<(String, Value)>>, QmpError> {
    let answer = match client.execute("device-list-properties", json!({"typename": kind})) {
        Ok(answer) => answer,
        Err(QmpError::Refused { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Value::Array(entries) = answer else { return Ok(None) };
    // What has a default is configuration; the rest is mostly state that changes as the guest
    // runs, but for these.
    const CONFIGURATION: [&str; 7] = ["mac", "serial", "bootindex", "wwn", "port", "uuid", "bus"];
    let known = entries.iter().filter_map(|entry| {
        let name = entry["name"].as_str()?;
        let kind = entry["type"].as_str().unwrap_or_default();
        let plain = !kind.starts_with("link<") && !kind.starts_with("child<");
        let configures = entry.get("default-value").is_some() || CONFIGURATION.contains(&name);
        (plain && configures).then(|| (name.to_owned(), entry["default-value"].clone()))
    });
    Ok(Some(known.collect()))
}
