//! Shadow paging (architecture section 4): which frame each page of an epoch is written to, and
//! the homing of displaced pages. [`planner`] is the primary's side, [`committed`] the backup's.
//! Neither knows messages, connections or time.

pub mod committed;
pub mod planner;
