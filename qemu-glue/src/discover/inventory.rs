//! All questions to a running QEMU, in one place.

use serde_json::{Value, json};

use super::blocks::{self, RamBlock};
use super::network::{self, NetworkClient};
use super::qom::{self, Device, DeviceReader, Object};
use crate::qmp::{Client, QmpError};

/// How a memory backend holds its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// `memory-backend-file`: the one that serves.
    File,
    /// `memory-backend-memfd`.
    Memfd,
    /// `memory-backend-ram` and others.
    Other,
}

/// A memory backend object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: BackendKind,
    /// Length in bytes.
    pub size_bytes: u64,
    /// `share=on`.
    pub share: bool,
    /// `mem-path`, for files.
    pub path: String,
    /// `discard-data=on`.
    pub discard_data: bool,
}

/// A disk, floppy or CD with a medium in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What to call it: QEMU's name, or the path of its device.
    pub name: String,
    /// The device it belongs to, as a QOM path; may be empty.
    pub device: String,
    /// It cannot be written.
    pub read_only: bool,
}

/// What a QEMU process runs.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// `7.2.22`.
    pub version: String,
    /// `7.2`.
    pub series: String,
    /// The guest's name, if it has one.
    pub guest_name: Option<String>,
    /// `running`, `paused`, `inmigrate`, ...
    pub status: String,
    /// Whether the vCPUs run.
    pub running: bool,
    /// Status of the last migration; empty if there was none.
    pub migration: String,
    /// Why QEMU itself would refuse to migrate.
    pub blockers: Vec<String>,
    /// Migration capabilities that are on.
    pub capabilities: Vec<String>,
    /// KVM, not TCG.
    pub kvm: bool,
    /// Number of vCPUs.
    pub cpus: usize,
    /// Type of the vCPUs.
    pub cpu_type: String,
    /// CPU features that are on.
    pub cpu_features: Vec<String>,
    /// Guest memory in bytes, DIMMs included.
    pub memory_bytes: u64,
    /// Memory backends.
    pub backends: Vec<Backend>,
    /// RAM blocks.
    pub blocks: Vec<RamBlock>,
    /// Disks with a medium.
    pub disks: Vec<Disk>,
    /// Network cards and back ends.
    pub network: Vec<NetworkClient>,
    /// Other monitors that somebody is connected to.
    pub monitors: Vec<String>,
    /// Options of the machine: name and value.
    pub machine: Vec<(String, String)>,
    /// Devices.
    pub devices: Vec<Device>,
    /// It has `xen-save-devices-state`.
    pub saves_devices: bool,
    /// Where the process has the guest's physical address 0, if QEMU says.
    pub address_of_zero: Option<u64>,
}

impl Inventory {
    /// Asks a QEMU.
    pub fn take(client: &mut Client) -> Result<Self, QmpError> {
        let mut inventory = Self::default();
        inventory.take_version(client)?;
        inventory.take_status(client)?;
        inventory.take_memory(client)?;
        inventory.take_surroundings(client)?;
        inventory.take_cpus(client)?;
        inventory.take_machine(client)?;
        Ok(inventory)
    }

    fn take_version(&mut self, client: &mut Client) -> Result<(), QmpError> {
        let version = client.execute("query-version", json!({}))?;
        let part = |name: &str| version["qemu"][name].as_u64().unwrap_or_default();
        self.series = format!("{}.{}", part("major"), part("minor"));
        self.version = format!("{}.{}", self.series, part("micro"));
        let name = client.execute("query-name", json!({}))?;
        self.guest_name = name["name"].as_str().map(str::to_owned);
        let commands = client.execute("query-commands", json!({}))?;
        self.saves_devices = array(&commands).iter().any(|entry| entry["name"] == "xen-save-devices-state");
        Ok(())
    }

    fn take_status(&mut self, client: &mut Client) -> Result<(), QmpError> {
        let status = client.execute("query-status", json!({}))?;
        self.status = text(&status["status"]);
        self.running = status["running"].as_bool().unwrap_or(false);
        let migration = client.execute("query-migrate", json!({}))?;
        self.migration = text(&migration["status"]);
        self.blockers = texts(&migration["blocked-reasons"]);
        let capabilities = client.execute("query-migrate-capabilities", json!({}))?;
        let on = |entry: &&Value| entry["state"].as_bool().unwrap_or(false);
        self.capabilities =
            array(&capabilities).iter().filter(on).map(|entry| text(&entry["capability"])).collect();
        Ok(())
    }

