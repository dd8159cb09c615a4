//! What of an HVM domain's configuration can be protected, as libxl writes it down. The primary refuses
//! by it, and so does the standby, whose device model is started by a peer's words.

use serde_json::{Map, Value};

/// Settings of `type.hvm` that only say what the domain's hardware is.
const HARDWARE: [&str; 17] = [
    "bios",
    "pae",
    "apic",
    "acpi",
    "acpi_s3",
    "acpi_s4",
    "acpi_laptop_slate",
    "nx",
    "hpet",
    "vpt_align",
    "mmio_hole_memkb",
    "timer_mode",
    "timeoffset",
    "xen_platform_pci",
    "hdtype",
    "boot",
    "rdm",
];
/// Screens that a device model offers when it is told to.
const SCREENS: [&str; 2] = ["sdl", "spice"];

/// Whether anything is said: not null, not `<default>`, not empty.
pub fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !matches!(text.as_str(), "" | "<default>" | "False"),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Why a domain of this configuration cannot be protected, each with what to do; empty if there is
/// nothing. `config` is of a domain of type `hvm`.
pub fn reasons(config: &Value) -> Vec<String> {
    let mut reasons = Vec::new();
    let build = &config["b_info"];
    let version = &build["device_model_version"];
    if is_set(version) && version != "qemu_xen" {
        reasons.push(format!(
            "its device model is {version}, which cannot save its state while the domain lives: \
             device_model_version = \"qemu-xen\""
        ));
    }
    if is_set(&build["device_model_stubdomain"]) {
        reasons.push("its device model runs in a stub domain: device_model_stubdomain_override = 0".into());
    }
    for name in ["dm_restrict", "device_model_user"] {
        if is_set(&build[name]) {
            reasons.push(format!(
                "its device model runs with fewer rights ({name}) and cannot hand over its state: leave {name} out"
            ));
        }
    }
    for name in ["device_model", "extra", "extra_hvm"] {
        if is_set(&build[name]) {
            reasons.push(format!("its device model has words of its own ({name}): leave {name} out"));
        }
    }
    let none = Map::new();
    let hvm = build["type.hvm"].as_object().unwrap_or(&none);
    // xl writes down what it chose itself.
    if hvm.get("vga").is_none_or(|vga| vga["kind"] != "none") {
        reasons.push(
            "it has an emulated graphics card, whose memory the device model keeps apart from the domain's: \
             vga = \"none\", with serial = \"pty\" or the console of Xen"
                .into(),
        );
    }
    // libxl's default is a screen on a port.
    if !hvm.get("vnc").is_some_and(|vnc| vnc["enable"] == "False" || vnc["enable"] == false) {
        reasons.push("its device model offers a screen (vnc): vnc = 0".into());
    }
    for (name, value) in
        hvm.iter().filter(|(name, value)| is_set(value) && !["vga", "vnc"].contains(&name.as_str()))
    {
        match name.as_str() {
            // It becomes part of a QEMU's words.
            "boot"
                if !value
                    .as_str()
                    .is_some_and(|order| order.bytes().all(|byte| byte.is_ascii_lowercase())) =>
            {
                reasons.push(format!("its boot order {value} is no list of letters: boot = \"c\""));
            }
            name if HARDWARE.contains(&name) && !(value.is_array() || name != "rdm" && value.is_object()) => {
                if name == "rdm" && is_set(&value["strategy"]) {
                    reasons.push(
                        "it reserves memory of devices (rdm), which is for passed-through ones: leave it out"
                            .into(),
                    );
                }
            }
            "serial" if value == "pty" || value == "none" || value == "null" => {}
            name if SCREENS.contains(&name) => {
                if is_set(&value["enable"]) {
                    reasons.push(format!("its device model offers a screen ({name}): {name} = 0"));
                }
            }
            _ => reasons.push(format!(
                "its setting {name} = {value} is not among those that a standby can be given: leave it out"
            )),
        }
    }
    let disks = config["disks"].as_array().map_or(&[][..], Vec::as_slice);
    for disk in disks.iter().filter(|disk| !is_set(&disk["is_cdrom"]) && disk["backend"] != "phy") {
        reasons.push(format!(
            "its disk {} is served by the device model, and would not come back with another: a block device (phy:) or \
             a compact disc",
            disk["pdev_path"]
        ));
    }
    let cards = config["nics"].as_array().map_or(&[][..], Vec::as_slice);
    if cards.iter().any(|card| card["nictype"] != "vif") {
        reasons.push(
            "it has an emulated network card, whose output goes out by an interface that is not held: type=vif in \
             each line of vif"
                .into(),
        );
    }
    reasons
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As `xl list -l` writes it of the lab's domain.
    fn plain() -> Value {
        json!({
            "c_info": {"type": "hvm", "name": "demo", "run_hotplug_scripts": "True"},
            "b_info": {
                "max_vcpus": 1, "device_model_version": "qemu_xen", "device_model_stubdomain": "False",
                "type.hvm": {
                    "bios": "seabios", "hdtype": "ide", "boot": "c", "usb": "False", "rdm": {}, "serial": "pty",
                    "vga": {"kind": "none"}, "vnc": {"enable": "False"}, "sdl": {"enable": "False"}, "spice": {},
                    "acpi": "True", "timer_mode": "no_delay_for_missed_ticks"
                }
            },
            "nics": [{"devid": 0, "nictype": "vif"}]
        })
    }

    fn why(change: impl FnOnce(&mut Value)) -> String {
        let mut config = plain();
        change(&mut config);
        reasons(&config).join("; ")
    }

    #[test]
    fn a_pc_without_screen_and_with_cards_of_xens_is_taken() {
        assert_eq!(why(|_| ()), "");
        assert_eq!(why(|config| config["nics"] = json!([])), "");
    }

    #[test]
    fn what_cannot_be_saved_or_held_is_named_with_the_way_out() {
        let hvm = |name: &str, value: Value| why(|config| config["b_info"]["type.hvm"][name] = value);
        let build = |name: &str, value: Value| why(|config| config["b_info"][name] = value);
        for kind in ["cirrus", "std", "qxl", "unknown"] {
            assert!(hvm("vga", json!({"kind": kind})).contains("vga = \"none\""));
        }
        assert!(build("type.hvm", json!({})).contains("vga = \"none\""), "the default is a graphics card");
        assert!(build("device_model_version", json!("qemu_xen_traditional")).contains("qemu-xen"));
        assert!(build("device_model_stubdomain", json!("True")).contains("stub domain"));
        assert!(build("dm_restrict", json!("True")).contains("dm_restrict"));
        assert!(build("device_model_user", json!("nobody")).contains("device_model_user"));
        for cards in [json!([{"nictype": "vif_ioemu"}]), json!([{"nictype": "vif"}, {}])] {
            assert!(why(|config| config["nics"] = cards).contains("type=vif"));
        }
        for screen in [
            json!({"enable": "True"}),
            json!({"enable": "<default>"}),
            json!({"listen": "unix:/x"}),
            json!({}),
        ] {
            assert!(hvm("vnc", screen).contains("vnc = 0"));
        }
        assert!(hvm("sdl", json!({"enable": "True"})).contains("sdl = 0"));
        for disks in [json!([{"pdev_path": "/a.img", "backend": "qdisk"}]), json!([{"pdev_path": "/a.img"}])]
        {
            assert!(why(|config| config["disks"] = disks).contains("/a.img"));
        }
        assert_eq!(why(|config| config["disks"] = json!([{"is_cdrom": 1}, {"backend": "phy"}])), "");
        assert!(hvm("usb", json!("True")).contains("usb"));
        assert!(hvm("usbdevice_list", json!(["host:1"])).contains("usbdevice_list"));
        assert!(hvm("gfx_passthru", json!("True")).contains("gfx_passthru"));
        assert!(hvm("rdm", json!({"strategy": "host"})).contains("rdm"));
    }

    #[test]
    fn what_names_files_or_ports_of_a_host_is_refused() {
        let hvm = |name: &str, value: Value| why(|config| config["b_info"]["type.hvm"][name] = value);
        for serial in ["tcp::4444,server", "file:/etc/passwd", "/dev/ttyS0"] {
            assert!(hvm("serial", json!(serial)).contains("serial"), "{serial}");
        }
        for name in
            ["firmware", "system_firmware", "smbios_firmware", "acpi_firmware", "keymap", "serial_list"]
        {
            assert!(hvm(name, json!(["/tmp/evil"])).contains(name), "{name}");
            assert!(hvm(name, json!("/tmp/evil")).contains(name), "{name}");
        }
        for order in [json!(["c"]), json!("c,splash=/etc/shadow")] {
            assert!(hvm("boot", order).contains("boot"), "only letters");
        }
        for name in ["device_model", "extra", "extra_hvm"] {
            assert!(why(|config| config["b_info"][name] = json!(["-device", "x"])).contains(name));
        }
        assert!(hvm("bios", json!({"x": 1})).contains("bios"), "only plain words");
    }
}
