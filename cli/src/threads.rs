//! What every thread of Romulus does first: takes its priority and its core.

use std::sync::Arc;

use romulus_host::pinning::Pinner;
use romulus_host::priority;

/// The setup of all threads, by their names.
pub fn setup(pinner: &Pinner) -> Arc<dyn Fn(&str) + Send + Sync> {
    let pinner = pinner.clone();
    Arc::new(move |thread: &str| {
        priority::started(thread);
        pinner.started(thread);
    })
}
