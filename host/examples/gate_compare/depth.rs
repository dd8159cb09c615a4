//! Two marks that are not acked yet: what each release lets go.

use std::time::Duration;

use crate::load::Load;
use crate::way::Kind;
use crate::world::{World, buffer};

/// Packets of the first epoch, of the second, and after the second mark.
pub const SENT: [u64; 3] = [10, 20, 30];
/// For packets that are to come; none is waited for as long.
const LONG: Duration = Duration::from_secs(5);
/// For packets that are not to come.
const MOMENT: Duration = Duration::from_millis(200);

/// How many packets left with the release of each of two marks; or why the way cannot be set up.
pub fn two_unacked(kind: Kind) -> Result<[u64; 2], String> {
    let world = World::new();
    let way = kind.set_up()?;
    let mut number = 0;
    for (epoch, packets) in (1..).zip(SENT) {
        for _ in 0..packets {
            world.send(Load::Small, number);
            number += 1;
        }
        if epoch <= 2 {
            way.mark(epoch);
        }
    }
    let mut left = [0; 2];
    for (mark, (left, due)) in (1..).zip(left.iter_mut().zip(SENT)) {
        way.release(mark);
        let mut room = buffer();
        let patience = |left| if left < due { LONG } else { MOMENT };
        while world.receive(Load::Small, &mut room, patience(*left)).is_some() {
            *left += 1;
        }
    }
    Ok(left)
}
