//! SIGTERM, SIGINT and SIGHUP ask for a clean end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::Failure;

/// Set once an end was asked for.
#[derive(Clone, Debug)]
pub struct EndRequest(Arc<AtomicBool>);

impl EndRequest {
    /// Begins to watch. Asking twice does not make it sooner: an end without the clean-up would leave
    /// the guest to its guard. SIGKILL does that.
    pub fn watch() -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .map_err(|e| Failure::failed(format!("watching for signals: {e}")))?;
        }
        Ok(Self(flag))
    }

    /// Whether an end was asked for.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for an end from inside the process.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
