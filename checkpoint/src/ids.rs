//! The numbers of the protocol, each a type of its own.

use crate::wire::limits::INCARNATIONS_A_CONNECTION;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u64);
        impl $name {
            /// The number after this one.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A page of guest memory, counted through all regions of the guest in order.
    PageIndex
}
number! {
    /// A page-sized place in the backup's memory: homes `0..P`, spares `P..P+S`.
    FrameIndex
}
number! {
    /// An epoch and the checkpoint that ends it; the first is 1, 0 means none yet.
    Epoch
}
number! {
    /// Counts the swaps of a guest's record: takeovers, solo grants, re-pairings.
    Generation
}
number! {
    /// Counts the contents of a backup's arena that are no continuation of each other.
    Incarnation
}
number! {
    /// Counts the connections of a session.
    ConnectionNumber
}
number! {
    /// Counts the homings of an incarnation; the first is 1, 0 means none.
    HomingSequence
}
number! {
    /// A boundary in the guest's output, made at a pause. Never reused, also where an epoch
    /// number is.
    GateMark
}

impl Incarnation {
    /// That of a new arena, all zero, which a backup lends first on this connection. Other contents that
    /// it begins there have the numbers after it: no two backups that a session meets name two contents
    /// alike.
    pub fn of_new_arena(connection: ConnectionNumber) -> Self {
        Self(connection.0.saturating_mul(INCARNATIONS_A_CONNECTION))
    }
}

/// Names one protection session, from its first synchronization on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SessionId(pub u128);

/// What every message and every commit slot carries; one that does not match is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The session.
    pub session: SessionId,
    /// The generation of the arbiter's record under which the sender acts.
    pub generation: Generation,
    /// The arena's incarnation.
    pub incarnation: Incarnation,
    /// The connection.
    pub connection: ConnectionNumber,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { session, generation, incarnation, connection } = self;
        write!(
            f,
            "session {:032x}, generation {generation}, incarnation {incarnation}, connection {connection}",
            session.0
        )
    }
}

/// A point on the driver's monotonic clock, in nanoseconds. The machines never read a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Nanoseconds since an origin of the driver's choice.
    pub nanoseconds: u64,
}

impl Time {
    /// This time and a duration.
    pub fn after(self, duration: std::time::Duration) -> Time {
        Time { nanoseconds: self.nanoseconds.saturating_add(duration.as_nanos() as u64) }
    }

    /// From `earlier` to this time; zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> std::time::Duration {
        std::time::Duration::from_nanos(self.nanoseconds.saturating_sub(earlier.nanoseconds))
    }
}
