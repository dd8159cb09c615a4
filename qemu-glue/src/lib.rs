//! QEMU processes as guests and standbys: attaches to a running stock QEMU by its QMP socket,
//! and keeps a second one ready over the shadow image on the backup.

pub mod discover;
mod error;
mod process;
pub mod qmp;
pub mod stream;

pub use error::QemuError;
pub use process::{Process, SharedMapping};
