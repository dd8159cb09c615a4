//! The deterministic in-memory fabric.
