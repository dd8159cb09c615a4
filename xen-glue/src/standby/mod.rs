//! A Xen domain as a standby: built empty and paused before the first page comes, its memory mapped,
//! filled page by page as epochs commit (copy-only homes), and let go with the last state loaded.
//!
//! **Trial.** That the domain was built is the greater part of a trial; the rest is to load the state
//! into it, paused, which is done for the first whole epoch and once more at the takeover.
//!
//! **Trust.** The configuration comes from a peer and goes to `xl` as root: what it may say is in
//! `config`.
//!
//! **Names.** It is called `NAME--standby` until it runs.

mod config;
#[cfg(feature = "xen")]
mod emulator;
#[cfg(feature = "xen")]
mod ready;
mod stream;
#[cfg(feature = "xen")]
mod tool;

#[cfg(feature = "xen")]
mod seam;

pub use config::{SUFFIX, StandbyAllowances, StandbyConfig};
#[cfg(feature = "xen")]
pub use seam::{XenStandby, XenStandbyInfo};
pub use stream::empty_domain;
