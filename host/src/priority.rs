//! Scheduling priority of the threads that others wait for.

/// Threads that hold up a guest, its clients or the other host's patience when they wait for a
/// core. Threads that start processes are not among them: a child would inherit the priority.
const URGENT: [&str; 7] = ["capture", "copy", "gate", "sender", "control", "committer", "rom-"];
/// Niceness of these threads.
const NICENESS: i32 = -10;

/// Called by a thread at its start: an urgent one is preferred to others on a busy machine. Without
/// the privilege for that it runs as others do.
pub fn started(thread: &str) {
    let urgent = URGENT.iter().any(|name| thread.starts_with(name));
    if urgent && let Err(errno) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!("thread {thread} keeps its usual priority: {errno}");
    }
}
