//! The romulus command.
fn main() {}
