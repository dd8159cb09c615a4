//! Peers that break the rules of the tcp fabric, and strangers at its port.

mod peer;
mod rules;
mod silence;
mod strangers;
