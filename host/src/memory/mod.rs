//! Mapped memory: the backup's arena, a guest's RAM seen from outside, and staging.

mod arena;
mod available;
mod mapping;

pub use arena::HostArenas;
pub use available::available_bytes;
pub use mapping::{map_guest_file, staging};
