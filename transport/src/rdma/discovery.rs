//! Finds the devices: names, identifiers and GID tables with the `ibverbs` crate, ports with the
//! verbs of the data path, the rest in sysfs.

use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

use super::devices::{DeviceInfo, GidInfo, GidKind, LinkKind, PortInfo, PortState};
use super::verbs::{Context, LinkLayer, OpenError, PortAttributes, prepare};
use crate::error::TransportError;

const SYSFS: &str = "/sys/class/infiniband";

/// See [`super::devices::devices`].
pub(super) fn devices() -> Result<Vec<DeviceInfo>, TransportError> {
    prepare();
    let list = ibverbs::devices().map_err(|error| TransportError::NoDevice(no_list(&error)))?;
    let found: Vec<DeviceInfo> = list.iter().filter_map(|device| describe(&device)).collect();
    if found.is_empty() {
        let why = "the kernel knows RDMA, but no device; load the driver of the network card, or \
                   make a soft-RoCE device with `rdma link add rxe0 type rxe netdev NAME`";
        return Err(TransportError::NoDevice(why.into()));
    }
    Ok(found)
}

fn no_list(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no RDMA (ENOSYS); load ib_uverbs and the network \
                               card's RDMA driver, or rdma_rxe for soft-RoCE, or use the tcp fabric"
            .into(),
        Some(libc::EPERM | libc::EACCES) => {
            format!(
                "listing the devices is not permitted ({error}); run as root, or give access to /dev/infiniband"
            )
        }
        _ => format!("listing the devices failed: {error}"),
    }
}

fn describe(device: &ibverbs::Device<'_>) -> Option<DeviceInfo> {
    let name = device.name()?.to_str().ok()?.to_string();
    let path = Path::new(SYSFS).join(&name);
    let driver = std::fs::read_link(path.join("device/driver")).ok();
    let driver = driver.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
    // A soft device hangs on no bus: there is no `device` in its folder.
    let is_software = path.exists() && !path.join("device").exists();
    let mut info = DeviceInfo {
        guid: device.guid().map(|guid| format!("{:016x}", u64::from(guid))).unwrap_or_default(),
        driver: driver.unwrap_or_else(|| if is_software { "software".into() } else { String::new() }),
        firmware: read(&path.join("fw_ver")).unwrap_or_default(),
        is_software,
        ports: Vec::new(),
        problem: None,
        name,
    };
    match ports(device, &info.name, &path) {
        Ok(ports) => info.ports = ports,
        Err(problem) => info.problem = Some(problem),
    }
    Some(info)
}

fn ports(device: &ibverbs::Device<'_>, name: &str, path: &Path) -> Result<Vec<PortInfo>, String> {
    let context = Context::open(name).map_err(|error| match error {
        OpenError::NotFound => "it has vanished".to_string(),
        OpenError::Refused(error) => format!("it cannot be opened: {error}"),
    })?;
    let count = context.limits().map_err(|error| format!("asking for its limits: {error}"))?.ports;
    let mut ports = Vec::new();
    for number in 1..=count {
        let attributes =
            context.port(number).map_err(|error| format!("asking for port {number}: {error}"))?;
        ports.push(port_info(number, &attributes));
    }
    // The crate opens only devices whose first port is up; sysfs tells of the others.
    match device.open() {
        Ok(opened) => add_gids(&mut ports, opened.gid_table().iter().map(gid_entry)),
        Err(_) => add_gids(&mut ports, gids_from_sysfs(path, count)),
    }
    Ok(ports)
}

fn port_info(number: u8, attributes: &PortAttributes) -> PortInfo {
    PortInfo {
        number,
        state: match attributes.state {
            1 => PortState::Down,
            2 => PortState::Initializing,
            3 => PortState::Armed,
            4 => PortState::Active,
            _ => PortState::Other,
        },
        link: match attributes.link_layer {
            LinkLayer::InfiniBand => LinkKind::InfiniBand,
            LinkLayer::Ethernet => LinkKind::Ethernet,
        },
        active_mtu_bytes: attributes.active_mtu_bytes,
        max_mtu_bytes: attributes.max_mtu_bytes,
        lid: attributes.lid,
        gids: Vec::new(),
    }
}

fn add_gids(ports: &mut [PortInfo], gids: impl IntoIterator<Item = (u32, GidInfo)>) {
    for (number, gid) in gids {
        if gid.gid.is_unspecified() {
            continue;
        }
        if let Some(port) = ports.iter_mut().find(|port| u32::from(port.number) == number) {
            port.gids.push(gid);
        }
    }
}

fn gid_entry(entry: &ibverbs::GidEntry) -> (u32, GidInfo) {
    let halves = (u128::from(entry.gid.subnet_prefix()) << 64) | u128::from(entry.gid.interface_id());
    let info = GidInfo {
        index: entry.gid_index,
        gid: Ipv6Addr::from_bits(halves),
        kind: match entry.gid_type {
            0 => GidKind::InfiniBand,
            1 => GidKind::RoceV1,
            _ => GidKind::RoceV2,
        },
        network_device: name_of_interface(entry.ndev_ifindex),
    };
    (entry.port_num, info)
}

fn name_of_interface(index: u32) -> Option<String> {
    let interfaces = std::fs::read_dir("/sys/class/net").ok()?;
    let mut names = interfaces.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find(|name| {
        let found = read(&Path::new("/sys/class/net").join(name).join("ifindex"));
        index != 0 && found.and_then(|text| text.parse().ok()) == Some(index)
    })
}

fn gids_from_sysfs(path: &Path, ports: u8) -> Vec<(u32, GidInfo)> {
    let mut found = Vec::new();
    for port in 1..=ports {
        let folder = path.join("ports").join(port.to_string());
        let Ok(entries) = std::fs::read_dir(folder.join("gids")) else { continue };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut indices: Vec<u32> = names.filter_map(|name| name.parse().ok()).collect();
        indices.sort_unstable();
        for index in indices {
            let entry = |kind: &str| read(&folder.join(kind).join(index.to_string()));
            let Some(gid) = entry("gids").and_then(|text| text.parse().ok()) else { continue };
            let kind = match entry("gid_attrs/types").as_deref() {
                Some("RoCE v2") => GidKind::RoceV2,
                Some("IB/RoCE v1" | "RoCE v1") => GidKind::RoceV1,
                _ => GidKind::InfiniBand,
            };
            let network_device = entry("gid_attrs/ndevs");
            found.push((u32::from(port), GidInfo { index, gid, kind, network_device }));
        }
    }
    found
}

/// A small text file without its line end.
fn read(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_string())
}
