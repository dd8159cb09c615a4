//! What comes late, when its connection is gone and the next one stands already.

use romulus_checkpoint::primary::Work;
use romulus_checkpoint::{Extent, PageIndex};

use super::harness::{PAGES, World};

/// A connection that the world did not make by itself, nor makes again.
fn connected(seed: u64) -> World {
    let mut world = World::new(seed);
    world.network = false;
    world.connect();
    assert!(world.connected);
    world
}

#[test]
fn i8_a_round_of_an_old_connection_adds_nothing_to_the_first_epoch_of_the_next() {
    for seed in 0..10 {
        let mut world = connected(seed);
        assert_eq!(world.primary.next_work(world.now), Work::Round { round: 1, everything: true });
        world.cut();
        world.connect();
        // The sender finds out only now that it cannot send the round.
        world.primary.round_failed(1, &[Extent { first: PageIndex(0), pages: PAGES }]);
        world.run_until("the first epoch", |world| world.placed_pages > 0);
        assert!(world.placed_pages < PAGES, "seed {seed}: all pages are copied in the pause");
    }
}
