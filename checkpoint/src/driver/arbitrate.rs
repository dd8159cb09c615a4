//! Asks the arbiter: its locks may block, so this has a thread of its own.

use crate::arbiter::{Arbiter, Record, SwapOutcome};

/// Carries out a swap; a panic in the arbiter's implementation is an unknown outcome.
pub(crate) fn swap(
    arbiter: &dyn Arbiter,
    guest: &str,
    expected: Option<&Record>,
    new: &Record,
) -> SwapOutcome {
    let attempt = std::panic::AssertUnwindSafe(|| arbiter.swap(guest, expected, new));
    std::panic::catch_unwind(attempt).unwrap_or_else(|_| SwapOutcome::Unknown("the arbiter panicked".into()))
}

/// Reads the record.
pub(crate) fn read(arbiter: &dyn Arbiter, guest: &str) -> Result<Option<Record>, String> {
    let attempt = std::panic::AssertUnwindSafe(|| arbiter.read(guest).map_err(|error| error.to_string()));
    std::panic::catch_unwind(attempt).unwrap_or_else(|_| Err("the arbiter panicked".into()))
}
