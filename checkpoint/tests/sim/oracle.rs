//! Knows the whole truth and checks the invariants against it.

use std::collections::VecDeque;

use romulus_checkpoint::arbiter::{Ownership, Record};
use romulus_checkpoint::{Epoch, Identity};

use super::guest::Snapshot;

/// What the backup has committed.
#[derive(Clone, Debug)]
pub struct Committed {
    pub identity: Identity,
    pub epoch: Epoch,
    pub snapshot: Snapshot,
}

/// Numbers for the summary, and what the liveness check looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub steps: u64,
    pub commits: u64,
    pub released: u64,
    pub full_syncs: u64,
    pub resumptions: u64,
    pub overflows: u64,
    pub stalls: u64,
    /// Times that a guest stayed paused for want of frames.
    pub throttled: u64,
    pub homings: u64,
    /// Epochs without a state, of synchronizations with copy-only homes.
    pub parts: u64,
    pub crashes: u64,
    pub takeovers: u64,
    pub solos: u64,
    pub placed_checks: u64,
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub stats: Stats,
    pub violation: Option<String>,
    /// The last placed epochs and the guest at their pauses.
    snapshots: VecDeque<(Identity, Epoch, Snapshot)>,
    pub committed: Option<Committed>,
    /// All output below is covered by an epoch that was committed.
    covered: u64,
    /// One more than the highest packet that left.
    left: u64,
    /// The record as the arbiter has it.
    pub record: Option<Record>,
    /// What the survivor knows of: its output so far when it was activated.
    pub survivor_sent: Option<u64>,
    /// The gate is known to hold or drop.
    pub gate_open: bool,
}

impl Oracle {
    /// Nothing has happened, output is free.
    pub fn new() -> Self {
        Self { gate_open: true, ..Self::default() }
    }

    /// Notes the first violation.
    pub fn violate(&mut self, invariant: &str, what: String) {
        self.violation.get_or_insert(format!("{invariant}: {what}"));
    }

    pub fn failed(&self) -> bool {
        self.violation.is_some()
    }

    /// An epoch was placed with the guest as in `snapshot`.
    pub fn placed(&mut self, identity: &Identity, epoch: Epoch, snapshot: Snapshot) {
        self.snapshots.push_front((*identity, epoch, snapshot));
        self.snapshots.truncate(32);
    }

    /// The backup committed an epoch.
    pub fn committed(&mut self, identity: &Identity, epoch: Epoch, state: &[u8]) {
        self.stats.commits += 1;
        let mut placed = self.snapshots.iter();
        let Some((.., snapshot)) = placed.find(|(i, e, _)| (i, *e) == (identity, epoch)) else {
            self.violate("I5", format!("epoch {epoch} of {identity:?} was committed and never placed"));
            return;
        };
        let snapshot = snapshot.clone();
        if snapshot.state != state {
            self.violate("I2", format!("the state committed as epoch {epoch} is not the guest's"));
        }
        if let Some(before) = self.committed.take() {
            let same = before.identity.session == identity.session
                && before.identity.incarnation == identity.incarnation;
            if same && epoch != before.epoch.next() {
                let text = format!("epoch {epoch} was committed after epoch {}", before.epoch);
                self.violate("I5", text);
            }
            if same && identity.generation < before.identity.generation {
                self.violate("I5", format!("the generation went back: {identity:?}"));
            }
        }
        self.covered = self.covered.max(snapshot.sent);
        self.committed = Some(Committed { identity: *identity, epoch, snapshot });
    }

    /// The backup committed a part of a synchronization: nothing that could be resumed.
    pub fn part_committed(&mut self, identity: &Identity, epoch: Epoch) {
        self.stats.parts += 1;
        let whole = self.committed.as_ref().map(|committed| &committed.identity);
        if whole.is_some_and(|whole| {
            (whole.session, whole.incarnation) == (identity.session, identity.incarnation)
        }) {
            self.violate("I2", format!("part {epoch} was committed over a whole image"));
        }
    }

    /// The image on the backup is gone or not to be used.
    pub fn image_gone(&mut self) {
        self.committed = None;
    }

    /// A packet left against an ack.
    pub fn left_against_ack(&mut self, packet: u64) {
        if packet >= self.covered {
            self.violate("I1", format!("packet {packet} left, committed are those below {}", self.covered));
        }
        self.packet_left(packet);
    }

    /// A packet left through an open gate.
    pub fn left_openly(&mut self, packet: u64) {
        // Before the first record nobody else can have the guest.
        let owner = self.record.as_ref().map(|record| &record.ownership);
        if !matches!(owner, None | Some(Ownership::Solo { .. })) {
            let record = self.record.as_ref().map_or("no record".to_owned(), Record::describe);
            self.violate("I9", format!("packet {packet} left through an open gate while {record}"));
        }
        self.packet_left(packet);
    }

    fn packet_left(&mut self, packet: u64) {
        self.stats.released += 1;
        self.left = self.left.max(packet + 1);
        if let Some(sent) = self.survivor_sent
            && packet >= sent
        {
            self.violate("I1", format!("packet {packet} left, the survivor knows those below {sent}"));
        }
    }

    /// The record changes (when nobody arbitrates: the primary's own).
    pub fn record_swapped(&mut self, old: Option<&Record>, new: &Record, shared: bool) {
        use Ownership::{Ended, Owned, Protected, Solo};
        let legal = match (old.map(|record| &record.ownership), &new.ownership) {
            (None, Solo { .. }) | (Some(Protected { .. }), Solo { .. } | Owned { .. }) => true,
            // A new process fences off what a dead one still asks.
            (Some(Solo { primary: one }), Solo { primary: two }) => one == two,
            (Some(Solo { .. }), Protected { .. }) => true,
            (Some(Solo { .. } | Protected { .. }), Ended) => true,
            _ => false,
        };
        let next = old.map_or(1, |record| record.generation.0 + 1);
        if shared && (!legal || new.generation.0 != next) {
            self.violate("I9", format!("the record went from {old:?} to {new:?}"));
        }
        if matches!(new.ownership, Protected { .. }) {
            if self.gate_open {
                self.violate("I1", "the record says protected while output is free".into());
            }
            match &self.committed {
                // The image was lost while the swap was on its way: the pairing that the record
                // names is nobody's, so nobody takes over by it.
                None => {}
                Some(committed) if self.left > committed.snapshot.sent => {
                    let (left, sent) = (self.left, committed.snapshot.sent);
                    self.violate("I1", format!("protected with {left} packets out and {sent} committed"));
                }
                Some(_) => {}
            }
        }
        if matches!(new.ownership, Solo { .. }) && old.is_some() {
            self.stats.solos += 1;
        }
        self.record = Some(new.clone());
    }

    /// The survivor starts to run as of this snapshot.
    pub fn activated(&mut self, granted: bool) {
        self.stats.takeovers += 1;
        if !granted {
            self.violate("I9", "the standby was activated without a grant".into());
        }
        if self.survivor_sent.is_some() {
            self.violate("I9", "the standby was activated twice".into());
        }
        let Some(committed) = &self.committed else {
            self.violate("I2", "the standby was activated from nothing".into());
            return;
        };
        let sent = committed.snapshot.sent;
        self.survivor_sent = Some(sent);
        if self.left > sent {
            let text = format!("{} packets left, the survivor knows of {sent}", self.left);
            self.violate("I1", text);
        }
    }
}
