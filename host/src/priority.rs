//! Scheduling priority of the threads that others wait for.

/// Threads that a paused guest waits for: nothing else of the machine is to run before them.
const PAUSING: [&str; 2] = ["capture", "copy"];
/// Threads that hold up a guest's clients or the other host's patience when they wait for a
/// core. Threads that start processes are not among them: a child would inherit the priority.
const URGENT: [&str; 5] = ["gate", "sender", "control", "committer", "rom-"];
/// Niceness of urgent threads.
const NICENESS: i32 = -10;

/// Called by a thread at its start: one that a paused guest waits for runs ahead of all that is not
/// real-time, an urgent one is preferred to others on a busy machine. Without the privilege for that
/// each runs as others do.
pub fn started(thread: &str) {
    let is = |names: &[&str]| names.iter().any(|name| thread.starts_with(name));
    let outcome = if is(&PAUSING) {
        real_time().or_else(|_| nice())
    } else if is(&URGENT) {
        nice()
    } else {
        Ok(())
    };
    if let Err(error) = outcome {
        tracing::debug!("thread {thread} keeps its usual priority: {error}");
    }
}

fn nice() -> std::io::Result<()> {
    Ok(rustix::process::setpriority_process(None, NICENESS)?)
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
