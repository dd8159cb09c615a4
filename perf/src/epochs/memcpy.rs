//! The limit of a pause: one memcpy of the pages that an epoch had.

use std::time::Instant;

use romulus_checkpoint::{Extent, PAGE_BYTES};
use romulus_transport::Memory;

use crate::exit::{Failure, OrFail};

/// The target goes around in this much memory, as an epoch's copy goes around in staging.
const TARGET_BYTES: usize = 64 << 20;

/// Microseconds that one thread takes to copy the pages of each of these epochs from the guest into
/// memory that exists. The pages are cold: verifying has gone through the cache. An epoch's are too, but
/// for the words that the guest wrote, unless they are few and written again and again.
pub fn measure(guest: &[Memory], epochs: &[Vec<Extent>]) -> Result<Vec<f64>, Failure> {
    let target = romulus_host::memory::staging(TARGET_BYTES).or_fail("memory for a memcpy")?;
    let mut at = 0;
    Ok(epochs.iter().map(|epoch| copy(guest, epoch, &target, &mut at)).collect())
}

fn copy(guest: &[Memory], epoch: &[Extent], target: &Memory, at: &mut usize) -> f64 {
    let spans: Vec<_> = epoch.iter().filter_map(|extent| span(guest, extent)).collect();
    let begun = Instant::now();
    for (memory, mut offset, mut len_bytes) in spans {
        while len_bytes > 0 {
            if *at == TARGET_BYTES {
                *at = 0;
            }
            let part = len_bytes.min(TARGET_BYTES - *at);
            memory.copy_to(offset, target, *at, part);
            (*at, offset, len_bytes) = (*at + part, offset + part, len_bytes - part);
        }
    }
    begun.elapsed().as_secs_f64() * 1e6
}

/// Where an extent is; `None` for one that is in no region, or in two.
fn span<'a>(guest: &'a [Memory], extent: &Extent) -> Option<(&'a Memory, usize, usize)> {
    let mut first = extent.first.0;
    for memory in guest {
        let pages = memory.len_bytes() as u64 / PAGE_BYTES;
        if first < pages {
            let inside = first + extent.pages <= pages;
            return inside.then_some((
                memory,
                (first * PAGE_BYTES) as usize,
                (extent.pages * PAGE_BYTES) as usize,
            ));
        }
        first -= pages;
    }
    None
}

#[cfg(test)]
mod tests {
    use romulus_checkpoint::PageIndex;

    use super::*;

    #[test]
    fn pages_are_found_in_their_regions() {
        let guest = [Memory::anonymous(4 * 4096), Memory::anonymous(4 * 4096)];
        let extent = |first, pages| Extent { first: PageIndex(first), pages };
        let found = |first, pages| span(&guest, &extent(first, pages)).map(|(_, offset, len)| (offset, len));
        assert_eq!(found(1, 2), Some((4096, 8192)));
        assert_eq!(found(5, 3), Some((4096, 12288)));
        assert_eq!((found(3, 2), found(8, 1)), (None, None));
        let times = measure(&guest, &[vec![extent(0, 4)], vec![extent(6, 1)]]).unwrap();
        assert_eq!(times.len(), 2);
        assert!(times.iter().all(|us| *us > 0.0));
    }
}
