//! The image at the backup as the primary knows it: how it comes about, the epochs on their way
//! to it, and the pages that no epoch has taken along yet.

use std::collections::VecDeque;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::extent::Extent;
use crate::ids::{
    ConnectionNumber, Epoch, GateMark, HomingSequence, Incarnation, PageIndex, SessionId, Time,
};
use crate::layout::ArenaShape;
use crate::nonce::pairing;
use crate::placement::planner::Planner;
use crate::wire::AckProof;

use super::settling::Settling;

/// Incarnations of one backup that are remembered. More come about only while the arbiter is away.
const LINEAGE: usize = 16;

/// How the image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing of this guest is known to be there.
    Empty,
    /// It is being written in rounds, nothing in it is live. With copy-only homes each round is
    /// cut into epochs without a state, from which nothing can be resumed.
    Rounds(Rounds),
    /// Epochs change it.
    Epochs,
    /// An epoch is too large for the spares: those before it are let in first.
    Draining,
    /// The backup holds an image that is no earlier state of the present one; to be invalidated
    /// once connected.
    Foreign,
    /// Invalidate is sent.
    Invalidating,
}

/// Synchronization rounds; at most one is under way (rule 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rounds {
    /// The last one posted, or under way.
    pub(super) round: u64,
    pub(super) step: RoundStep,
    /// Pages of the last one posted.
    pub(super) pages: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RoundStep {
    /// The next may begin.
    #[default]
    Idle,
    /// Given to the capture thread.
    Taken,
    /// Posted, not acked.
    Posted,
    /// With copy-only homes: its pages are `carry`, and go out as parts, as frames are free.
    /// `waits`: there was no room for the next part, and nothing was heard since.
    Parts { waits: bool },
}

/// An epoch placed and not acked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) epoch: Epoch,
    /// `None` for a part of a synchronization, which covers no output.
    pub(super) mark: Option<GateMark>,
    pub(super) paused_at: Time,
}

/// A checkpoint under way between the pause and its placement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capture {
    pub(super) connection: ConnectionNumber,
    pub(super) last: bool,
    /// Output was held when it began; otherwise it was free.
    pub(super) held: bool,
    pub(super) mark: GateMark,
    pub(super) paused_at: Time,
}

/// Pages of the last epoch and the time in which they were dirtied: from the placement of the epoch
/// before, up to which the guest stood still (for long, if it was held), to the pause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DirtyPace {
    runs_from: Option<Time>,
    pages: u64,
    span: Duration,
}

impl DirtyPace {
    /// An epoch of `pages` pages was placed at `now` after a pause at `paused_at`.
    pub(super) fn placed(&mut self, pages: u64, paused_at: Time, now: Time) {
        let ran = self.runs_from.replace(now).map(|from| paused_at.since(from));
        (self.pages, self.span) = (pages, ran.unwrap_or_default());
    }

    /// When at this pace as many pages as `room` will have been dirtied since the guest went on;
    /// `None` while no pace is known.
    pub(super) fn reaches(&self, room: u64) -> Option<Time> {
        let runs_from = self.runs_from.filter(|_| self.pages > 0 && !self.span.is_zero())?;
        let nanoseconds = self.span.as_nanos() * u128::from(room) / u128::from(self.pages);
        Some(runs_from.after(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))))
    }
}

/// The image and the way to it.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) incarnation: Incarnation,
    /// The present incarnation, last, and those that the same backup gave up for it.
    lineage: ArrayVec<Incarnation, LINEAGE>,
    pub(super) phase: Phase,
    pub(super) planner: Planner,
    /// A.
    pub(super) acked: Epoch,
    /// The last epoch placed.
    pub(super) placed: Epoch,
    /// The last epoch whose Commit was sent.
    pub(super) commit_sent: Epoch,
    /// h, as last heard.
    pub(super) homed_through: HomingSequence,
    pub(super) flights: VecDeque<Flight>,
    /// Pages that belong to the next epoch beside those that it collects (I7).
    pub(super) carry: Vec<Extent>,
    /// Room to merge in.
    pub(super) merged: Vec<Extent>,
    pub(super) capture: Option<Capture>,
    /// When the last checkpoint began, or should have.
    pub(super) began: Option<Time>,
    /// How fast the guest was dirtied before the last placed epoch.
    pub(super) pace: DirtyPace,
    /// No frames were free; waits for an ack or for this time.
    pub(super) stalled_until: Option<Time>,
    /// The present epoch is to end now.
    pub(super) early: bool,
    /// How quick the epochs on this connection are.
    pub(super) settling: Settling,
    /// Output up to this mark is acked and not released.
    pub(super) owed: Option<(GateMark, AckProof)>,
    /// The first epoch whose pause came when output was held, after it was last let go on the solo
    /// grant: its ack covers all that left.
    pub(super) fresh_from: Option<Epoch>,
}

