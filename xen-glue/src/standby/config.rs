//! The standby's own configuration: the guest's under another name.
//!
//! It comes from a peer, and `xl` reads it as root: nothing of it may name a program that runs here, or
//! a device or file of this host that its operator has not allowed.

use serde_json::{Map, Value};

use crate::discover::config::Config;
use crate::discover::hvm::{self, is_set};

/// Behind a guest's name while its standby waits.
pub const SUFFIX: &str = "--standby";
/// Longest name of a domain that a standby is built for.
const MAX_NAME_BYTES: usize = 200;

/// Where scripts for devices are looked for by xl.
const SCRIPTS: &str = "/etc/xen/scripts/";
/// Settings of `b_info` that name programs, their arguments, or hardware of this host.
const NOT_A_PEERS: [&str; 15] = [
    "device_model",
    "device_model_ssid_label",
    "device_model_user",
    "stubdomain_kernel",
    "stubdomain_ramdisk",
    "stubdomain_cmdline",
    "bootloader",
    "bootloader_args",
    "dm_restrict",
    "extra",
    "extra_pv",
    "extra_hvm",
    "ioports",
    "irqs",
    "iomem",
];

/// What would be refused otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyAllowances {
    /// Disks, and the kernel that an HVM domain's device model reads, which are files and devices of this
    /// host by the primary's word.
    pub disks: bool,
}

/// A standby's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyConfig {
    /// The guest's name, which the standby gets when it takes over.
    pub guest: String,
    /// The name until then.
    pub name: String,
    /// Whether libxl starts a device model with it.
    pub has_device_model: bool,
    /// The whole in JSON, as libxl reads it.
    pub json: String,
}

impl StandbyConfig {
    /// From the guest's configuration.
    ///
    /// # Errors
    /// Says what keeps a standby from being built from it.
    pub fn of_guest(json: &str, may_have: StandbyAllowances) -> Result<Self, String> {
        // What is checked is what xl gets: both are of this reading.
        let mut config: Value =
            serde_json::from_str(&Config::read(json)?.json).map_err(|error| error.to_string())?;
        check(config.as_object().ok_or("it is no object")?, may_have)?;
        check_device_model(&config, may_have)?;
        let info = config.get_mut("c_info").and_then(Value::as_object_mut).ok_or("it has no c_info")?;
        let kind = info.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind != "pvh" && kind != "hvm" {
            return Err(format!(
                "it is of type {kind:?}: a standby can be built of PVH and HVM domains (type = \"pvh\", \"hvm\")"
            ));
        }
        let has_device_model = kind == "hvm";
        let guest = info.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if guest.is_empty() || guest.len() > MAX_NAME_BYTES || guest.contains(['/', '\0']) {
            return Err(format!("its name {guest:?} is none"));
        }
        let name = format!("{guest}{SUFFIX}");
        info.insert("name".into(), name.clone().into());
        // The number that it has at the primary may be taken here.
        info.remove("domid");
        Ok(Self { guest, name, has_device_model, json: config.to_string() })
    }
}

/// What the peer may not decide.
fn check(config: &Map<String, Value>, may_have: StandbyAllowances) -> Result<(), String> {
    let info = |name: &str| config.get(name).and_then(Value::as_object);
    for (name, value) in config {
        let known = matches!(name.as_str(), "nics" | "disks");
        if value.is_array() && is_set(value) && !known {
            return Err(format!("it has {name}, which a standby cannot have"));
        }
    }
    if let Some(build) = info("b_info") {
        let says = |name: &str| build.get(name).is_some_and(is_set);
        let others: &[&str] = if is_hvm(config) { &["type.pvh"] } else { &["type.hvm"] };
        let refused = NOT_A_PEERS.iter().chain(&["type.pv", "device_model_stubdomain"]).chain(others);
        if let Some(name) = refused.copied().find(|name| says(name)) {
            return Err(format!(
                "its b_info sets {name}, and a peer may not say what runs here or which hardware is given away: leave it out"
            ));
        }
    }
    if info("c_info").and_then(|info| info.get("driver_domain")).is_some_and(is_set) {
        return Err("it is a driver domain (driver_domain), which a standby cannot be".into());
    }
    for kind in ["nics", "disks"] {
        let Some(list) = config.get(kind).filter(|value| is_set(value)) else { continue };
        let list = list.as_array().ok_or_else(|| format!("its {kind} are no list"))?;
        for device in list {
            check_device(kind, device)?;
        }
        if kind == "disks" && !may_have.disks {
            let paths: Vec<&str> =
                list.iter().map(|disk| disk["pdev_path"].as_str().unwrap_or("?")).collect();
            return Err(format!(
                "it has disks ({}), files or devices of this host by the primary's word: say --allow-standby-disks here \
                 if its guest may have them",
                paths.join(", ")
            ));
        }
    }
    Ok(())
}

