//! Synchronization with copy-only homes: no write may target a home, so each round is cut into
//! epochs of a fraction of the spares. Such a *part* is placed, committed, acked and homed like any
//! epoch, and carries no state: from it nothing can be resumed, and it covers no output.

use crate::extent::{Extent, Transfer};
use crate::ids::Time;

use super::image::{Flight, Phase, RoundStep, Rounds};
use super::{Actions, PlacedEpoch, Primary, Work};

/// A part takes this fraction of the spares at most, so that one is copied and sent while others
/// are committed and homed.
const PARTS_OF_SPARES: u64 = 4;

impl Primary {
    /// The pages of the round asked for last: dirty ones, or all that may hold anything but what
    /// the backup's homes hold. Ignored when the connection has changed meanwhile; then all pages
    /// are asked for again.
    pub fn round_listed(&mut self, round: u64, pages: &[Extent], now: Time, actions: &mut Actions) {
        let Phase::Rounds(rounds) = &mut self.image.phase else { return };
        if rounds.step != RoundStep::Taken || round != rounds.round + 1 || !self.link.is_up() {
            return;
        }
        *rounds = Rounds { round, step: RoundStep::Parts { waits: false }, pages: 0 };
        self.image.keep(pages);
        let listed = self.image.carry.iter().map(|extent| extent.pages).sum();
        if let Phase::Rounds(rounds) = &mut self.image.phase {
            rounds.pages = listed;
        }
        self.parts_acked();
        self.settle(now, actions);
    }

    pub(super) fn next_part(&self) -> Work {
        let full = self.image.flights.len() as u64 >= self.config.depth;
        if full || self.image.carry.is_empty() || self.ending.is_some() {
            return Work::Wait { until: None };
        }
        Work::Part
    }

    /// Places the next pages of the round, at most `most_pages`. `transfers` is cleared first.
    /// `None`: no room now (an ack will make some), or nothing is left to place.
    pub fn place_part(
        &mut self,
        most_pages: u64,
        now: Time,
        transfers: &mut Vec<Transfer>,
        actions: &mut Actions,
    ) -> Option<PlacedEpoch> {
        transfers.clear();
        let image = &mut self.image;
        let Phase::Rounds(Rounds { step: RoundStep::Parts { waits }, .. }) = &mut image.phase else {
            return None;
        };
        if !self.link.is_up() || self.over.is_some() || image.carry.is_empty() {
            return None;
        }
        let most = most_pages.min(self.shape.spares.div_ceil(PARTS_OF_SPARES)).max(1);
        let count = take_first(&image.carry, most, &mut image.merged);
        let epoch = image.placed.next();
        let placed = (image.flights.len() as u64) < self.config.depth
            && image.planner.place(epoch, &image.merged, transfers).is_ok();
        if !placed {
            *waits = true;
            self.ask_homings(actions);
            return None;
        }
        drop_first(&mut image.carry, count);
        image.placed = epoch;
        image.flights.push_back(Flight { epoch, mark: None, paused_at: now });
        Some(PlacedEpoch { epoch, identity: self.identity(), pages: count })
    }

    /// Something was acked: there may be room again, and the round may be over.
    pub(super) fn parts_acked(&mut self) {
        let over = self.image.carry.is_empty() && self.image.flights.is_empty();
        let Phase::Rounds(rounds) = &mut self.image.phase else { return };
        let RoundStep::Parts { waits } = &mut rounds.step else { return };
        *waits = false;
        if over {
            self.round_done();
        }
    }
}

/// Copies the first `most` pages of `from` into `into`; returns how many there were.
fn take_first(from: &[Extent], most: u64, into: &mut Vec<Extent>) -> u64 {
    into.clear();
    let mut left = most;
    for extent in from {
        if left == 0 {
            break;
        }
        let pages = extent.pages.min(left);
        into.push(Extent { first: extent.first, pages });
        left -= pages;
    }
    most - left
}

/// Takes the first `count` pages away.
fn drop_first(from: &mut Vec<Extent>, count: u64) {
    let mut left = count;
    let mut whole = 0;
    for extent in from.iter_mut() {
        if left < extent.pages {
            extent.first.0 += left;
            extent.pages -= left;
            break;
        }
        left -= extent.pages;
        whole += 1;
    }
    from.drain(..whole);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageIndex;

    #[test]
    fn parts_of_any_size_are_the_whole_list() {
        let extent = |first, pages| Extent { first: PageIndex(first), pages };
        let list = [extent(0, 3), extent(5, 1), extent(8, 10), extent(100, 2)];
        let pages = |list: &[Extent]| -> Vec<u64> {
            list.iter().flat_map(|extent| extent.first.0..extent.first.0 + extent.pages).collect()
        };
        for most in 1..20 {
            let (mut rest, mut part, mut all) = (list.to_vec(), Vec::new(), Vec::new());
            while !rest.is_empty() {
                let count = take_first(&rest, most, &mut part);
                assert_eq!(count, pages(&part).len() as u64);
                assert!(count == most || pages(&part) == pages(&rest));
                all.extend(pages(&part));
                drop_first(&mut rest, count);
            }
            assert_eq!(all, pages(&list));
        }
    }
}
