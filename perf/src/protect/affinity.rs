//! Which cores the threads of this process may really use, by the kernel's word.

use std::fs;

use romulus_host::pinning::PinningPlan;
use serde::Serialize;

use crate::exit::{Failure, OrFail};

/// A thread as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Its name, of at most 15 characters.
    pub name: String,
    /// The cores that it may use, as the kernel lists them (`0`, `0-3,6`).
    pub cores: String,
    /// The core that the plan gives it.
    pub planned: Option<usize>,
}

impl Thread {
    /// Whether the kernel says what the plan says.
    pub fn is_as_planned(&self) -> bool {
        self.planned.is_none_or(|core| self.cores == core.to_string())
    }
}

/// All threads of this process, by name.
pub fn threads(plan: &PinningPlan) -> Result<Vec<Thread>, Failure> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task").or_fail("/proc/self/task")?.flatten() {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let Some((name, cores)) = name_and_cores(&status) else { continue };
        // The guest's own threads are the guest's.
        let planned = plan.core_of(&name).filter(|_| !name.starts_with("writer"));
        threads.push(Thread { name, cores, planned });
    }
    threads.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(threads)
}

/// An error that names the threads that are not where the plan wants them.
pub fn check(threads: &[Thread]) -> Result<(), Failure> {
    let strays: Vec<_> = threads
        .iter()
        .filter(|thread| !thread.is_as_planned())
        .map(|thread| format!("{} may use {} and not only {:?}", thread.name, thread.cores, thread.planned))
        .collect();
    if strays.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("threads are not pinned as --pin says: {}", strays.join("; "))))
}

fn name_and_cores(status: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().to_owned())
    };
    Some((field("Name:")?, field("Cpus_allowed_list:")?))
}

#[cfg(test)]
mod tests {
    use romulus_host::pinning::{Pinner, usable_cores};

    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tcapture\nPid:\t7\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\n";
        assert_eq!(name_and_cores(status), Some(("capture".into(), "0-1".into())));
        assert_eq!(name_and_cores("Name:\tx\n"), None);
    }

    #[test]
    fn a_pinned_thread_is_where_it_should_be_and_a_stray_is_named() {
        let core = *usable_cores().last().unwrap();
        let plan: PinningPlan = format!("perf-pinned={core},perf-stray={core}").parse().unwrap();
        let (ready, go) = (std::sync::Barrier::new(3), std::sync::Barrier::new(3));
        std::thread::scope(|scope| {
            for name in ["perf-pinned", "perf-stray"] {
                let (ready, go, plan) = (&ready, &go, plan.clone());
                let body = move || {
                    if name == "perf-pinned" {
                        Pinner::new(plan).started(name);
                    }
                    ready.wait();
                    go.wait();
                };
                std::thread::Builder::new().name(name.into()).spawn_scoped(scope, body).unwrap();
            }
            ready.wait();
            let threads = threads(&plan).unwrap();
            go.wait();
            let find = |name: &str| threads.iter().find(|thread| thread.name == name).unwrap();
            assert!(find("perf-pinned").is_as_planned());
            if usable_cores().len() > 1 {
                assert!(!find("perf-stray").is_as_planned());
                let message = check(&threads).unwrap_err().message;
                assert!(message.contains("perf-stray") && !message.contains("perf-pinned may"), "{message}");
            }
        });
    }
}
