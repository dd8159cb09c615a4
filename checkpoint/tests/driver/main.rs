//! The drivers end to end: synthetic guests over tcp on the loopback, with hosts that die.

#![allow(missing_docs)] // a test

mod cut;
mod harness;

mod ends;
mod failures;
mod takeover;
mod throttle;
mod watermark;
