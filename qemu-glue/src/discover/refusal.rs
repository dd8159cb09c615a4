//! What cannot be protected, by name, and how to mend it.

use super::{Inventory, names, ram};
use crate::error::QemuError;

/// What the operator allows or has taken care of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowances {
    /// A writable disk, whose content would be ahead of memory after a takeover.
    pub unreplicated_disk: bool,
    /// Network cards: the caller gates their output, or the operator wants it free. Set by
    /// [`GuestOptions::gates`](crate::GuestOptions::gates).
    pub network: bool,
}

/// Refuses a guest that cannot be protected; all reasons at once.
pub fn check(inventory: &Inventory, allowed: Allowances) -> Result<(), QemuError> {
    let mut reasons = Vec::new();
    check_run_state(inventory, &mut reasons);
    check_devices(inventory, &mut reasons);
    check_blocks(inventory, &mut reasons);
    check_network(inventory, allowed, &mut reasons);
    check_disks(inventory, allowed, &mut reasons);
    for blocker in &inventory.blockers {
        reasons.push(format!("QEMU says that this guest cannot migrate: {blocker}"));
    }
    for monitor in &inventory.monitors {
        reasons.push(format!(
            "another program is connected to monitor {monitor} and could resume or change the guest; disconnect it"
        ));
    }
    if let Err(error) = ram::regions(inventory) {
        reasons.push(error.to_string());
    }
    if reasons.is_empty() { Ok(()) } else { Err(QemuError::Refused(reasons.join("; "))) }
}

fn check_run_state(inventory: &Inventory, reasons: &mut Vec<String>) {
    if !matches!(inventory.migration.as_str(), "" | "none" | "completed" | "failed" | "cancelled") {
        reasons.push(format!(
            "QEMU is migrating already (status {}): wait for its end or cancel it with migrate_cancel",
            inventory.migration
        ));
    }
    if !inventory.running {
        reasons.push(format!(
            "the guest does not run (status {}): resume it with the QMP command cont first",
            inventory.status
        ));
    }
}

fn check_devices(inventory: &Inventory, reasons: &mut Vec<String>) {
    for device in &inventory.devices {
        if let Some(why) = names::device_refusal(&device.object.kind) {
            // Virtio devices behind a bus proxy appear twice; once is enough.
            if !device.object.path.ends_with("/virtio-backend") {
                reasons.push(format!("device {} ({}) {why}", device.object.path, device.object.kind));
            }
        }
    }
    let nested = inventory.cpu_features.iter().find(|feature| matches!(feature.as_str(), "vmx" | "svm"));
    if let (true, Some(feature)) = (inventory.kvm, nested) {
        reasons.push(format!(
            "the guest's CPU offers nested virtualization ({feature}): writes of nested guests are not tracked; \
             start QEMU with -cpu MODEL,-{feature}"
        ));
    }
}

fn check_blocks(inventory: &Inventory, reasons: &mut Vec<String>) {
    for block in &inventory.blocks {
        if block.is_rom() || ram::backend_of(inventory, block).is_some() {
            continue;
        }
        let name = &block.name;
        if names::is_flash_block(name) {
            let device = format!("/{name}");
            let read_only = |disk: &super::Disk| disk.read_only && disk.device.ends_with(&device);
            if !inventory.disks.iter().any(read_only) {
                reasons.push(format!(
                    "flash {name} is writable and its content is not replicated; give it as \
                     -drive if=pflash,readonly=on"
                ));
            }
        } else if name.contains("vram") || name.contains("vga") || name.contains("qxl") {
            reasons.push(format!(
                "emulated display memory {name} is written by the guest and not in a shared file; start QEMU with \
                 -vga none"
            ));
        } else {
            reasons.push(format!(
                "memory block {name} of {} bytes is not in a shared file and may be written by the guest; \
                 start QEMU without the device it belongs to",
                block.total_bytes
            ));
        }
    }
}

fn check_network(inventory: &Inventory, allowed: Allowances, reasons: &mut Vec<String>) {
    for client in &inventory.network {
        if matches!(client.kind.as_str(), "vhost-user" | "vhost-vdpa" | "af-xdp") {
            reasons.push(format!(
                "network back end {} ({}) writes guest memory past QEMU; use tap, with vhost=on if wanted",
                client.name, client.kind
            ));
        }
        if let ("nic", Some(hub)) = (client.kind.as_str(), &client.hub) {
            reasons.push(format!(
                "network card {} shares {hub} with other cards or back ends, so that no gate could tell what is its \
                 output; give each card a back end of its own (-netdev KIND,id=ID -device CARD,netdev=ID, or -nic)",
                client.name
            ));
        }
        if client.kind == "nic" && client.has_peer && !allowed.network {
            reasons.push(format!(
                "network card {} sends output that no gate holds: take it out of the guest, give it a gate, or let \
                 its output leave unheld (--gate NIC=none)",
                client.name
            ));
        }
    }
}

