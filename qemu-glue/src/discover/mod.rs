//! Finds out what a QEMU process runs: its RAM, its devices, whether Romulus can protect it.
//!
//! [`Inventory`] asks all questions; what follows from the answers ([`refusal`], [`identity`],
//! [`ram`]) asks nothing, so that it can be tested without a QEMU.

mod blocks;
pub mod identity;
mod inventory;
mod names;
mod network;
mod qom;
pub mod ram;
pub mod refusal;

pub use blocks::RamBlock;
pub use inventory::{Backend, BackendKind, Disk, Inventory};
pub use network::NetworkClient;
#[cfg(test)]
pub(crate) use network::parse as parse_network;
pub use qom::{Device, Object};
