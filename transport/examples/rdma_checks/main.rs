//! Checks of the rdma fabric that the contract of every fabric cannot hold: wrong options, hostile
//! peers, limits of the machine, threads, and that steady state does not allocate. Needs an RDMA
//! device and root:
//! `scripts/lab run --kind uml --hosts 1 -- target/checked/examples/rdma_checks --address 10.77.0.1`.
//!
//! Ends with `N passed, 0 failed, N skipped`, or with a panic that says what is broken.

mod allocations;
mod hostile;
mod limits;
mod link;
mod options;
mod pair;
mod threads;

use std::net::IpAddr;
use std::time::Instant;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Checks the rdma fabric on a host with an RDMA device")]
struct Options {
    /// The address of this host's RDMA port.
    #[arg(long)]
    address: IpAddr,
    /// The network interface of the port: also takes its link down, for a moment.
    #[arg(long)]
    interface: Option<String>,
    /// Run only the checks whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Called by the program itself: registers this much memory and says what came of it.
    #[arg(long, hide = true)]
    register_bytes: Option<usize>,
}

type Check = fn(&pair::Place);

const LINK_CHECK: &str = "a_link_that_goes_down_is_noticed";

const CHECKS: &[(&str, Check)] = &[
    ("devices_are_listed_whole", options::devices_are_listed_whole),
    ("wrong_device_port_gid_and_mtu_are_named", options::wrong_device_port_gid_and_mtu_are_named),
    ("sides_with_different_mtu_agree", options::sides_with_different_mtu_agree),
    ("each_side_has_its_own_class_of_traffic", options::each_side_has_its_own_class_of_traffic),
    ("every_usable_gid_works", options::every_usable_gid_works),
    ("an_address_of_the_other_family_works", options::an_address_of_the_other_family_works),
    ("a_forged_key_writes_nothing", hostile::a_forged_key_writes_nothing),
    ("an_offset_outside_the_arena_writes_nothing", hostile::an_offset_outside_the_arena_writes_nothing),
    ("keys_of_a_closed_connection_are_dead", hostile::keys_of_a_closed_connection_are_dead),
    ("markers_without_credit_fail_by_name", hostile::markers_without_credit_fail_by_name),
    ("false_credits_end_the_connection", hostile::false_credits_end_the_connection),
    ("a_peer_that_stops_is_noticed", hostile::a_peer_that_stops_is_noticed),
    ("too_low_a_memory_limit_is_named", limits::too_low_a_memory_limit_is_named),
    ("memory_that_cannot_be_pinned_is_named", limits::memory_that_cannot_be_pinned_is_named),
    ("much_memory_is_registered_in_slices", limits::much_memory_is_registered_in_slices),
    ("threads_are_announced_and_gone_after_close", threads::threads_are_announced_and_gone_after_close),
    ("spinning_and_blocking_both_work", threads::spinning_and_blocking_both_work),
    ("epochs_do_not_allocate_on_either_side", allocations::epochs_do_not_allocate_on_either_side),
    (LINK_CHECK, link::a_link_that_goes_down_is_noticed),
];

fn main() {
    let options = Options::parse();
    let place = pair::Place { address: options.address, interface: options.interface };
    if let Some(bytes) = options.register_bytes {
        limits::register_and_report(&place, bytes);
        return;
    }
    let (mut passed, mut skipped) = (0, 0);
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(&options.only)) {
        if place.interface.is_none() && *name == LINK_CHECK {
            println!("{name}: skipped, it needs --interface");
            skipped += 1;
            continue;
        }
        let start = Instant::now();
        check(&place);
        println!("{name}: ok in {:.2} s", start.elapsed().as_secs_f64());
        passed += 1;
    }
    assert!(passed + skipped > 0, "no check has {:?} in its name", options.only);
    println!("{passed} passed, 0 failed, {skipped} skipped");
}
