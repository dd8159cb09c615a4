//! QEMU processes as guests and standbys: attaches to a running stock QEMU by its QMP socket,
//! and keeps a second one ready over the shadow image on the backup.

pub mod discover;
mod error;
pub mod gates;
pub mod guest;
pub mod handle;
mod process;
pub mod qmp;
pub mod standby;
pub mod state;
pub mod stream;

pub use error::QemuError;
pub use guest::{GuestOptions, QemuGuest, SaveBy};
pub use handle::QemuHandle;
pub use process::{Process, SharedMapping};
pub use standby::{ActiveGuest, QemuStandby, StandbyInfo, StandbyOptions};
