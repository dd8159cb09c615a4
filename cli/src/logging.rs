//! Logs to standard error: quiet by default, levels by `-v` or `ROMULUS_LOG`.

use tracing_subscriber::EnvFilter;

/// Starts logging. `ROMULUS_LOG` takes filters as in `romulus_qemu=trace,info`.
pub fn start(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("ROMULUS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
