//! `romulus-perf limits`: what this machine can do without Romulus.

mod command;
mod memory;
mod network;
mod tracking;
mod wake;

pub use command::{LimitsCommand, run};
