//! Who protects a domain: a note in xenstore, beside the domain's own nodes, with which a protector
//! that died is told from one that lives.

use crate::error::XenError;
use crate::library::Store;

/// The note of one domain.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    owner: String,
    port: String,
}

/// What a note says of its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody.
    Nobody,
    /// A process that has ended, or this one.
    Dead,
    /// Another process, which lives, by its id.
    Alive(u32),
}

impl Claim {
    pub fn new(domid: u32) -> Self {
        let node = |name: &str| format!("/local/domain/{domid}/romulus/{name}");
        Self { owner: node("owner"), port: node("port") }
    }

    /// Who has the domain.
    pub fn owner(&self, store: &Store) -> Result<Owner, XenError> {
        Ok(judge(store.read(&self.owner)?.as_deref(), std::process::id(), start_time))
    }

    /// This process has it from now on, unless another that lives has it; who had it before.
    pub fn take(&self, store: &Store) -> Result<Owner, XenError> {
        let pid = std::process::id();
        let note = format!("{pid} {}", start_time(pid).unwrap_or_default());
        loop {
            let transaction = store.transaction()?;
            let before = judge(transaction.read(&self.owner)?.as_deref(), pid, start_time);
            if matches!(before, Owner::Alive(_)) {
                return Ok(before);
            }
            transaction.write(&self.owner, &note)?;
            if transaction.commit()? {
                return Ok(before);
            }
        }
    }

    /// Nobody has it from now on.
    pub fn give_back(&self, store: &Store) -> Result<(), XenError> {
        store.remove(&self.owner)
    }

    /// The event channel that an earlier protector made in the domain; it stays there for the next.
    pub fn port(&self, store: &Store) -> Result<Option<u32>, XenError> {
        Ok(store.read(&self.port)?.and_then(|text| text.parse().ok()))
    }

    /// Notes the event channel.
    pub fn keep_port(&self, store: &Store, port: u32) -> Result<(), XenError> {
        store.write(&self.port, &port.to_string())
    }
}

/// A note is a process id and the time at which the process started, since ids are used again.
fn judge(note: Option<&str>, own: u32, start_time: impl Fn(u32) -> Option<u64>) -> Owner {
    let Some(text) = note else { return Owner::Nobody };
    let (pid, started) = text.split_once(' ').unwrap_or((text, ""));
    let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else { return Owner::Dead };
    if pid != own && start_time(pid) == Some(started) { Owner::Alive(pid) } else { Owner::Dead }
}

/// When a process started, in ticks since the machine did; `None` if it has ended.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 22; the state is field 3.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_a_dead_process_is_told_from_one_of_a_live_one() {
        let (own, init) = (std::process::id(), 1);
        let note = |pid| format!("{pid} {}", start_time(pid).unwrap());
        assert_eq!(judge(None, own, start_time), Owner::Nobody);
        assert_eq!(judge(Some(&note(own)), init, start_time), Owner::Alive(own));
        assert_eq!(judge(Some(&note(own)), own, start_time), Owner::Dead, "its own of an earlier protection");
        assert_eq!(judge(Some(&format!("{own} 1")), init, start_time), Owner::Dead, "the id was used again");
        assert_eq!(judge(Some("1 2"), own, |_| None), Owner::Dead);
        for text in ["", "x", "1", "-1 5", "7 y"] {
            assert_eq!(judge(Some(text), own, |_| Some(5)), Owner::Dead, "{text}");
        }
    }
}