    fn take_memory(&mut self, client: &mut Client) -> Result<(), QmpError> {
        let summary = client.execute("query-memory-size-summary", json!({}))?;
        self.memory_bytes = summary["base-memory"].as_u64().unwrap_or_default()
            + summary["plugged-memory"].as_u64().unwrap_or_default();
        self.blocks = blocks::parse(&client.human("info ramblock")?);
        for object in qom::walk(client, "/objects")? {
            if object.kind.starts_with("memory-backend-") {
                self.backends.push(backend(client, &object)?);
            }
        }
        let zero = client.human("gpa2hva 0")?;
        self.address_of_zero =
            zero.rsplit_once("0x").and_then(|(_, digits)| u64::from_str_radix(digits.trim(), 16).ok());
        Ok(())
    }

    fn take_surroundings(&mut self, client: &mut Client) -> Result<(), QmpError> {
        self.network = network::parse(&client.human("info network")?);
        let blocks = client.execute("query-block", json!({}))?;
        for entry in array(&blocks) {
            let Some(medium) = entry.get("inserted").filter(|medium| medium.is_object()) else { continue };
            let device = text(&entry["qdev"]);
            let name = [text(&entry["device"]), device.clone(), text(&medium["file"])];
            self.disks.push(Disk {
                name: name.into_iter().find(|name| !name.is_empty()).unwrap_or_default(),
                device,
                read_only: medium["ro"].as_bool().unwrap_or(false),
            });
        }
        let own = client.path().to_string_lossy().into_owned();
        let chardevs = client.execute("query-chardev", json!({}))?;
        for entry in array(&chardevs) {
            let (label, file) = (text(&entry["label"]), text(&entry["filename"]));
            let connected =
                ["unix:", "tcp:", "telnet:", "websocket:"].iter().any(|kind| file.starts_with(kind));
            if label.contains("monitor") && connected && !file.contains(&own) {
                self.monitors.push(format!("{label} ({file})"));
            }
        }
        Ok(())
    }

    fn take_cpus(&mut self, client: &mut Client) -> Result<(), QmpError> {
        let kvm = client.execute("query-kvm", json!({}))?;
        self.kvm = kvm["enabled"].as_bool().unwrap_or(false);
        let cpus = client.execute("query-cpus-fast", json!({}))?;
        self.cpus = array(&cpus).len();
        let path = text(&cpus[0]["qom-path"]);
        self.cpu_type = qom::get(client, &path, "type")?.map(|kind| text(&kind)).unwrap_or_default();
        for entry in qom::list(client, &path)? {
            let (name, kind) = (text(&entry["name"]), text(&entry["type"]));
            let is_state =
                matches!(name.as_str(), "realized" | "hotplugged" | "hotpluggable" | "start-powered-off");
            if kind == "bool" && !is_state && qom::get(client, &path, &name)? == Some(Value::Bool(true)) {
                self.cpu_features.push(name);
            }
        }
        self.cpu_features.sort();
        self.cpu_features.dedup();
        Ok(())
    }

    fn take_machine(&mut self, client: &mut Client) -> Result<(), QmpError> {
        for entry in qom::list(client, "/machine")? {
            let (name, kind) = (text(&entry["name"]), text(&entry["type"]));
            if kind.starts_with("child<") || kind.starts_with("link<") {
                continue;
            }
            if let Some(value) = qom::get(client, "/machine", &name)? {
                self.machine.push((name, value.to_string()));
            }
        }
        self.machine.sort();
        let mut reader = DeviceReader::default();
        for object in qom::walk(client, "/machine")? {
            // The features of a vCPU are compared as such; asking for hundreds of properties of
            // each would take seconds on a large guest.
            if object.kind == self.cpu_type {
                self.devices.push(Device { object, properties: Vec::new() });
            } else if let Some(device) = reader.read(client, &object)? {
                self.devices.push(device);
            }
        }
        Ok(())
    }
}

fn backend(client: &mut Client, object: &Object) -> Result<Backend, QmpError> {
    let mut get = |name: &str| qom::get(client, &object.path, name).map(Option::unwrap_or_default);
    Ok(Backend {
        id: object.path.rsplit('/').next().unwrap_or_default().to_owned(),
        kind: match object.kind.as_str() {
            "memory-backend-file" => BackendKind::File,
            "memory-backend-memfd" => BackendKind::Memfd,
            _ => BackendKind::Other,
        },
        size_bytes: get("size")?.as_u64().unwrap_or_default(),
        share: get("share")?.as_bool().unwrap_or(false),
        path: text(&get("mem-path")?),
        discard_data: get("discard-data")?.as_bool().unwrap_or(false),
    })
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    array(value).iter().map(text).collect()
}
