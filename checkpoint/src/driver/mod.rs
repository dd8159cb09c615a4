//! Runs the machines over a real fabric, guest and standby, with named and pinnable threads.
