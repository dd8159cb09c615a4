//! Shadow paging: which frame each page of an epoch is written to, and the homing of displaced pages.
//! Rules are named by their numbers in docs/architecture.md. [`planner`] is the primary's side,
//! [`committed`] the backup's. Neither knows messages, connections or time.
//!
//! Both sides keep the reasons why frames are used as bits (`frames`) and the displaced pages as
//! a table over the spares (`displaced`), so that a guest of 1 TiB with a few GiB of spares
//! costs tens of megabytes and no call allocates in steady state.

mod age;
pub mod committed;
mod displaced;
mod frames;
pub mod planner;

pub use displaced::MAX_FRAMES;
