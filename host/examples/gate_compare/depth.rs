//! Two marks that are not acked yet: what each release lets go.

use std::time::Duration;

use crate::load::Load;
use crate::way::Kind;
use crate::world::{World, buffer};

/// Packets of the first epoch, of the second, and after the second mark.
pub const SENT: [u64; 3] = [10, 20, 30];
/// For packets that are to come.
const LONG: Duration = Duration::from_secs(5);
/// For packets that are not to come.
const MOMENT: Duration = Duration::from_millis(200);

/// How many packets left with the release of each of two marks; or why the way cannot be set up.
pub fn two_unacked(kind: Kind) -> Result<[u64; 2], String> {
    let world = World::new();
    let way = kind.set_up()?;
    let mut room = buffer();
    let mut received = |due: u64| {
        let mut left = 0;
        let patience = |left| if left < due { LONG } else { MOMENT };
        while world.receive(Load::Small, &mut room, patience(left)).is_some() {
            left += 1;
        }
        left
    };
    // A beginning with one mark alone, for whatever the kernel sends on new interfaces.
    world.send(Load::Small, 0);
    way.mark(1);
    way.release(1);
    if received(1) != 1 {
        return Err("a single packet did not leave with its release".into());
    }
    for (mark, packets) in (2..).zip(SENT) {
        (0..packets).for_each(|number| world.send(Load::Small, number));
        if mark <= 3 {
            way.mark(mark);
        }
    }
    way.release(2);
    let first = received(SENT[0]);
    way.release(3);
    Ok([first, received(SENT[1])])
}
