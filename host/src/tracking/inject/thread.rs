//! Which thread of a process makes the call, and what is known of it.

use super::super::TrackingError;
use super::super::target::Target;

/// A thread, from `/proc/PID/task/TID/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadFacts {
    /// Its id.
    pub tid: i32,
    /// Has ended and only waits to be reaped.
    pub zombie: bool,
    /// The id of its tracer, 0 if none.
    pub tracer: u32,
    /// Is under a seccomp filter.
    pub seccomp: bool,
}

/// The main thread, or another where that has ended.
pub fn choose(target: &Target) -> Result<ThreadFacts, TrackingError> {
    let main = parse(target.pid() as i32, &target.read_proc("status")?);
    if !main.zombie {
        return Ok(main);
    }
    let path = format!("/proc/{}/task", target.pid());
    let tasks = std::fs::read_dir(&path).map_err(|error| TrackingError::system(path, error))?;
    for task in tasks.flatten() {
        let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread may end while we look at it.
        let Ok(text) = target.read_proc(&format!("task/{tid}/status")) else { continue };
        let facts = parse(tid, &text);
        if !facts.zombie {
            return Ok(facts);
        }
    }
    Err(target.gone())
}

fn parse(tid: i32, status: &str) -> ThreadFacts {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
    };
    ThreadFacts {
        tid,
        zombie: field("State:").starts_with(['Z', 'X']),
        tracer: field("TracerPid:").parse().unwrap_or(0),
        seccomp: !matches!(field("Seccomp:"), "" | "0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_understood() {
        let facts = parse(7, "Name:\tqemu\nState:\tS (sleeping)\nTracerPid:\t12\nSeccomp:\t2\n");
        assert_eq!(facts, ThreadFacts { tid: 7, zombie: false, tracer: 12, seccomp: true });
        let facts = parse(8, "State:\tZ (zombie)\nTracerPid:\t0\nSeccomp:\t0\n");
        assert_eq!(facts, ThreadFacts { tid: 8, zombie: true, tracer: 0, seccomp: false });
    }
}
