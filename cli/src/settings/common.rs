//! Settings that both sides have.

use std::path::PathBuf;
use std::time::Duration;

use romulus_transport::tcp::CongestionControl;

use crate::exit::Failure;
use crate::settings::fill_unset;

/// A number that must lie in this range.
pub fn bounded(option: &str, value: u64, least: u64, most: u64) -> Result<u64, Failure> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Failure::usage(format!("{option} {value}: {least} to {most} are possible")))
}

/// The keys of [`CommonOptions`] in the settings file.
pub const COMMON_KEYS: &[&str] = &[
    "arbiter",
    "host",
    "control",
    "heartbeat_ms",
    "suspect_after_ms",
    "fabric",
    "device",
    "device_port",
    "gid_index",
    "mtu_bytes",
    "traffic_class",
    "service_level",
    "streams",
    "congestion",
    "pin",
    "spin_us",
    "record",
];

/// Options of `protect` and `backup` alike.
#[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommonOptions {
    /// Who decides which host may run the guest: `file:DIRECTORY/` (compare-and-swap on a file in a
    /// folder that both hosts reach; made if it is missing) or `none` (no arbiter: see
    /// docs/operations.md for what may then be automatic) [default: none]
    #[arg(long, value_name = "ARBITER")]
    pub arbiter: Option<String>,

    /// This host's name in the arbiter's record; must differ between the hosts [default: the
    /// machine's host name, with `-backup` behind it on a backup]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,

    /// Control socket of this instance, for `romulus status`, `failover` and `stop` [default:
    /// /run/romulus/protect.sock or backup.sock, or below $XDG_RUNTIME_DIR when not root]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Heartbeats are sent this often, in milliseconds; more often notices a dead host more
    /// surely at a small cost in packets [default: 20]
    #[arg(long, value_name = "MS")]
    pub heartbeat_ms: Option<u64>,

    /// The other host is suspected after so long without a sign of life, in milliseconds. Shorter
    /// means faster reaction and more false alarms on a busy machine; the backup's must be longer
    /// than the primary's plus the time of a swap [default: 150 on the primary, 260 on the backup]
    #[arg(long, value_name = "MS")]
    pub suspect_after_ms: Option<u64>,

    /// What moves the bytes: `tcp` (any network) or `rdma` (RoCE, soft-RoCE or InfiniBand; the
    /// address given with --backup or --listen is then where the hosts shake hands, and where their
    /// life signs go). Both hosts must say the same [default: tcp]
    #[arg(long, value_name = "FABRIC")]
    pub fabric: Option<String>,

    /// RDMA device, as `romulus devices` lists them [default: the one that has the address of the
    /// handshake, else the first with an active port]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// Port of the RDMA device, from 1 [default: the first active one]
    #[arg(long, value_name = "N")]
    pub device_port: Option<u8>,

    /// Index of the RDMA port's GID, as `romulus devices` lists them [default: RoCE v2 with the
    /// address of the handshake]
    #[arg(long, value_name = "INDEX")]
    pub gid_index: Option<u8>,

    /// Largest payload of an RDMA packet in bytes: 256, 512, 1024, 2048 or 4096, at most the
    /// port's; the smaller of both hosts counts [default: the port's]
    #[arg(long, value_name = "BYTES")]
    pub mtu_bytes: Option<u32>,

    /// Traffic class of the RDMA packets that this host sends, 0 to 254: 4 times the DSCP, plus 2
    /// for packets that the cards' congestion control may mark (ECN), as in 106 for DSCP 26. Switches
    /// and cards tell the lossless class (PFC) by it. InfiniBand uses it between subnets only
    /// [default: 0]
    #[arg(long, value_name = "N")]
    pub traffic_class: Option<u8>,

    /// Service level of the RDMA packets that this host sends: 0 to 7 on RoCE, the priority where
    /// packets of a VLAN are told apart by it; 0 to 15 on InfiniBand, as its subnet manager knows
    /// them [default: 0]
    #[arg(long, value_name = "N")]
    pub service_level: Option<u8>,

    /// Data streams, 1 to 16: connections of the tcp fabric, of which more use more cores, or queue
    /// pairs of the rdma fabric. The primary's wish counts [default: 2]
    #[arg(long, value_name = "N")]
    pub streams: Option<usize>,

    /// Congestion control of the tcp fabric's connections: `bursts` (cubic where the kernel has it:
    /// an epoch leaves at once, unpaced), `system` (what the kernel is set to), or the kernel's name
    /// of one. Pacing algorithms such as bbr cost CPU time and throughput on a network of one's own
    /// [default: bursts]
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<String>,

    /// Cores of the named threads: `off`, `auto`, or a list as in `capture=2,sender=3`
    /// [default: off]
    #[arg(long, value_name = "PLAN")]
    pub pin: Option<String>,

    /// Spin for so many microseconds, at most 10,000, before a wait blocks. Lowers latency where a
    /// core is to spare, starves the others where none is [default: 0; RDMA completions of a real
    /// device: 20]
    #[arg(long, value_name = "US")]
    pub spin_us: Option<u64>,

    /// Record all messages and commit slots to this file, up to 1 GiB, for scripts/verify_protocol.py
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

