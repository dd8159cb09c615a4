//! `romulus-perf epochs`: the engine with synthetic guests, by scenario.
//!
//! Primary and backup are the drivers that protect real guests, both in this process, over the
//! loopback or a device. What stands beside each figure is measured in the same run: the guest's
//! writers unprotected, and one memcpy of the very pages that epochs had. Each case ends with a
//! takeover that compares every page with what the guest had at the committed pause.

mod case;
mod command;
mod cpu;
mod delay;
mod engine;
mod figures;
mod find_max;
mod guest;
mod memcpy;
mod observer;
mod sampler;
mod scenario;
mod standby;
mod table;
mod view;

pub use command::{EpochsCommand, ScenariosCommand, run, run_list};
pub use cpu::CpuTimes;
pub use guest::write_protect_tracker;
