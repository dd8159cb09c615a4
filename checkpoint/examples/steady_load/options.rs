//! What the command line says.

use romulus_checkpoint::PAGE_BYTES;
use romulus_transport::tcp::CongestionControl;

/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

/// How the load is shaped and measured.
pub struct Options {
    pub gib: f64,
    pub streams: usize,
    pub epoch_mib: u64,
    pub seconds: f64,
    pub rounds: usize,
    pub interval_ms: u64,
    pub sequential: bool,
    pub direct: bool,
    pub copy_workers: usize,
    pub staging_mib: u64,
    pub send_now: bool,
    pub congestion: CongestionControl,
}

impl Options {
    /// Reads the arguments.
    pub fn parse() -> Result<Self, String> {
        let mut options = Self {
            gib: 4.0,
            streams: 2,
            epoch_mib: 50,
            seconds: 5.0,
            rounds: 3,
            interval_ms: 1,
            sequential: false,
            direct: false,
            copy_workers: 0,
            staging_mib: 64,
            send_now: true,
            congestion: CongestionControl::default(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let bad = |error: &dyn std::fmt::Display| format!("{name} {value}: {error}");
            let either = |one: &str, other: &str| match &*value {
                given if given == one => Ok(true),
                given if given == other => Ok(false),
                _ => Err(format!("{name} {value}: {one} or {other} are possible")),
            };
            match name.as_str() {
                "--gib" => options.gib = value.parse().map_err(|error| bad(&error))?,
                "--streams" => options.streams = value.parse().map_err(|error| bad(&error))?,
                "--epoch-mib" => options.epoch_mib = value.parse().map_err(|error| bad(&error))?,
                "--seconds" => options.seconds = value.parse().map_err(|error| bad(&error))?,
                "--rounds" => options.rounds = value.parse().map_err(|error| bad(&error))?,
                "--copy-workers" => options.copy_workers = value.parse().map_err(|error| bad(&error))?,
                "--send-now" => options.send_now = either("on", "off")?,
                "--staging-mib" => options.staging_mib = value.parse().map_err(|error| bad(&error))?,
                "--interval-ms" => options.interval_ms = value.parse().map_err(|error| bad(&error))?,
                "--pattern" => options.sequential = either("sequential", "hot")?,
                "--capture" => options.direct = either("direct", "staged")?,
                "--congestion" if value == "system" => options.congestion = CongestionControl::System,
                "--congestion" => options.congestion = CongestionControl::Named(value),
                _ => return Err(format!("{name} is unknown")),
            }
        }
        Ok(options)
    }

    /// Pages of the guest.
    pub fn pages(&self) -> u64 {
        (self.gib * GIB) as u64 / PAGE_BYTES
    }

    /// Pages of one epoch.
    pub fn epoch_pages(&self) -> u64 {
        (self.epoch_mib << 20) / PAGE_BYTES
    }

    /// The algorithm that the fabric uses, by its kernel name; `None`: the system's choice.
    pub fn congestion_name(&self) -> Option<&str> {
        match &self.congestion {
            CongestionControl::Bursts => Some("cubic"),
            CongestionControl::Named(name) => Some(name),
            CongestionControl::System => None,
        }
    }
}
