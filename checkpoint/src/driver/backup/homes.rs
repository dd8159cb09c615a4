//! Where committed pages come home: frames of the arena, or with copy-only homes the standby's own
//! memory.

use romulus_transport::Memory;

use super::arena::BackupArena;
use crate::PAGE_BYTES;
use crate::driver::borders::Borders;
use crate::ids::PageIndex;
use crate::layout::{ArenaShape, GuestLayout};
use crate::placement::committed::HomingCopy;
use crate::standby::CopyOnlyHomes;

/// The home frames of a guest and the spare frames that pages come from.
#[derive(Debug)]
pub(super) struct Homes {
    first_spare: u64,
    spares: Memory,
    borders: Borders,
    homes: CopyOnlyHomes,
}

impl Homes {
    /// Over an arena and, with copy-only homes, the memory that the standby gives for them.
    ///
    /// # Errors
    /// Says what does not fit the guest.
    pub fn new(
        layout: &GuestLayout,
        shape: &ArenaShape,
        arena: &BackupArena,
        own: Option<CopyOnlyHomes>,
    ) -> Result<Self, String> {
        let homes = match own {
            Some(homes) if shape.copy_only_homes => homes,
            None if !shape.copy_only_homes => {
                let regions = arena.regions.iter().map(|region| region.memory.clone()).collect();
                CopyOnlyHomes { regions, kept: Vec::new() }
            }
            Some(_) => {
                return Err(
                    "this standby's memory cannot be registered: copy-only homes must be asked for".into()
                );
            }
            None => return Err("this standby has no memory of its own for copy-only homes".into()),
        };
        let lengths = layout.regions.iter().map(|region| region.pages * PAGE_BYTES);
        if !lengths.eq(homes.regions.iter().map(|memory| memory.len_bytes() as u64)) {
            return Err("the standby's memory does not have the lengths of the guest's".into());
        }
        let borders = Borders::new(layout);
        Ok(Self { first_spare: shape.pages, spares: arena.spares.clone(), borders, homes })
    }

    /// Makes one copy from a spare frame home; `false` when one of them does not exist. What the
    /// standby keeps as it is counts as copied.
    pub fn copy_home(&self, copy: &HomingCopy) -> bool {
        let spare = copy.source.0.checked_sub(self.first_spare);
        let spares = self.spares.len_bytes() as u64 / PAGE_BYTES;
        let from = spare.filter(|spare| *spare < spares).map(|spare| spare * PAGE_BYTES);
        let (Some(from), Some((target, to))) = (from, self.locate(copy.page)) else { return false };
        if !self.homes.keeps(copy.page) {
            // Nobody reads a home before the takeover.
            self.spares.copy_streaming(from as usize, target, to, PAGE_BYTES as usize);
        }
        true
    }

    fn locate(&self, page: PageIndex) -> Option<(&Memory, usize)> {
        let (region, pages) = self.borders.find(page.0)?;
        Some((self.homes.regions.get(region)?, ((page.0 - pages.start) * PAGE_BYTES) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;
    use crate::ids::{FrameIndex, HomingSequence};
    use crate::layout::Region;

    fn layout() -> GuestLayout {
        let region = |name: &str, pages| Region { name: name.into(), pages };
        GuestLayout { regions: vec![region("low", 3), region("high", 2)] }
    }

    fn homes(kept: Vec<Extent>) -> (Homes, CopyOnlyHomes, Memory) {
        let shape = ArenaShape { pages: 5, spares: 2, slots: 2, slot_bytes: 4096, copy_only_homes: true };
        let arena = BackupArena {
            regions: Vec::new(),
            spares: Memory::anonymous(2 * 4096),
            slots: Memory::anonymous(2 * 4096),
        };
        let regions = vec![Memory::anonymous(3 * 4096), Memory::anonymous(2 * 4096)];
        let own = CopyOnlyHomes { regions, kept };
        let homes = Homes::new(&layout(), &shape, &arena, Some(own.clone())).expect("they fit");
        (homes, own, arena.spares)
    }

    fn copy(page: u64, source: u64) -> HomingCopy {
        let (page, source) = (PageIndex(page), FrameIndex(source));
        HomingCopy { sequence: HomingSequence(1), page, source, target: FrameIndex(page.0) }
    }

    #[test]
    fn pages_come_home_into_the_standbys_regions_and_kept_ones_stay() {
        let (homes, own, spares) = homes(vec![Extent { first: PageIndex(1), pages: 2 }]);
        spares.write(0, &[7; 4096]);
        spares.write(4096, &[8; 4096]);
        for (page, source) in [(0, 5), (1, 5), (2, 6), (3, 6), (4, 5)] {
            assert!(homes.copy_home(&copy(page, source)));
        }
        let first_bytes = |memory: &Memory| -> Vec<u8> {
            (0..memory.len_bytes())
                .step_by(4096)
                .map(|at| {
                    let mut byte = [0];
                    memory.read(at, &mut byte);
                    byte[0]
                })
                .collect()
        };
        assert_eq!(first_bytes(&own.regions[0]), [7, 0, 0]);
        assert_eq!(first_bytes(&own.regions[1]), [8, 7]);
        for (page, source) in [(5, 5), (0, 4), (0, 7), (u64::MAX, 5), (0, u64::MAX / 2)] {
            assert!(!homes.copy_home(&copy(page, source)), "{page} from {source}");
        }
    }

    #[test]
    fn memory_that_does_not_fit_the_guest_is_refused() {
        let (_, own, spares) = homes(Vec::new());
        let arena = BackupArena { regions: Vec::new(), spares, slots: Memory::anonymous(2 * 4096) };
        let shape =
            |copy_only_homes| ArenaShape { pages: 5, spares: 2, slots: 2, slot_bytes: 4096, copy_only_homes };
        let short = CopyOnlyHomes { regions: own.regions[..1].to_vec(), kept: Vec::new() };
        assert!(Homes::new(&layout(), &shape(true), &arena, Some(short)).is_err());
        assert!(Homes::new(&layout(), &shape(true), &arena, None).is_err());
        assert!(Homes::new(&layout(), &shape(false), &arena, Some(own)).is_err());
    }
}
