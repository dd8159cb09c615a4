//! What must be equal on both hosts for a state to load, as sorted lines.
//!
//! Host-specific things (paths, back ends of network, disks and characters, NUMA placement) are
//! left out: they may differ.

use romulus_checkpoint::wire::message::MachineIdentity;

use super::{Inventory, names, ram};

/// Options of the machine that say nothing about the guest's state.
const MACHINE_HOST_SIDE: &[&str] = &[
    "confidential-guest-support",
    "dtb",
    "dump-guest-core",
    "dumpdtb",
    "firmware",
    "initrd",
    "kernel",
    "mem-merge",
    "memory-backend",
    "memory-encryption",
    "phandle-start",
    "graphics",
    "pflash0",
    "pflash1",
    "rtc-time",
    "suppress-vmdesc",
];

/// Properties of devices that name something of the host, or a state and no configuration.
const DEVICE_HOST_SIDE: &[&str] = &[
    "MCFG",
    "audiodev",
    "chardev",
    "drive",
    "failover_pair_id",
    "hotpluggable",
    "hotplugged",
    "iothread",
    "logfile",
    "memdev",
    "netdev",
    "realized",
    "romfile",
    "share-rw",
    "smb_io_base",
    "vhost",
    "vhostfd",
    "x-smi-negotiated-features",
];

/// Longest line; a longer one is cut, which keeps the whole inside one handshake message.
const MAX_LINE_BYTES: usize = 1024;

/// The identity of a machine.
pub fn identity(inventory: &Inventory) -> MachineIdentity {
    let mut lines = vec![
        format!("qemu {}", inventory.series),
        format!("accelerator {}", if inventory.kvm { "kvm" } else { "tcg" }),
        format!("cpu count {}", inventory.cpus),
        format!("cpu type {}", inventory.cpu_type),
        format!("memory {}", inventory.memory_bytes),
    ];
    lines.extend(inventory.cpu_features.iter().map(|feature| format!("cpu feature {feature}")));
    for block in &inventory.blocks {
        lines.push(format!("block {} {}", block.name, block.total_bytes));
    }
    for (name, value) in &inventory.machine {
        if !MACHINE_HOST_SIDE.contains(&name.as_str()) {
            lines.push(format!("machine {name}={value}"));
        }
    }
    for device in &inventory.devices {
        let mut line = format!("device {} {}", device.object.path, device.object.kind);
        for (name, value) in &device.properties {
            if !DEVICE_HOST_SIDE.contains(&name.as_str()) {
                line.push_str(&format!(" {name}={value}"));
            }
        }
        lines.push(line);
    }
    for line in &mut lines {
        if line.len() > MAX_LINE_BYTES {
            let end = (0..=MAX_LINE_BYTES).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
            line.truncate(end);
        }
    }
    lines.sort();
    lines.dedup();
    MachineIdentity { hypervisor: format!("QEMU {}", inventory.version), configuration: lines }
}

/// Bytes of ROM blocks at most, for the ROM region.
pub fn rom_bytes(inventory: &Inventory) -> u64 {
    let is_rom = |block: &&super::RamBlock| {
        block.is_rom() || (names::is_flash_block(&block.name) && ram::backend_of(inventory, block).is_none())
    };
    inventory.blocks.iter().filter(is_rom).map(|block| block.total_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Device, Object};
    use super::*;

    fn device(properties: &[(&str, &str)]) -> Inventory {
        let object = Object { path: "/machine/peripheral/n".into(), kind: "virtio-net-pci".into() };
        let properties =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Inventory { devices: vec![Device { object, properties }], ..Inventory::default() }
    }

    #[test]
    fn back_ends_may_differ_and_addresses_may_not() {
        let one = identity(&device(&[("netdev", "\"a\""), ("addr", "16")]));
        let two = identity(&device(&[("netdev", "\"b\""), ("addr", "16")]));
        let three = identity(&device(&[("netdev", "\"b\""), ("addr", "24")]));
        assert_eq!(one, two);
        assert_ne!(one, three);
        assert!(
            three.configuration.contains(&"device /machine/peripheral/n virtio-net-pci addr=24".to_owned())
        );
    }
}
