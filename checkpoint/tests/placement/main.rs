//! Placement and the committed map against a plain model, and against an arena of real bytes.
//! Invariants and rules are those of docs/architecture.md.

mod plain;
mod refusals;
mod steady;
mod world;

use proptest::prelude::*;
use romulus_checkpoint::ArenaShape;
use romulus_checkpoint::placement::planner::NotPlaced;
use world::World;

prop_compose! {
    fn shapes()(pages in 1u64..70, spares in 0u64..12, slots in 2u64..5, wide in any::<bool>())
        -> ArenaShape
    {
        // Small arenas collide most; some span several words of the bitmaps.
        let (pages, spares) = if wide { (pages + 60, spares * 13) } else { (pages % 7 + 1, spares) };
        ArenaShape { pages, spares, slots, slot_bytes: 4096, copy_only_homes: false }
    }
}

fn steps(most: usize) -> impl Strategy<Value = Vec<(u8, u16)>> {
    prop::collection::vec((any::<u8>(), any::<u16>()), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn i2_i3_i7_any_order_of_events_keeps_the_committed_guest(
        shape in shapes(), low_water in 0u64..12, steps in steps(400),
    ) {
        let mut world = World::new(shape, low_water);
        for (kind, choice) in steps {
            world.step(kind, choice);
        }
    }

    #[test]
    fn i2_i3_copy_only_homes_are_reached_by_homing_alone(
        shape in shapes(), low_water in 0u64..12, steps in steps(300),
    ) {
        let mut world = World::new(ArenaShape { copy_only_homes: true, ..shape }, low_water);
        for (kind, choice) in steps {
            world.step(kind, choice);
        }
    }

    #[test]
    fn rule_11_what_must_wait_fits_after_acks_and_homings(
        shape in shapes(), low_water in 0u64..3, copy_only in any::<bool>(), steps in steps(200),
    ) {
        let mut world = World::new(ArenaShape { copy_only_homes: copy_only, ..shape }, low_water);
        for (kind, choice) in steps {
            world.step(kind, choice);
        }
        if !world.is_dirty() {
            return Ok(());
        }
        let mut outcome = world.place(0);
        for _ in 0..=shape.pages {
            world.settle();
            if outcome != Err(NotPlaced::Later) {
                break;
            }
            outcome = world.place(0);
        }
        prop_assert_ne!(outcome, Err(NotPlaced::Later), "waiting did not help");
    }
}
