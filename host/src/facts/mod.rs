//! What this machine can do for Romulus, tried out where trying is cheap: what `romulus doctor`
//! reports.

mod compute;
mod devices;
mod kernel;
mod memory;
mod privilege;

pub use devices::find_in_path;

/// How a fact bears on Romulus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with the limit that the detail names.
    Warn,
    /// Not there; what needs it does not work.
    Missing,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fact {
    /// What it is about; a stable name.
    pub name: &'static str,
    /// How it bears on Romulus.
    pub status: Status,
    /// What was found, with units.
    pub detail: String,
    /// What it is needed for and how to get it, where it is not `Ok`.
    pub remedy: Option<String>,
}

impl Fact {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// All facts, in the order in which they are best read. Takes some milliseconds: runs
/// `qemu-system-x86_64 --version` and tracks a few pages of its own. Changes nothing (where the
/// kernel has no write-protect tracking, the soft-dirty bits of this process are reset).
pub fn gather() -> Vec<Fact> {
    vec![
        kernel::version(),
        kernel::dirty_tracking(),
        privilege::user(),
        privilege::ptrace(),
        privilege::locked_memory(),
        compute::cores(),
        compute::numa(),
        compute::kvm(),
        devices::qemu(),
        memory::available(),
        memory::shared_memory(),
        memory::huge_pages(),
        memory::swap(),
        devices::output_gate(),
        devices::rdma(),
    ]
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_have_distinct_names_and_a_remedy_exactly_where_something_is_amiss() {
        let facts = gather();
        let mut names: Vec<_> = facts.iter().map(|fact| fact.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), facts.len());
        for fact in facts {
            assert_eq!(fact.status == Status::Ok, fact.remedy.is_none(), "{fact:?}");
            assert!(!fact.detail.is_empty(), "{fact:?}");
        }
    }

    #[test]
    fn facts_are_written_as_json() {
        let fact = Fact::warn("swap", "on", "switch it off");
        let json = serde_json::to_value(&fact).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "name": "swap", "status": "warn", "detail": "on", "remedy": "switch it off" })
        );
    }
}
