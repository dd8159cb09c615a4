//! `romulus-perf primary` and `romulus-perf backup`: end-to-end protection of a synthetic guest.
//!
//! Both run the drivers that protect real guests. The guest is threads that write to mapped memory,
//! each page carrying its name, version and checksum, the device state a digest of all of them. Its
//! output are datagrams to the backup's host, each naming the pause that it belongs to. After a
//! takeover the backup knows three things without trusting the primary: that every page is whole,
//! that all pages together are those of the committed pause, and that no output of a later pause
//! has left.

mod affinity;
mod backup;
mod common;
mod gate;
mod halt;
mod image;
pub mod live;
mod primary;
mod witness;

pub use backup::{BackupCommand, run as run_backup};
pub use primary::{PrimaryCommand, run as run_primary};
