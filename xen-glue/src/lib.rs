//! Xen domains as guests and standbys.
//!
//! With the feature `xen` (the default) the tools libraries of Xen are opened at run time; without it
//! only what needs no Xen is there: the formats.

#[cfg(feature = "xen")]
mod claim;
#[cfg(feature = "xen")]
mod device_model;
pub mod discover;
#[cfg(feature = "xen")]
mod domain;
mod error;
#[cfg(feature = "xen")]
pub mod facts;
#[cfg(feature = "xen")]
pub mod guest;
#[cfg(feature = "xen")]
mod handle;
pub mod layout;
#[cfg(feature = "xen")]
pub mod library;
pub mod machine;
pub mod records;
pub mod standby;

pub use error::XenError;
#[cfg(feature = "xen")]
pub use guest::{XenGuest, XenOptions};
#[cfg(feature = "xen")]
pub use handle::XenHandle;
#[cfg(feature = "xen")]
pub use standby::{StandbyAllowances, XenStandby, XenStandbyInfo};
