//! One-sided writes over TCP.
