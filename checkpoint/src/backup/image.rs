//! The image on this backup: its committed epoch, and what has arrived for the next ones.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use crate::ids::{ConnectionNumber, Epoch, HomingSequence, Incarnation, SessionId};
use crate::layout::ArenaShape;
use crate::nonce::pairing;
use crate::placement::committed::CommittedMap;
use crate::wire::message::{Homing, MAX_HOMINGS};

/// Incarnations of a session that are remembered. More come about only while the arbiter is away.
const LINEAGE: usize = 16;

/// Whether the state was loaded for trial in this incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    Due,
    Running,
    Passed,
}

/// A homing that came before the epochs that it depends on were committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitingHoming {
    /// Epochs up to this one come first.
    pub(super) after: Epoch,
    pub(super) sequence: HomingSequence,
    pub(super) homing: Homing,
}

/// Synchronization rounds of the present connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rounds {
    /// The last `RoundEnd`.
    pub(super) ended: u64,
    /// The last round whose markers are in.
    pub(super) fenced: u64,
    pub(super) acked: u64,
}

/// The image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) incarnation: Incarnation,
    /// The incarnations that this process has held in this session, the present one last. A
    /// record may still name an earlier one: the primary has not gone solo since, so the present
    /// image covers what it released.
    lineage: ArrayVec<Incarnation, LINEAGE>,
    /// Of the same connection, before an Invalidate: heartbeats under it may still arrive.
    pub(super) previous: Option<Incarnation>,
    pub(super) map: CommittedMap,
    /// C.
    pub(super) committed: Epoch,
    /// The last epoch told to the primary as committed, by Ack or Welcome.
    pub(super) told: Epoch,
    pub(super) told_homed: HomingSequence,
    pub(super) trial: Trial,
    /// Homes are reached by homing alone.
    pub(super) copy_only: bool,
    /// The committed map with the committed state is a guest. With copy-only homes it is not while
    /// the primary sends the image in parts, as epochs without a state.
    pub(super) whole: bool,
    /// The last epoch whose Commit has arrived on this connection.
    pub(super) asked: Epoch,
    /// The last epoch whose markers are in.
    pub(super) fenced: Epoch,
    /// The slot of C + 1 is being read.
    pub(super) reading: bool,
    pub(super) rounds: Rounds,
    pub(super) waiting: VecDeque<WaitingHoming>,
    /// No copy may start.
    pub(super) quiescing: bool,
    /// The primary asked to forget the image; the promise waits for running copies and trials.
    pub(super) invalidating: bool,
    /// A takeover has begun to copy: no delta from here.
    pub(super) consumed: bool,
    /// Its arena is given back.
    pub(super) abandoned: bool,
}

impl Image {
    pub(super) fn new(shape: ArenaShape, connection: ConnectionNumber) -> Self {
        let incarnation = Incarnation::of_new_arena(connection);
        Self {
            incarnation,
            lineage: ArrayVec::from_iter([incarnation]),
            previous: None,
            map: CommittedMap::new(shape),
            committed: Epoch(0),
            told: Epoch(0),
            told_homed: HomingSequence(0),
            trial: Trial::Due,
            copy_only: shape.copy_only_homes,
            whole: false,
            asked: Epoch(0),
            fenced: Epoch(0),
            reading: false,
            rounds: Rounds::default(),
            waiting: VecDeque::with_capacity(MAX_HOMINGS),
            quiescing: false,
            invalidating: false,
            consumed: false,
            abandoned: false,
        }
    }

    /// Whether it can be resumed, by takeover or by a delta.
    pub(super) fn is_resumable(&self) -> bool {
        self.trial == Trial::Passed && self.committed > Epoch(0) && !self.invalidating && !self.consumed
    }

    /// Whether its parts arrive: acked and homed, and nothing to resume.
    pub(super) fn is_in_parts(&self) -> bool {
        !self.whole && self.committed > Epoch(0) && !self.invalidating && !self.consumed
    }

    /// Whether copies may be made: in parts, or after the trial, which looks at the homes.
    pub(super) fn may_home(&self) -> bool {
        (self.trial == Trial::Passed || self.is_in_parts()) && !self.quiescing
    }

    /// What arrived and was not committed is void.
    pub(super) fn disconnected(&mut self) {
        self.asked = self.committed;
        self.fenced = self.committed;
        self.reading = false;
        self.rounds = Rounds::default();
        self.waiting.clear();
        self.previous = None;
    }

    /// A new connection goes on from what is committed. Homing is quiescent.
    pub(super) fn resume(&mut self) {
        self.disconnected();
        self.map.drop_pending();
        self.quiescing = false;
        self.told = self.committed;
        self.told_homed = self.map.homed_through();
    }

    /// Forgets everything. No copy and no trial runs.
    pub(super) fn restart(&mut self, incarnation: Incarnation) {
        self.map.reset();
        self.committed = Epoch(0);
        self.told = Epoch(0);
        self.told_homed = HomingSequence(0);
        self.trial = Trial::Due;
        self.whole = false;
        self.invalidating = false;
        self.consumed = false;
        self.quiescing = false;
        self.disconnected();
        self.incarnation = incarnation;
        if self.lineage.is_full() {
            self.lineage.remove(0);
        }
        self.lineage.push(incarnation);
    }

    /// Whether a `Protected` record's nonce lets this image take over.
    pub(super) fn is_named_by(&self, nonce: u64, session: SessionId) -> bool {
        self.lineage.iter().any(|incarnation| pairing(session, *incarnation) == nonce)
    }

    /// The incarnation after this one, in an arena that was written before; `None` when the connection
    /// has used up its share.
    pub(super) fn next_incarnation(&self, connection: ConnectionNumber) -> Option<Incarnation> {
        let next = Incarnation::of_new_arena(connection).next().max(self.incarnation.next());
        (next < Incarnation::of_new_arena(connection.next())).then_some(next)
    }

    /// Whether nothing is live, so that homes may be written in rounds.
    pub(super) fn takes_rounds(&self) -> bool {
        !self.copy_only && self.asked == Epoch(0) && self.fenced == Epoch(0) && !self.invalidating
    }

    /// Whether a read of the next slot is due, which then counts as under way.
    pub(super) fn begin_read(&mut self) -> Option<Epoch> {
        let next = self.committed.next();
        let arrived = next <= self.asked && next <= self.fenced;
        if !arrived || self.reading || self.invalidating || self.consumed {
            return None;
        }
        self.reading = true;
        Some(next)
    }
}
