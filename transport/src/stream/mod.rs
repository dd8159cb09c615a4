//! What fabrics with a TCP control connection share: the listening port, the dialog of the
//! handshake, life signs, and how a connection ends.

pub(crate) mod acceptor;
pub(crate) mod control;
pub(crate) mod dialog;
pub(crate) mod fence;
pub(crate) mod heartbeat;
pub(crate) mod link;
pub(crate) mod socket;
pub mod wire;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Called at the start of each thread of a fabric, in that thread, with its name.
pub type ThreadHook = Arc<dyn Fn(&str) + Send + Sync>;

/// How the kernel decides when to send what is in a socket's buffer (`TCP_CONGESTION`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CongestionControl {
    /// `cubic` where the kernel offers it, else the system's choice. An epoch is a burst that is to
    /// leave at once; an algorithm that paces what it sends, as `bbr` does, spreads it out by timers
    /// that cost more CPU time than the copy of the bytes (docs/decisions/steady-load.md).
    #[default]
    Bursts,
    /// What the system is set to: right for a long or lossy path that is tuned by hand.
    System,
    /// This one; a connection fails where the kernel does not have it.
    Named(String),
}

/// The knobs of a control connection, taken from those of its fabric.
#[derive(Clone)]
pub(crate) struct StreamConfig {
    pub heartbeat_every: Duration,
    pub silent_after: Duration,
    pub preface_timeout: Duration,
    pub strangers_max: usize,
    pub socket_buffer_bytes: Option<usize>,
    pub congestion_control: CongestionControl,
    pub on_thread_start: Option<ThreadHook>,
}

impl StreamConfig {
    pub(crate) fn heartbeat_every(&self) -> Duration {
        self.heartbeat_every.max(Duration::from_millis(1))
    }

    pub(crate) fn heartbeat_every_us(&self) -> u32 {
        self.heartbeat_every().as_micros().min(u32::MAX.into()) as u32
    }

    /// Starts a named thread, the hook first.
    pub(crate) fn spawn(
        &self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let hook = self.on_thread_start.clone();
        let label = name.clone();
        std::thread::Builder::new().name(name).spawn(move || {
            if let Some(hook) = hook {
                hook(&label);
            }
            work();
        })
    }
}
