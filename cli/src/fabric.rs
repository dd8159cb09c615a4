//! The fabric, as the options describe it.

use std::sync::Arc;

use romulus_checkpoint::wire::record::{Recorder, Role};
use romulus_checkpoint::wire::recorded::RecordedFabric;
use romulus_host::pinning::Pinner;
use romulus_transport::rdma::{RdmaConfig, RdmaFabric};
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Fabric, TransportError};

use crate::exit::{Code, Failure};
use crate::settings::common::CommonOptions;
use crate::threads;

/// A recording ends at this length.
const MAX_RECORDING_BYTES: u64 = 1 << 30;

/// The fabric asked for, recorded if the options say so. A device that is not there, or not as the
/// options say, is an error here and not at the first connection.
pub fn open(options: &CommonOptions, pinner: &Pinner, role: Role) -> Result<Arc<dyn Fabric>, Failure> {
    let fabric: Arc<dyn Fabric> = match options.fabric.as_deref() {
        None | Some("tcp") => Arc::new(tcp(options, pinner)?),
        Some("rdma") => Arc::new(rdma(options, pinner)?),
        Some(other) => {
            return Err(Failure::usage(format!("--fabric {other}: `tcp` and `rdma` are possible")));
        }
    };
    let Some(path) = &options.record else { return Ok(fabric) };
    let recorder = Recorder::create(path, role, MAX_RECORDING_BYTES)
        .map_err(|e| Failure::usage(format!("--record {}: {e}", path.display())))?;
    Ok(Arc::new(RecordedFabric::new(fabric, Arc::new(recorder))))
}

fn tcp(options: &CommonOptions, pinner: &Pinner) -> Result<TcpFabric, Failure> {
    let of_rdma = [
        ("--device", options.device.is_some()),
        ("--device-port", options.device_port.is_some()),
        ("--gid-index", options.gid_index.is_some()),
        ("--mtu-bytes", options.mtu_bytes.is_some()),
        ("--traffic-class", options.traffic_class.is_some()),
        ("--service-level", options.service_level.is_some()),
    ];
    if let Some((name, _)) = of_rdma.iter().find(|(_, is_set)| *is_set) {
        return Err(Failure::usage(format!("{name} is for --fabric rdma; the fabric here is tcp")));
    }
    Ok(TcpFabric::new(TcpConfig {
        streams: options.streams()?,
        congestion_control: options.congestion_control(),
        silent_after: options.silent_after(TcpConfig::default().silent_after)?,
        on_thread_start: Some(threads::setup(pinner)),
        ..TcpConfig::default()
    }))
}

fn rdma(options: &CommonOptions, pinner: &Pinner) -> Result<RdmaFabric, Failure> {
    if options.congestion.is_some() {
        return Err(Failure::usage("--congestion is for --fabric tcp; the fabric here is rdma".into()));
    }
    let default = RdmaConfig::default();
    let fabric = RdmaFabric::new(RdmaConfig {
        device: options.device.clone(),
        port: options.device_port,
        gid_index: options.gid_index,
        mtu_bytes: options.mtu_bytes,
        streams: options.streams()?,
        traffic_class: options.traffic_class.unwrap_or(default.traffic_class),
        service_level: options.service_level.unwrap_or(default.service_level),
        silent_after: options.silent_after(default.silent_after)?,
        spin: options.spin_us.map(|_| options.spin()).transpose()?,
        on_thread_start: Some(threads::setup(pinner)),
        ..default
    });
    fabric.check().map_err(|error| match error {
        TransportError::Invalid(_) => Failure::usage(format!("--fabric rdma: {error}")),
        _ => Failure::new(Code::Machine, format!("--fabric rdma: {error}")),
    })?;
    Ok(fabric)
}
