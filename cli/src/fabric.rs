//! The fabric, as the options describe it.

use std::sync::Arc;

use romulus_checkpoint::wire::record::{Recorder, Role};
use romulus_checkpoint::wire::recorded::RecordedFabric;
use romulus_host::pinning::Pinner;
use romulus_transport::Fabric;
use romulus_transport::tcp::{TcpConfig, TcpFabric};

use crate::exit::Failure;
use crate::settings::common::CommonOptions;
use crate::threads;

/// A recording ends at this length.
const MAX_RECORDING_BYTES: u64 = 1 << 30;

/// The TCP fabric, recorded if the options say so.
pub fn open(options: &CommonOptions, pinner: &Pinner, role: Role) -> Result<Arc<dyn Fabric>, Failure> {
    let config = TcpConfig {
        streams: options.streams()?,
        congestion_control: options.congestion_control(),
        on_thread_start: Some(threads::setup(pinner)),
        ..TcpConfig::default()
    };
    let fabric = Arc::new(TcpFabric::new(config));
    let Some(path) = &options.record else { return Ok(fabric) };
    let recorder = Recorder::create(path, role, MAX_RECORDING_BYTES)
        .map_err(|e| Failure::usage(format!("--record {}: {e}", path.display())))?;
    Ok(Arc::new(RecordedFabric::new(fabric, Arc::new(recorder))))
}
