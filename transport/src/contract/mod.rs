//! The contract that every fabric keeps, as tests that take the fabric as a parameter.
//!
//! Each check makes its own connections, panics with a message where the contract is broken, and
//! waits for events rather than for time to pass. A test target of a fabric lists all of them
//! with [`contract_tests!`](crate::contract_tests); a program runs them by [`CHECKS`].

mod close;
mod death;
mod fences;
mod handshake;
mod messages;
mod now;
mod pair;
mod pattern;
mod placement;
mod through;

use std::net::SocketAddr;
use std::time::Duration;

use crate::fabric::Fabric;

pub use close::*;
pub use death::*;
pub use fences::*;
pub use handshake::*;
pub use messages::*;
pub use now::*;
pub use placement::*;
pub use through::*;

/// What is to be checked.
pub struct Subject {
    /// Makes the listening ends.
    pub listening: Box<dyn Fabric>,
    /// Makes the connecting ends; may be another instance of the same kind.
    pub connecting: Box<dyn Fabric>,
    /// Where to listen, with port 0.
    pub address: SocketAddr,
    /// How many bytes the load of [`much_goes_through_a_small_arena`] moves.
    pub through_bytes: u64,
    /// When to give up waiting for something that must happen. No check takes longer on a fabric
    /// that keeps the contract, however slow.
    pub patience: Duration,
}

/// One check.
pub type Check = fn(&Subject);

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        /// All checks by name.
        pub const CHECKS: &[(&str, Check)] = &[$((stringify!($name), $name)),*];

        /// Makes a `#[test]` of each check; the parameter is an expression that gives a
        /// [`Subject`](crate::contract::Subject).
        #[macro_export]
        macro_rules! contract_tests {
            ($subject:expr) => {
                $(
                    #[test]
                    fn $name() {
                        $crate::contract::$name(&$subject);
                    }
                )*
            };
        }
    };
}

checks!(
    writes_are_placed_exactly,
    writes_out_of_bounds_are_refused_whole,
    the_responder_cannot_write,
    registered_regions_are_told_apart,
    what_is_written_now_may_change_at_once,
    a_fence_comes_after_every_write_before_it,
    markers_come_in_order_and_none_is_left_out,
    markers_need_not_grow,
    completion_reaches_every_marker,
    messages_keep_their_order_both_ways,
    messages_of_many_threads_arrive_whole,
    messages_too_long_are_refused,
    an_idle_connection_says_so,
    the_responder_notices_a_dead_initiator_at_each_point,
    the_initiator_notices_a_dead_responder_at_each_point,
    a_peer_that_leaves_the_handshake_is_noticed,
    nothing_lands_after_close,
    close_is_final_and_wakes_waiters,
    dropping_an_endpoint_closes_it,
    garbage_in_the_handshake_is_refused,
    a_listener_serves_many_connections_apart,
    nobody_listens_is_an_error,
    much_goes_through_a_small_arena,
);