fn is_hvm(config: &Map<String, Value>) -> bool {
    config.get("c_info").is_some_and(|info| info["type"] == "hvm")
}

/// What the peer may not decide of a device model, which runs here as root.
fn check_device_model(config: &Value, may_have: StandbyAllowances) -> Result<(), String> {
    if !config.as_object().is_some_and(is_hvm) {
        return Ok(());
    }
    let reasons = hvm::reasons(config);
    if !reasons.is_empty() {
        return Err(reasons.join("; "));
    }
    let build = &config["b_info"];
    // A device model reads them when it starts, and its guest can read what it has read.
    match ["kernel", "ramdisk"].into_iter().find(|name| is_set(&build[name]) && !may_have.disks) {
        Some(name) => Err(format!(
            "its {name} ({}) is a file of this host by the primary's word: say --allow-standby-disks here if its guest \
             may have it",
            build[name]
        )),
        None => Ok(()),
    }
}

/// A script is named as xl looks for it: without a folder, or in the host's own one.
fn check_device(kind: &str, device: &Value) -> Result<(), String> {
    if !device.is_object() {
        return Err(format!("one of its {kind} is no object"));
    }
    let script = &device["script"];
    if !is_set(script) {
        return Ok(());
    }
    let name = script.as_str().map(|text| text.strip_prefix(SCRIPTS).unwrap_or(text));
    if name.is_some_and(|name| !name.is_empty() && name != ".." && !name.contains(['/', '\0'])) {
        return Ok(());
    }
    Err(format!(
        "one of its {kind} has the script {script}: a peer may name only scripts in {SCRIPTS}; install it there on both \
         hosts"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_guest(text: &str) -> Result<StandbyConfig, String> {
        StandbyConfig::of_guest(text, StandbyAllowances::default())
    }

    fn with(rest: &str) -> String {
        format!(r#"{{"c_info":{{"type":"pvh","name":"vm"}},{rest}}}"#)
    }

    #[test]
    fn what_xl_writes_of_a_plain_domain_is_taken() {
        let text = with(
            r#""b_info":{"max_vcpus":1,"device_model_version":"qemu_xen","bootloader":"","type.pvh":{"pvshim":"False"},
            "device_model_stubdomain":"False","kernel":"/boot/vmlinuz"},"on_reboot":"restart","pcidevs":[],
            "nics":[{"devid":0,"script":"/etc/xen/scripts/vif-bridge"},{"script":"vif-lab"},{"script":null}]"#,
        );
        of_guest(&text).unwrap();
    }

    #[test]
    fn a_peer_does_not_say_what_runs_here() {
        for (rest, word) in [
            (r#""nics":[{"script":"/tmp/evil"}]"#, "/tmp/evil"),
            (r#""nics":[{"script":"/etc/xen/scripts/../../../tmp/evil"}]"#, "/tmp/evil"),
            (r#""nics":[{"script":"a/b"}]"#, "a/b"),
            (r#""nics":[{"script":".."}]"#, ".."),
            (r#""nics":[{"script":["x"]}]"#, "script"),
            (r#""nics":{"0":{"script":"/tmp/evil"}}"#, "no list"),
            (r#""disks":[{"script":"/tmp/evil","pdev_path":"p"}]"#, "/tmp/evil"),
            (r#""disks":[{"pdev_path":"/dev/sda"}]"#, "--allow-standby-disks"),
            (r#""pcidevs":[{"dev":1}]"#, "pcidevs"),
            (r#""hdisks":[{}]"#, "hdisks"),
            (r#""b_info":{"device_model":"/tmp/evil"}"#, "device_model"),
            (r#""b_info":{"bootloader":"/tmp/evil"}"#, "bootloader"),
            (r#""b_info":{"extra":["-x"]}"#, "extra"),
            (r#""b_info":{"iomem":[{"start":1}]}"#, "iomem"),
            (r#""b_info":{"type.hvm":{"bios":"x"}}"#, "type.hvm"),
            (r#""b_info":{"type.pv":{"kernel":"x"}}"#, "type.pv"),
            (r#""b_info":{"device_model_stubdomain":"True"}"#, "stubdomain"),
        ] {
            let why = of_guest(&with(rest)).unwrap_err();
            assert!(why.contains(word), "{rest}: {why}");
        }
    }

    fn hvm(build: &str, hvm: &str) -> String {
        format!(
            r#"{{"c_info":{{"type":"hvm","name":"vm"}},"b_info":{{{build}"type.hvm":{{"vga":{{"kind":"none"}},
            "vnc":{{"enable":"False"}}{hvm}}}}},
            "nics":[{{"nictype":"vif","script":"vif-lab"}}]}}"#
        )
    }

    #[test]
    fn an_hvm_domain_is_taken_if_its_device_model_only_emulates() {
        let config = of_guest(&hvm("", r#","bios":"seabios","serial":"pty""#)).unwrap();
        assert!(config.has_device_model && config.json.contains("\"hvm\""));
        assert!(!of_guest(&with(r#""nics":[]"#)).unwrap().has_device_model);
        for (build, inner, word) in [
            ("", r#","serial":"tcp::1""#, "serial"),
            ("", r#","system_firmware":"/tmp/evil""#, "system_firmware"),
            (r#""device_model":"/tmp/evil","#, "", "device_model"),
            (r#""extra_hvm":["-x"],"#, "", "extra_hvm"),
            (r#""type.pvh":{"pvshim":"True"},"#, "", "type.pvh"),
            (r#""ramdisk":"/etc/shadow","#, "", "--allow-standby-disks"),
            (r#""kernel":"/boot/vmlinuz","#, "", "--allow-standby-disks"),
        ] {
            let text = hvm(build, inner);
            let why = of_guest(&text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
        let may_have = StandbyAllowances { disks: true };
        assert!(StandbyConfig::of_guest(&hvm(r#""kernel":"/boot/vmlinuz","#, ""), may_have).is_ok());
    }

    #[test]
    fn disks_are_for_the_operator_to_allow_and_their_scripts_are_not() {
        let may_have = StandbyAllowances { disks: true };
        assert!(StandbyConfig::of_guest(&with(r#""disks":[{"pdev_path":"/dev/sda"}]"#), may_have).is_ok());
        assert!(StandbyConfig::of_guest(&with(r#""disks":[{"script":"/tmp/evil"}]"#), may_have).is_err());
    }

    #[test]
    fn what_is_checked_is_what_xl_gets() {
        // Twice, and as xl list -l has it.
        let text = with(r#""nics":[{"script":"/tmp/evil"}],"nics":[]"#);
        assert!(!of_guest(&text).unwrap().json.contains("evil"));
        let good = r#"{"c_info":{"type":"pvh","name":"vm"}}"#;
        let text =
            format!(r#"{{"config":{good},"c_info":{{"type":"pvh","name":"vm"}},"pcidevs":[{{"dev":1}}]}}"#);
        assert!(!of_guest(&text).unwrap().json.contains("pcidevs"));
    }

    #[test]
    fn a_standby_has_another_name_and_no_number_and_is_the_same_otherwise() {
        let text = r#"{"c_info":{"type":"pvh","name":"vm","uuid":"u","domid":7},"nics":[{"mac":"m"}]}"#;
        let config = of_guest(text).unwrap();
        assert_eq!((config.guest.as_str(), config.name.as_str()), ("vm", "vm--standby"));
        let value: Value = serde_json::from_str(&config.json).unwrap();
        let expected = r#"{"c_info":{"type":"pvh","name":"vm--standby","uuid":"u"},"nics":[{"mac":"m"}]}"#;
        assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn what_no_standby_can_be_built_of_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"c_info":{"type":"pvh"}}"#,
            r#"{"c_info":{"type":"pvh","name":"a/b"}}"#,
            r#"{"c_info":{"type":"hvm","name":"vm"}}"#,
        ] {
            assert!(of_guest(text).is_err(), "{text}");
        }
    }
}
