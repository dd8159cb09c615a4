//! Scheduling priority of the threads that others wait for.

/// Threads that work while the guest is paused: it waits for them whenever they wait for a core.
const PAUSING: [&str; 3] = ["capture", "copy", "scan"];
/// Threads that hold up a guest's clients or the other host's patience when they wait for a
/// core. Threads that start processes are not among them: a child would inherit the priority.
const URGENT: [&str; 5] = ["gate", "sender", "control", "committer", "rom-"];
/// Niceness of urgent threads.
const NICENESS: i32 = -10;

/// Called by a thread at its start: one that works in pauses runs ahead of all that is not
/// real-time, an urgent one is preferred to others on a busy machine. Where real-time priority is not
/// allowed, the former is an urgent one; without the privilege for that each runs as others do.
pub fn started(thread: &str) {
    let is = |names: &[&str]| names.iter().any(|name| thread.starts_with(name));
    if is(&PAUSING) {
        match real_time() {
            Ok(()) => return,
            Err(error) => tracing::debug!("thread {thread} gets no real-time priority: {error}"),
        }
    }
    if (is(&PAUSING) || is(&URGENT))
        && let Err(error) = rustix::process::setpriority_process(None, NICENESS)
    {
        tracing::debug!("thread {thread} keeps its usual priority: {error}");
    }
}

/// The lowest real-time priority, which what this thread starts does not inherit.
fn real_time() -> std::io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: `lowest` is a whole `sched_param` that lives through the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &lowest) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
