//! Linux facilities that the glues and the benchmarks share.

pub mod facts;
pub mod gate;
pub mod guard;
pub mod maps;
pub mod memory;
pub mod pinning;
pub mod priority;
pub mod tracking;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Called at the start of a thread with the thread's name; pins it, for one.
pub type ThreadSetup = Arc<dyn Fn(&str) + Send + Sync>;

/// A [`ThreadSetup`] that does nothing.
pub fn no_thread_setup() -> ThreadSetup {
    Arc::new(|_| {})
}

/// Runs the body of a thread that nobody could go on without, or would notice the end of. If it
/// panics, this whole process ends, and the guard acts.
fn or_abort(body: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        std::process::abort();
    }
}
