//! What the network moves without Romulus.

pub mod perftest;
pub mod plain;
