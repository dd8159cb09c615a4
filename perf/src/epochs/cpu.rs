//! Processor time by thread, and by the side that a thread works for.

use std::collections::BTreeMap;

/// Threads of the primary, by the beginnings of their names.
const PRIMARY: [&str; 7] = ["capture", "copy-", "scan-", "sender", "control", "connector", "arbiter"];
/// Threads of the backup. Streams are received by `rom-data`.
const BACKUP: [&str; 6] = ["accept", "committer", "homing", "takeover", "standby", "rom-data"];
/// Threads of the guest.
const GUEST: [&str; 1] = ["writer-"];

/// Processor time of this process's living threads by name, in seconds.
#[derive(Clone, Debug, Default)]
pub struct CpuTimes(BTreeMap<String, f64>);

/// Processor seconds by side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sides {
    /// The engine on the primary.
    pub primary: f64,
    /// The engine on the backup.
    pub backup: f64,
    /// The guest's writers.
    pub guest: f64,
}

impl CpuTimes {
    /// What the kernel has counted so far; empty where it does not count.
    pub fn now() -> Self {
        let mut times = BTreeMap::new();
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let seconds = from_schedstat(&read("schedstat")).or_else(|| from_stat(&read("stat")));
            *times.entry(read("comm").trim().to_owned()).or_default() += seconds.unwrap_or(0.0);
        }
        Self(times)
    }

    /// What was used since `before`, by thread.
    pub fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let used = |(name, now): (&String, &f64)| (name.clone(), now - before.0.get(name).unwrap_or(&0.0));
        self.0.iter().map(used).filter(|(_, seconds)| *seconds > 0.0).collect()
    }
}

impl Sides {
    /// Of what threads used.
    pub fn of(threads: &BTreeMap<String, f64>) -> Self {
        let sum = |beginnings: &[&str]| -> f64 {
            let mine = |name: &str| beginnings.iter().any(|beginning| name.starts_with(beginning));
            threads.iter().filter(|(name, _)| mine(name)).map(|(_, seconds)| seconds).sum()
        };
        Self { primary: sum(&PRIMARY), backup: sum(&BACKUP), guest: sum(&GUEST) }
    }
}

/// Nanoseconds on a processor, where the kernel keeps scheduler statistics.
fn from_schedstat(text: &str) -> Option<f64> {
    Some(text.split(' ').next()?.trim().parse::<f64>().ok()? / 1e9)
}

/// User and system time in ticks of 10 ms.
fn from_stat(text: &str) -> Option<f64> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_of_the_kernels_files_are_read() {
        assert_eq!(from_schedstat("1500000000 77 3\n"), Some(1.5));
        assert_eq!(from_schedstat(""), None);
        let stat = "7 (a (b) c) S 1 7 7 0 -1 64 0 0 0 0 150 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(from_stat(stat), Some(2.0));
        assert_eq!(from_stat("7 (a"), None);
    }

    #[test]
    fn a_thread_that_works_is_seen_on_its_side() {
        let before = CpuTimes::now();
        let work = || {
            let begun = std::time::Instant::now();
            while begun.elapsed().as_millis() < 20 {
                std::hint::spin_loop();
            }
            Sides::of(&CpuTimes::now().since(&before))
        };
        let sides = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("homing-7".into());
            builder.spawn_scoped(scope, work).unwrap().join().unwrap()
        });
        assert!(sides.backup > 0.0 && sides.primary == 0.0, "{sides:?}");
    }
}
