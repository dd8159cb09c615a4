//! A domain's configuration, as libxl writes it down.

use serde_json::Value;

use super::hvm;

/// What matters here of a domain's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `pvh`, `hvm` or `pv`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Disks that it may write, by their names in the domain.
    pub writable_disks: Vec<String>,
    /// Kinds of devices that it has beside disks and network cards.
    pub other_devices: Vec<String>,
    /// Why an HVM domain of it cannot be protected.
    pub hvm_reasons: Vec<String>,
    /// The whole, in JSON on one line.
    pub json: String,
}

/// Lists of devices in a configuration that cannot be protected, and what people call them.
const OTHER_DEVICES: [(&str, &str); 14] = [
    ("pcidevs", "a passed-through PCI device"),
    ("dtdevs", "a passed-through device-tree device"),
    ("rdms", "reserved device memory"),
    ("usbctrls", "a USB controller"),
    ("usbdevs", "a USB device"),
    ("p9s", "a 9p file system"),
    ("pvcallsifs", "a pvcalls interface"),
    ("vdispls", "a display"),
    ("vsnds", "a sound card"),
    ("vtpms", "a TPM"),
    ("channels", "a channel"),
    ("vfbs", "a frame buffer"),
    ("vkbs", "a keyboard"),
    ("virtios", "a virtio device"),
];

impl Config {
    /// Reads what `xl list -l DOMAIN` prints.
    pub fn read(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let first = match &value {
            Value::Array(domains) if domains.len() == 1 => &domains[0],
            Value::Object(_) => &value,
            _ => return Err("one domain's description is expected".into()),
        };
        // With the configuration inside, or being it.
        let config = first.get("config").unwrap_or(first);
        if !config.is_object() || config.get("c_info").is_none() {
            return Err("it has no c_info".into());
        }
        let text = |name: &str| config["c_info"][name].as_str().unwrap_or_default().to_owned();
        let list = |name: &str| config[name].as_array().map_or(&[][..], Vec::as_slice);
        let disks = list("disks").iter().filter(|disk| is_written(disk));
        let name = |disk: &Value| disk["vdev"].as_str().unwrap_or("?").to_owned();
        let others = OTHER_DEVICES.iter().filter(|(key, _)| !list(key).is_empty());
        Ok(Self {
            kind: text("type"),
            name: text("name"),
            writable_disks: disks.map(name).collect(),
            other_devices: others.map(|(_, what)| (*what).to_owned()).collect(),
            hvm_reasons: if text("type") == "hvm" { hvm::reasons(config) } else { Vec::new() },
            json: config.to_string(),
        })
    }
}

/// `readwrite` is a number in what libxl writes.
fn is_written(disk: &Value) -> bool {
    match &disk["readwrite"] {
        Value::Number(number) => number.as_i64() != Some(0),
        Value::Bool(written) => *written,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xl_prints_is_read() {
        let text = r#"[ { "domid": 1, "config": {
            "c_info": { "type": "pvh", "name": "guest" }, "b_info": { "max_vcpus": 1 },
            "disks": [ { "vdev": "xvda", "readwrite": 1 }, { "vdev": "xvdb", "readwrite": 0 }, { "vdev": "xvdc" } ],
            "nics": [ { "devid": 0 } ], "pcidevs": [ { "dev": 1 } ], "channels": []
        } } ]"#;
        let config = Config::read(text).unwrap();
        assert_eq!((config.kind.as_str(), config.name.as_str()), ("pvh", "guest"));
        assert_eq!(config.writable_disks, ["xvda"]);
        assert_eq!(config.other_devices, ["a passed-through PCI device"]);
        assert!(!config.json.contains('\n') && config.json.contains("\"c_info\""));
        // What is kept is read the same again.
        let again = Config::read(&config.json).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "[]", "[1]", "{}", "[{\"config\": 1}]", "null"] {
            assert!(Config::read(text).is_err(), "{text}");
        }
    }
}
