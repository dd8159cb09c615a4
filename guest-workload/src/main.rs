//! The workload that runs inside demonstration guests.
fn main() {}
