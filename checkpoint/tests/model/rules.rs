//! The clauses of the rules of docs/architecture.md that a model can leave out.

/// One clause. The number in front is its rule's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// 1a: what the map at A uses is used.
    MapIsUsed,
    /// 1a: that map has the homings up to h applied.
    HomingsAreApplied,
    /// 1b: what an unacked epoch places into is used.
    UnackedIsUsed,
    /// 1b: the first epoch of an incarnation places the whole image.
    FirstEpochIsWhole,
    /// 1c: the source of a homing after h is used.
    HomingSourceIsUsed,
    /// 1c: its target as well.
    HomingTargetIsUsed,
    /// 2: the first epoch waits for the writes of the synchronization round.
    RoundsAreAcked,
    /// 4: a homing is asked for where the page's newest version is.
    HomingOfTheNewest,
    /// 4: ... when that epoch's Commit was sent before it.
    HomeFollowsCommit,
    /// 4: ... and no unacked epoch targets the home.
    HomeOfNoUnackedTarget,
    /// 4: the backup never homes on its own.
    NoHomingUnasked,
    /// 4: the backup takes a Home after the Commits that were sent before it.
    HomeWaitsForCommit,
    /// 3: a homing out of sequence ends the connection.
    HomingsInSequence,
    /// 5: a homing whose entry is no longer the source is dropped.
    SupersededIsDropped,
    /// 5: one copy at a time to a target.
    OneCopyToATarget,
    /// 5: a commit cancels running copies of its pages: they do not change the map.
    CommitCancelsCopies,
    /// 5: h passes a cancelled copy only when it touches memory no more.
    HWaitsForCopies,
    /// 5: copies begin in sequence, so that h covers every copy that took effect.
    CopiesInSequence,
    /// 6: C and h are sampled together.
    AckIsAtomic,
    /// 7: K >= D + 1.
    EnoughSlots,
    /// 8: Commit(n) requires n = C + 1.
    CommitIsNext,
    /// I4: an epoch commits after all its writes are placed.
    CommitIsFenced,
    /// 9: the old connection is destroyed before the Welcome: its writes cannot land.
    OldWritesDie,
    /// 9: ... nor can its messages arrive.
    OldMessagesDie,
    /// 9: homing is quiescent before the Welcome.
    HomingIsQuiet,
    /// 9: the Welcome counts as Ack(C, h).
    WelcomeIsAck,
    /// 9: the dirty sets of the epochs after C are part of the next one.
    DirtySetsMerge,
    /// 9: homings not received are dropped.
    LostHomingsDrop,
    /// 10: the fence comes before the first homing copy.
    FenceFirst,
    /// 10: what is displaced is homed before the guest runs.
    TakeoverHomes,
    /// 10: no delta from an arena whose takeover has begun.
    TakeoverEndsIncarnation,
    /// 11: an image is overwritten only after the backup's promise.
    InvalidateFirst,
}

/// A configuration: sizes, bounds and what is left out.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// P.
    pub pages: u8,
    /// S.
    pub spares: u8,
    /// D.
    pub depth: u8,
    /// Epochs placed in all, those that are lost with a connection included.
    pub placements: u8,
    /// Connections lost at most.
    pub losses: u8,
    /// Homings asked for at most.
    pub homings: u8,
    /// Writes that land by themselves, before (or, with a clause left out, after) their epoch's
    /// fence; all others land with it. See the replication model for why one is enough.
    pub early: u8,
    /// Whether a takeover is searched step by step; otherwise each state is judged by what a
    /// takeover at that instant would resume.
    pub takeover: bool,
    /// Homes are reached by homing alone (the production code only).
    pub copy_only: bool,
    /// The clauses left out.
    pub without: &'static [Rule],
}

impl Config {
    /// Whether a clause holds.
    pub fn on(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    /// K.
    pub fn slots(&self) -> u8 {
        self.depth + u8::from(self.on(Rule::EnoughSlots))
    }
}

/// The configuration in which each clause is left out.
pub const SMALL: Config = Config {
    pages: 2,
    spares: 2,
    depth: 2,
    placements: 3,
    losses: 1,
    homings: 2,
    early: 1,
    takeover: true,
    copy_only: false,
    without: &[],
};
