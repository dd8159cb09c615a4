//! What the names of RAM blocks and device types say.

/// Whether a RAM block holds firmware that the guest cannot write: it travels with the ROM
/// region.
pub(super) fn is_rom_block(name: &str) -> bool {
    name.starts_with("/rom@")
        || name.ends_with(".rom")
        || matches!(name, "pc.bios" | "pc.rom" | "isa-bios" | "isa-bios-high" | "microvm.bios")
}

/// The number of a flash block, `system.flash0` and so on.
pub(super) fn is_flash_block(name: &str) -> bool {
    name.contains(".flash") || name.contains("pflash")
}

/// Why a device of this type cannot be protected, and what to do.
pub(super) fn device_refusal(kind: &str) -> Option<&'static str> {
    const NO_DIRTY: &str = "writes guest memory past QEMU's page tables, so its writes would be lost; use an emulated \
                            or virtio device in its place";
    const PUNCHES: &str = "changes guest memory without writing it (holes in its file), which dirty tracking cannot \
                           see; start the guest without it";
    const PRIVATE: &str =
        "keeps guest memory of its own that is not in a shared file; start the guest without it";
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| kind.starts_with(prefix));
    if starts(&[
        "vfio-",
        "vhost-user-",
        "vhost-vdpa-",
        "vhost-scsi",
        "vhost-vsock",
        "x-pci-proxy-dev",
        "ivshmem",
    ]) {
        return Some(NO_DIRTY);
    }
    if starts(&["virtio-balloon", "virtio-mem"]) {
        return Some(PUNCHES);
    }
    if starts(&["nvdimm", "virtio-pmem", "sgx-epc", "cxl-"]) {
        return Some(PRIVATE);
    }
    None
}
