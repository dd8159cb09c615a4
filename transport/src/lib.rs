//! Moves bytes between a primary and a backup host: one-sided writes into memory that the
//! receiver registered, numbered markers that fence them, and small ordered messages.
//!
//! This crate knows nothing of epochs, guests or checkpoints. Everything above it talks to the
//! traits of [`fabric`]; each fabric ([`rdma`], [`tcp`], [`sim`]) passes the same contract test suite.

pub mod arena;
#[cfg(feature = "contract")]
pub mod contract;
pub mod error;
pub mod fabric;
pub mod memory;
#[cfg(feature = "plain")]
pub mod plain;
pub mod rdma;
pub mod sim;
pub mod stream;
mod streaming;
pub mod tcp;

pub use arena::Arena;
pub use error::{CloseReason, TransportError};
pub use fabric::{Channel, Endpoint, Event, Fabric, Listener, MessageBuffer, RegionId, Write};
pub use memory::Memory;
