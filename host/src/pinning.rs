//! Pins threads to cores by their names, and reads back whether it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use core_affinity::CoreId;
use rustix::thread::{CpuSet, sched_getaffinity};

/// Threads that deserve a core of their own, the most important first.
const PRIORITY: [&str; 4] = ["capture", "sender", "committer", "homing"];

/// Which threads run on which cores. Written `off`, `auto`, or a list as in
/// `capture=2,sender=3`: a name stands for all threads whose names begin with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinningPlan {
    cores: BTreeMap<String, usize>,
}

/// A plan that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pinning plan: {0}")]
pub struct PinningError(String);

impl PinningPlan {
    /// No thread is pinned.
    pub fn off() -> Self {
        Self::default()
    }

    /// The last cores for the threads that matter most, one each, while half of all cores is left
    /// to the guest and the rest. On two cores or fewer nothing is pinned: a pinned thread would
    /// share its core with the guest anyway, and could not move out of its way.
    pub fn auto(cores: &[usize]) -> Self {
        let mut plan = Self::default();
        if cores.len() > 2 {
            let own = cores.iter().rev().take(cores.len() / 2);
            plan.cores = PRIORITY.iter().map(|name| name.to_string()).zip(own.copied()).collect();
        }
        plan
    }

    /// Reads a plan and checks it against the cores that this process may use.
    pub fn parse(text: &str) -> Result<Self, PinningError> {
        let cores = usable_cores();
        if text == "auto" {
            return Ok(Self::auto(&cores));
        }
        let plan: Self = text.parse()?;
        match plan.cores.iter().find(|(_, core)| !cores.contains(core)) {
            Some((name, core)) => Err(PinningError(format!(
                "{name}={core}: this process may use the cores {cores:?} (counted from 0)"
            ))),
            None => Ok(plan),
        }
    }

    /// The core for a thread: of several names that it begins with, the longest counts.
    pub fn core_of(&self, thread: &str) -> Option<usize> {
        let fitting = self.cores.iter().filter(|(name, _)| thread.starts_with(name.as_str()));
        fitting.max_by_key(|(name, _)| name.len()).map(|(_, core)| *core)
    }
}

impl FromStr for PinningPlan {
    type Err = PinningError;

    fn from_str(text: &str) -> Result<Self, PinningError> {
        if text == "off" {
            return Ok(Self::off());
        }
        let mut plan = Self::default();
        for item in text.split(',') {
            let (name, core) = item.split_once('=').ok_or_else(|| {
                PinningError(format!("`{item}` is not THREAD=CORE; `off` and `auto` are possible too"))
            })?;
            let core = core.parse().map_err(|e| PinningError(format!("{item}: {e}")))?;
            if name.is_empty() || plan.cores.insert(name.to_owned(), core).is_some() {
                return Err(PinningError(format!("{item}: no name, or one that is there twice")));
            }
        }
        Ok(plan)
    }
}

impl fmt::Display for PinningPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cores.is_empty() {
            return f.write_str("off");
        }
        for (index, (name, core)) in self.cores.iter().enumerate() {
            write!(f, "{}{name}={core}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The cores that this process may use.
pub fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// A thread and the cores that the kernel says it may use.
pub type PinnedThreads = BTreeMap<String, Vec<usize>>;

/// Pins each thread that calls it by name, and keeps what the kernel made of it.
#[derive(Clone, Debug, Default)]
pub struct Pinner {
    plan: PinningPlan,
    seen: Arc<Mutex<PinnedThreads>>,
}

impl Pinner {
    /// Follows this plan.
    pub fn new(plan: PinningPlan) -> Self {
        Self { plan, seen: Arc::default() }
    }

    /// Called by each thread at its start. A thread that cannot be pinned runs on, with a warning.
    pub fn started(&self, thread: &str) {
        if let Some(core) = self.plan.core_of(thread) {
            // The crate only says whether it worked; what holds is read back below.
            core_affinity::set_for_current(CoreId { id: core });
            if own_cores() != [core] {
                tracing::warn!("thread {thread} could not be pinned to core {core}");
            }
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(thread.to_owned(), own_cores());
    }

    /// The threads that have started, and the cores that the kernel says they may use.
    pub fn threads(&self) -> PinnedThreads {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As a callback.
    pub fn callback(&self) -> crate::ThreadSetup {
        let pinner = self.clone();
        Arc::new(move |thread: &str| pinner.started(thread))
    }
}

/// The cores that the calling thread may use.
fn own_cores() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_written_and_refused_with_the_reason() {
        assert_eq!("off".parse(), Ok(PinningPlan::off()));
        let plan: PinningPlan = "sender=3,capture=2".parse().unwrap();
        assert_eq!(plan.to_string(), "capture=2,sender=3");
        assert_eq!(plan.core_of("capture"), Some(2));
        assert_eq!(plan.core_of("control"), None);
        let plan: PinningPlan = "scan=1,scan-2=0".parse().unwrap();
        assert_eq!((plan.core_of("scan-1"), plan.core_of("scan-2")), (Some(1), Some(0)));
        for bad in ["capture", "capture=x", "=1", "a=1,a=2", ""] {
            assert!(bad.parse::<PinningPlan>().is_err(), "{bad}");
        }
        let error = PinningPlan::parse("capture=4095").unwrap_err();
        assert!(error.to_string().contains("capture=4095"), "{error}");
    }

    #[test]
    fn auto_leaves_half_of_the_cores_and_small_machines_alone() {
        assert_eq!(PinningPlan::auto(&[0, 1]), PinningPlan::off());
        let plan = PinningPlan::auto(&[0, 1, 2, 3]);
        assert_eq!(
            (plan.core_of("capture"), plan.core_of("sender"), plan.core_of("committer")),
            (Some(3), Some(2), None)
        );
    }

    #[test]
    fn a_pinned_thread_is_read_back_on_its_core() {
        let core = *usable_cores().last().unwrap();
        let pinner = Pinner::new(format!("worker={core}").parse().unwrap());
        let callback = pinner.callback();
        std::thread::spawn(move || callback("worker-1")).join().unwrap();
        assert_eq!(pinner.threads()["worker-1"], [core]);
    }
}
