//! What a domain is, and whether Romulus can protect it. What follows from the answers of libxl and
//! xenstore asks nothing itself, so that it can be tested without a Xen.

pub mod config;
pub mod hvm;
pub mod refusal;
pub mod vif;
