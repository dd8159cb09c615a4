//! CPU time by thread, which a busy machine disturbs less than the clock on the wall.

use std::collections::BTreeMap;

/// CPU time of this process's living threads by name, in seconds; numbers at the end of a name
/// are left away.
pub struct CpuTimes(BTreeMap<String, f64>);

impl CpuTimes {
    /// Reads what the kernel has counted so far; empty where it does not count.
    pub fn now() -> Self {
        let mut times = BTreeMap::new();
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let (name, schedstat) = (read("comm"), read("schedstat"));
            let nanoseconds = schedstat.split(' ').next().and_then(|first| first.parse::<f64>().ok());
            let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
            *times.entry(name.to_owned()).or_default() += nanoseconds.unwrap_or(0.0) / 1e9;
        }
        Self(times)
    }

    /// What was used since `before` for each GiB of `gib`, in milliseconds: all, and by thread.
    pub fn since(&self, before: &Self, gib: f64) -> (f64, String) {
        let used = |(name, now): (&String, &f64)| {
            let milliseconds = 1e3 * (now - before.0.get(name).unwrap_or(&0.0)) / gib;
            (milliseconds, name.clone())
        };
        let mut used: Vec<_> = self.0.iter().map(used).filter(|(each, _)| *each >= 1.0).collect();
        used.sort_by(|a, b| b.0.total_cmp(&a.0));
        let text: Vec<_> = used.iter().map(|(each, name)| format!("{name} {each:.0}")).collect();
        (used.iter().map(|(each, _)| each).sum(), text.join(", "))
    }
}
