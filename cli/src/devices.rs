//! `romulus devices`: the RDMA devices of this host, and what of them the options name.

use std::process::ExitCode;

use romulus_transport::rdma::{DeviceInfo, PortInfo, devices};

use crate::exit::{Code, Failure};

/// Options of `romulus devices`.
#[derive(Debug, clap::Args)]
pub struct DevicesOptions {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Lists the devices; without any, says why.
pub fn run(options: &DevicesOptions) -> Result<ExitCode, Failure> {
    let devices = devices().map_err(|e| Failure::new(Code::Machine, e.to_string()))?;
    if options.json {
        println!("{:#}", serde_json::json!(devices));
    } else {
        devices.iter().for_each(|device| print!("{}", lines(device)));
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(device: &DeviceInfo) -> String {
    let mut text = format!("{}  driver {}", device.name, device.driver);
    if !device.firmware.is_empty() {
        text.push_str(&format!(", firmware {}", device.firmware));
    }
    text.push('\n');
    if let Some(problem) = &device.problem {
        text.push_str(&format!("  {problem}\n"));
    }
    device.ports.iter().for_each(|port| text.push_str(&port_lines(port)));
    text
}

fn port_lines(port: &PortInfo) -> String {
    let mut text = format!(
        "  port {}: {}, {}, MTU {} of at most {} bytes",
        port.number, port.state, port.link, port.active_mtu_bytes, port.max_mtu_bytes
    );
    if port.lid != 0 {
        text.push_str(&format!(", LID {}", port.lid));
    }
    text.push('\n');
    for gid in &port.gids {
        let interface = gid.network_device.as_deref().unwrap_or("no interface");
        text.push_str(&format!("    GID {:>3}: {} ({}, {interface})\n", gid.index, gid.gid, gid.kind));
    }
    text
}