impl Image {
    pub(super) fn new(shape: ArenaShape, low_water_spares: u64, depth: u64) -> Self {
        Self {
            incarnation: Incarnation(0),
            lineage: ArrayVec::new(),
            phase: Phase::Empty,
            planner: Planner::new(shape, low_water_spares),
            acked: Epoch(0),
            placed: Epoch(0),
            commit_sent: Epoch(0),
            homed_through: HomingSequence(0),
            flights: VecDeque::with_capacity(depth.min(256) as usize + 1),
            carry: Vec::new(),
            merged: Vec::new(),
            capture: None,
            began: None,
            pace: DirtyPace::default(),
            stalled_until: None,
            early: false,
            settling: Settling::default(),
            owed: None,
            fresh_from: None,
        }
    }

    /// Begins anew in an arena that holds nothing: everything will be sent.
    pub(super) fn restart(&mut self, incarnation: Incarnation) {
        self.lineage.clear();
        self.restart_promised(incarnation);
    }

    /// Whether a `Protected` record's nonce names this image, or one that its backup has given up
    /// for it.
    pub(super) fn is_named_by(&self, nonce: u64, session: SessionId) -> bool {
        self.lineage.iter().any(|incarnation| pairing(session, *incarnation) == nonce)
    }

    /// As [`restart`](Self::restart), when the backup of the present image promised not to take
    /// over from it.
    pub(super) fn restart_promised(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        if self.lineage.is_full() {
            self.lineage.remove(0);
        }
        self.lineage.push(incarnation);
        self.phase = Phase::Rounds(Rounds::default());
        self.planner.reset();
        self.acked = Epoch(0);
        self.placed = Epoch(0);
        self.commit_sent = Epoch(0);
        self.homed_through = HomingSequence(0);
        self.flights.clear();
        self.carry.clear();
        self.pace = DirtyPace::default();
        self.capture = None;
        self.stalled_until = None;
        self.settling = Settling::default();
        self.owed = None;
        self.fresh_from = None;
    }

    /// Whether the backup's committed epoch covers all output that has left (given that the gate
    /// has held since).
    pub(super) fn is_fresh(&self) -> bool {
        self.phase == Phase::Epochs && self.fresh_from.is_some_and(|first| first <= self.acked)
    }

    /// Output was let go on the solo grant: no pause so far covers it.
    pub(super) fn output_let_go(&mut self) {
        self.fresh_from = None;
        self.owed = None;
        self.capture = None;
    }

    /// The connection is gone. What is known of the image stays known; the next Welcome tells how
    /// much of it is right.
    pub(super) fn disconnected(&mut self) {
        self.capture = None;
        self.stalled_until = None;
        self.phase = match self.phase {
            Phase::Epochs | Phase::Draining | Phase::Invalidating => Phase::Epochs,
            Phase::Empty | Phase::Rounds(_) | Phase::Foreign => Phase::Empty,
        };
    }

    /// Goes on from what the backup has committed (rule 9). Returns the pages to send again.
    pub(super) fn resume(&mut self, committed: Epoch, homed_through: HomingSequence) -> u64 {
        self.planner.reconnected(committed, homed_through, &mut self.carry);
        normalize(&mut self.carry);
        self.flights.clear();
        self.settling = Settling::default();
        self.acked = committed;
        self.placed = committed;
        self.commit_sent = committed;
        self.homed_through = homed_through;
        self.carry.iter().map(|extent| extent.pages).sum()
    }

