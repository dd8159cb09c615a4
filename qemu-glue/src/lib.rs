//! QEMU processes as guests and standbys: attaches to a running stock QEMU by its QMP socket,
//! and keeps a second one ready over the shadow image on the backup.

pub mod discover;
mod error;
pub mod guest;
mod process;
pub mod qmp;
pub mod state;
pub mod stream;

pub use error::QemuError;
pub use guest::{GuestOptions, QemuGuest, SaveBy};
pub use process::{Process, SharedMapping};
