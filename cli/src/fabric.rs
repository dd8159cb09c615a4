//! The fabric, as the options describe it.

use romulus_host::pinning::Pinner;
use romulus_transport::tcp::TcpConfig;

use crate::exit::Failure;
use crate::settings::common::CommonOptions;

/// Settings of the TCP fabric.
pub fn tcp_config(options: &CommonOptions, pinner: &Pinner) -> Result<TcpConfig, Failure> {
    Ok(TcpConfig {
        streams: options.streams()?,
        on_thread_start: Some(pinner.callback()),
        ..TcpConfig::default()
    })
}
