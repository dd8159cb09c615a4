//! Output gates on real taps and bridges, in network namespaces of their own. They need root, and
//! fail without.
//!
//! A tap that the test opens plays the guest's card: what QEMU does to a tap, the test does. The
//! program is also started again as a process of its own that holds a gate, to be stopped and killed.

#[path = "../../examples/gate_lab/mod.rs"]
mod gate_lab;

mod process;
mod redirect;
mod refusals;
mod torn;
mod world;

use libtest_mimic::{Arguments, Trial};

fn main() {
    if std::env::args().nth(1).as_deref() == Some(process::ROLE) {
        return process::be_the_gate();
    }
    let trial = |name: &str, body: fn()| {
        Trial::test(name, move || {
            body();
            Ok(())
        })
    };
    let tests = vec![
        trial("i1_nothing_leaves_before_its_release_and_all_leaves_after_in_order", redirect::order),
        trial("i1_boundaries_are_exact_under_load", redirect::boundaries),
        trial("i1_a_later_hold_holds_again", redirect::hold_again),
        trial("a_hundred_thousand_packets_are_held_without_loss", redirect::many),
        trial("two_cards_are_marked_and_released_together", redirect::two_cards),
        trial("i1_several_queues_of_a_card_share_its_marks", redirect::queues),
        trial("what_comes_to_the_guest_passes_at_once", redirect::incoming),
        trial("what_the_guest_sends_to_all_does_not_come_back", redirect::no_echo),
        trial("a_full_gate_tells_and_loses_nothing", redirect::full),
        trial("the_hosts_own_packets_on_the_inlet_are_not_the_guests", redirect::own_packets),
        trial("large_segments_stay_large", redirect::segments),
        trial("a_detached_gate_leaves_nothing_behind", redirect::detached),
        trial("a_filter_that_somebody_takes_away_is_noticed_counted_and_set_again", torn::torn),
        trial("what_is_taken_away_beside_the_filter_is_set_again", torn::half_torn),
        trial("i8_a_gate_whose_taps_are_taken_away_says_so_and_can_be_taken_away", torn::taken_away),
        trial("settings_of_others_are_put_back", redirect::put_back),
        trial("a_tap_without_a_plain_bridge_is_refused", refusals::bridges),
        trial("filters_of_others_are_not_touched", refusals::filters),
        trial("i1_a_killed_gate_stays_closed_until_the_guard_opens_it", process::killed),
        trial("i1_a_second_gate_clears_what_a_killed_one_left", process::second),
        trial("a_stopped_gate_does_not_freeze_the_guest", process::stopped),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit();
}
