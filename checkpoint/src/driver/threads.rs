//! Named threads that the caller may pin.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::StartError;

/// Called on every thread that a driver starts, before it does anything: pins it, sets its
/// priority. The thread's name says what it does: on the primary `capture`, `copy-N`, `sender`,
/// `control`, `connector`, `arbiter`; on the backup `accept`, `handshake`, `committer`, `homing-N`,
/// `takeover`, `standby`.
pub trait ThreadSetup: Send + Sync {
    /// Runs on the new thread. Must not fail: what could not be set is its own to report.
    fn started(&self, name: &str);
}

/// Leaves threads as the system starts them.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoThreadSetup;

impl ThreadSetup for NoThreadSetup {
    fn started(&self, _name: &str) {}
}

impl<F: Fn(&str) + Send + Sync> ThreadSetup for F {
    fn started(&self, name: &str) {
        self(name);
    }
}

/// Starts a named thread that runs `setup` first.
pub(crate) fn spawn(
    name: &str,
    setup: &Arc<dyn ThreadSetup>,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let setup = Arc::clone(setup);
    let own_name = name.to_owned();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            setup.started(&own_name);
            body();
        })
        .map_err(|source| StartError::System { what: format!("starting thread {name}"), source })
}