    /// When the guest is to be paused although D epochs are unacked: at the latest before its
    /// epoch outgrows half of the spares, beyond which it might never fit (rule 11).
    pub(super) fn outgrows_at(&self, spares: u64) -> Option<Time> {
        let carried: u64 = self.carry.iter().map(|extent| extent.pages).sum();
        self.pace.reaches((spares / 2).saturating_sub(carried))
    }

    /// Keeps pages for the next epoch.
    pub(super) fn keep(&mut self, dirty: &[Extent]) {
        if !dirty.is_empty() {
            self.carry.extend_from_slice(dirty);
            normalize(&mut self.carry);
        }
    }

    /// Puts the pages kept and `dirty` together into `merged`.
    pub(super) fn merge(&mut self, dirty: &[Extent]) {
        self.merged.clear();
        self.merged.extend_from_slice(&self.carry);
        self.merged.extend_from_slice(dirty);
        normalize(&mut self.merged);
    }

    /// A checkpoint begins that was due. The next one counts from when this was due: what waking up
    /// and stopping the guest take would otherwise make every interval longer. A whole interval
    /// late, nothing is caught up.
    pub(super) fn begin(&mut self, due: Time, interval: Duration, now: Time) {
        let on_time = !self.early && now.since(due) < interval;
        self.began = Some(if on_time { due } else { now });
    }

    /// When the next epoch is due.
    pub(super) fn due(&self, interval: Duration, now: Time) -> Time {
        let timer = self.began.filter(|_| !self.early).map_or(now, |at| at.after(interval));
        self.stalled_until.map_or(timer, |until| until.max(timer))
    }
}

/// Sorts extents and joins those that touch or overlap.
fn normalize(extents: &mut Vec<Extent>) {
    extents.retain(|extent| extent.pages > 0);
    extents.sort_unstable_by_key(|extent| extent.first);
    let mut kept = 0;
    for at in 1..extents.len() {
        let next = extents[at];
        let last = &mut extents[kept];
        let end = last.first.0 + last.pages;
        if next.first.0 <= end {
            last.pages = end.max(next.first.0 + next.pages) - last.first.0;
        } else {
            kept += 1;
            extents[kept] = next;
        }
    }
    extents.truncate(kept + 1);
}

/// Whether all pages exist, for a guest that reports its own dirty pages.
pub(super) fn within(extents: &[Extent], pages: u64) -> bool {
    extents.iter().all(|extent| {
        let PageIndex(first) = extent.first;
        first.checked_add(extent.pages).is_some_and(|end| end <= pages)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_says_when_an_epoch_outgrows_its_room() {
        let at = |nanoseconds| Time { nanoseconds };
        let mut pace = DirtyPace::default();
        assert_eq!(pace.reaches(10), None);
        pace.placed(100, at(1_000), at(1_000));
        assert_eq!(pace.reaches(10), None);
        pace.placed(100, at(2_000), at(2_000));
        assert_eq!(pace.reaches(10), Some(at(2_100)));
        assert_eq!(pace.reaches(u64::MAX), Some(at(u64::MAX)));
        pace.placed(0, at(3_000), at(3_000));
        assert_eq!(pace.reaches(10), None);
    }

    /// A guest that is held for nine tenths of the time dirties ten times as fast while it runs.
    #[test]
    fn the_time_in_which_the_guest_is_held_does_not_count_for_its_pace() {
        let at = |nanoseconds| Time { nanoseconds };
        let mut pace = DirtyPace::default();
        pace.placed(100, at(100), at(1_000));
        pace.placed(100, at(1_100), at(2_000));
        assert_eq!(pace.reaches(50), Some(at(2_050)));
    }

    fn extent(first: u64, pages: u64) -> Extent {
        Extent { first: PageIndex(first), pages }
    }

    #[test]
    fn normalized_extents_are_sorted_joined_and_cover_the_same_pages() {
        let mut extents = vec![extent(9, 2), extent(1, 3), extent(4, 1), extent(2, 1), extent(20, 0)];
        normalize(&mut extents);
        assert_eq!(extents, [extent(1, 4), extent(9, 2)]);
        let mut none = Vec::new();
        normalize(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn an_end_beyond_the_guest_is_seen_without_overflow() {
        assert!(within(&[extent(0, 4)], 4));
        assert!(!within(&[extent(1, 4)], 4));
        assert!(!within(&[extent(u64::MAX, 2)], 4));
    }
}
