//! The drivers end to end: synthetic guests over tcp on the loopback, with hosts that die.

#![allow(missing_docs)] // a test

mod cut;
mod harness;

mod copy_only;
mod ends;
mod failures;
mod takeover;
mod throttle;
#[path = "../verifier/mod.rs"]
mod verifier;
mod watermark;