impl CommonOptions {
    /// Takes what is unset from the settings file.
    pub fn or(mut self, file: CommonOptions) -> Self {
        fill_unset!(
            self,
            file,
            [
                arbiter,
                host,
                control,
                heartbeat_ms,
                suspect_after_ms,
                fabric,
                device,
                device_port,
                gid_index,
                mtu_bytes,
                traffic_class,
                service_level,
                streams,
                congestion,
                pin,
                spin_us,
                record
            ]
        );
        self
    }

    /// Who decides.
    pub fn arbiter(&self) -> &str {
        self.arbiter.as_deref().unwrap_or("none")
    }

    /// This host's name.
    pub fn host(&self, suffix: &str) -> String {
        self.host.clone().unwrap_or_else(|| {
            let uname = rustix::system::uname();
            format!("{}{suffix}", uname.nodename().to_string_lossy())
        })
    }

    /// How often heartbeats are sent.
    pub fn heartbeat_every(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.unwrap_or(20))
    }

    /// When the other host is suspected.
    pub fn suspect_after(&self, default_ms: u64) -> Result<Duration, Failure> {
        let heartbeat_ms = self.heartbeat_ms.unwrap_or(20);
        bounded("--heartbeat-ms", heartbeat_ms, 1, 60_000)?;
        bounded("--suspect-after-ms", self.suspect_after_ms.unwrap_or(default_ms), 1, 3_600_000)?;
        let after = Duration::from_millis(self.suspect_after_ms.unwrap_or(default_ms));
        if after < self.heartbeat_every() * 2 {
            return Err(Failure::usage(format!(
                "--suspect-after-ms {} is less than two heartbeats ({} ms each): every hiccup would be \
                 taken for a death; raise it, or lower --heartbeat-ms",
                after.as_millis(),
                self.heartbeat_every().as_millis()
            )));
        }
        Ok(after)
    }

    /// When the fabric gives up a silent connection: not before the host at its other end is
    /// suspected, since a host whose connections end has no time to show that it lives.
    pub fn silent_after(&self, least: Duration) -> Result<Duration, Failure> {
        let least_ms = u64::try_from(least.as_millis()).unwrap_or(u64::MAX);
        Ok(self.suspect_after(least_ms)?.max(least))
    }

    /// Data streams.
    pub fn streams(&self) -> Result<usize, Failure> {
        match self.streams.unwrap_or(2) {
            n @ 1..=16 => Ok(n),
            n => Err(Failure::usage(format!("--streams {n}: 1 to 16 are possible"))),
        }
    }

    /// Congestion control of the connection.
    pub fn congestion_control(&self) -> CongestionControl {
        match self.congestion.as_deref() {
            None | Some("bursts") => CongestionControl::Bursts,
            Some("system") => CongestionControl::System,
            Some(name) => CongestionControl::Named(name.to_owned()),
        }
    }

    /// Spinning before a wait blocks.
    pub fn spin(&self) -> Result<Duration, Failure> {
        Ok(Duration::from_micros(bounded("--spin-us", self.spin_us.unwrap_or(0), 0, 10_000)?))
    }
}
