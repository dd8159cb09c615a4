//! Whether a page is all zero, at the speed of memory.

use romulus_transport::Memory;

use crate::PAGE_BYTES;

/// Words read before the result so far is looked at.
const STEP: usize = 32;

/// Whether the page at `offset` holds only zeros at this moment; others may write it meanwhile.
/// Says no, which is always safe, for memory that is not aligned to words.
pub(crate) fn is_zero_page(memory: &Memory, offset: usize) -> bool {
    let words = memory.pointer(offset, PAGE_BYTES as usize).cast::<u64>();
    if !words.is_aligned() {
        return false;
    }
    (0..PAGE_BYTES as usize / 8).step_by(STEP).all(|first| {
        let mut any = 0;
        for word in first..first + STEP {
            // SAFETY: `pointer` checked that the page lies in the span, which stays mapped while
            // `memory` lives; the address is aligned; a volatile read of memory that others write
            // gives some value, which is all that is needed.
            any |= unsafe { words.add(word).read_volatile() };
        }
        any == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_makes_a_page_not_zero() {
        let memory = Memory::anonymous(3 * 4096);
        assert!((0..3).all(|page| is_zero_page(&memory, page * 4096)));
        for offset in (0..4096).step_by(61).chain([4095]) {
            memory.write(4096 + offset, &[1]);
            assert!(!is_zero_page(&memory, 4096), "byte {offset}");
            memory.write(4096 + offset, &[0]);
        }
        assert!(is_zero_page(&memory, 0) && is_zero_page(&memory, 4096) && is_zero_page(&memory, 8192));
    }
}