fn check_disks(inventory: &Inventory, allowed: Allowances, reasons: &mut Vec<String>) {
    for disk in &inventory.disks {
        if !disk.read_only && !allowed.unreplicated_disk && !names::is_flash_block(&disk.device) {
            reasons.push(format!(
                "disk {} is writable and not replicated: after a takeover it would be ahead of memory; attach it \
                 read-only, or accept that with --allow-unreplicated-disk",
                disk.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, BackendKind, Device, Disk, NetworkClient, Object, RamBlock};
    use super::*;

    fn good() -> Inventory {
        let block = |name: &str| RamBlock { name: name.into(), total_bytes: 4096, read_only: None };
        Inventory {
            running: true,
            memory_bytes: 4096,
            backends: vec![Backend {
                id: "ram0".into(),
                kind: BackendKind::File,
                size_bytes: 4096,
                share: true,
                path: "/dev/shm/x".into(),
                discard_data: false,
            }],
            blocks: vec![block("ram0"), block("pc.bios"), block("/rom@etc/acpi/tables")],
            ..Inventory::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Inventory)) -> String {
        let mut inventory = good();
        change(&mut inventory);
        check(&inventory, Allowances::default()).expect_err("must be refused").to_string()
    }

    fn device(kind: &str) -> Device {
        let object = Object { path: format!("/machine/peripheral/{kind}0"), kind: kind.into() };
        Device { object, properties: Vec::new() }
    }

    #[test]
    fn a_plain_guest_is_accepted() {
        check(&good(), Allowances::default()).unwrap();
    }

    #[test]
    fn devices_are_named() {
        for kind in ["vfio-pci", "vhost-user-blk-pci", "virtio-balloon-pci", "virtio-mem-pci", "nvdimm"] {
            let text = refused(|inventory| inventory.devices.push(device(kind)));
            assert!(text.contains(&format!("/machine/peripheral/{kind}0")), "{text}");
        }
    }

    #[test]
    fn nested_guests_under_kvm_only() {
        let nested = |inventory: &mut Inventory| inventory.cpu_features.push("svm".into());
        let mut under_tcg = good();
        nested(&mut under_tcg);
        check(&under_tcg, Allowances::default()).unwrap();
        let text = refused(|inventory| {
            nested(inventory);
            inventory.kvm = true;
        });
        assert!(text.contains("-svm"), "{text}");
    }

    #[test]
    fn writable_memory_outside_shared_files() {
        for (name, word) in
            [("vga.vram", "-vga none"), ("system.flash1", "readonly=on"), ("odd", "block odd")]
        {
            let block = RamBlock { name: name.into(), total_bytes: 4096, read_only: None };
            let text = refused(|inventory| inventory.blocks.push(block));
            assert!(text.contains(word), "{text}");
        }
        let mut flash = good();
        flash.blocks.push(RamBlock { name: "system.flash0".into(), total_bytes: 4096, read_only: None });
        flash.disks.push(Disk {
            name: "pflash0".into(),
            device: "/machine/system.flash0".into(),
            read_only: true,
        });
        check(&flash, Allowances::default()).unwrap();
    }

    #[test]
    fn disks_and_cards_need_a_word_of_the_operator() {
        let disk = Disk { name: "virtio0".into(), device: "/machine/peripheral/d".into(), read_only: false };
        let card = NetworkClient {
            name: "net0".into(),
            kind: "nic".into(),
            has_peer: true,
            ..NetworkClient::default()
        };
        assert!(
            refused(|inventory| inventory.disks.push(disk.clone())).contains("--allow-unreplicated-disk")
        );
        assert!(refused(|inventory| inventory.network.push(card.clone())).contains("net0"));
        let mut inventory = good();
        inventory.disks.push(disk);
        inventory.network.push(card);
        check(&inventory, Allowances { unreplicated_disk: true, network: true }).unwrap();
        let user = NetworkClient {
            name: "n".into(),
            kind: "vhost-user".into(),
            has_peer: true,
            ..NetworkClient::default()
        };
        assert!(refused(|inventory| inventory.network.push(user)).contains("vhost-user"));
    }

    #[test]
    fn i1_cards_that_share_a_hub_are_refused_whatever_is_allowed() {
        let card = NetworkClient {
            name: "net0".into(),
            kind: "nic".into(),
            has_peer: true,
            hub: Some("hub 0".into()),
            ..NetworkClient::default()
        };
        let mut inventory = good();
        inventory.network.push(card);
        let error = check(&inventory, Allowances { network: true, ..Allowances::default() }).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("net0") && text.contains("hub 0") && text.contains("-netdev"), "{text}");
    }

    #[test]
    fn run_state_blockers_and_monitors() {
        assert!(refused(|inventory| inventory.migration = "active".into()).contains("migrating already"));
        assert!(refused(|inventory| inventory.running = false).contains("cont first"));
        assert!(refused(|inventory| inventory.blockers.push("no vmstate".into())).contains("no vmstate"));
        assert!(refused(|inventory| inventory.monitors.push("charmonitor".into())).contains("charmonitor"));
    }
}
