//! What others may know of a standby that is in somebody else's hands.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tells which QEMU stands ready, or has become the guest. Clones tell of the same standby.
#[derive(Clone, Debug, Default)]
pub struct StandbyInfo(Arc<Mutex<Option<(i32, PathBuf)>>>);

impl StandbyInfo {
    /// The process id of the prepared or activated QEMU.
    pub fn pid(&self) -> Option<i32> {
        self.lock().as_ref().map(|(pid, _)| *pid)
    }

    /// The QMP socket of the prepared or activated QEMU. Once it is activated, nobody is
    /// connected to it.
    pub fn qmp(&self) -> Option<PathBuf> {
        self.lock().as_ref().map(|(_, qmp)| qmp.clone())
    }

    pub(super) fn set(&self, machine: Option<(i32, PathBuf)>) {
        *self.lock() = machine;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(i32, PathBuf)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
