//! Xen domains as guests and standbys.
//!
//! With the feature `xen` (the default) the tools libraries of Xen are opened at run time; without it
//! only what needs no Xen is there: the formats.

mod error;
pub mod layout;
#[cfg(feature = "xen")]
pub mod library;
pub mod machine;
pub mod records;

pub use error::XenError;
