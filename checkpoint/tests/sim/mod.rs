//! The simulator: the real machines of both sides over a simulated network, guest, arbiter and
//! clock, single-threaded and repeatable by a seed, with faults at every step and checks of the
//! invariants against the whole truth.

mod arbiter;
mod backup_admission;
mod backup_host;
mod backup_process;
mod backup_standby;
mod capture;
mod env;
mod gate;
mod guest;
mod image;
mod oracle;
mod primary_host;
mod primary_process;
mod rng;
pub mod scenario;
mod sender;
pub mod world;
