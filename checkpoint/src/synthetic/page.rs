//! The content of a page: it names its page and version, and any mixture of two versions shows.

use romulus_transport::Memory;

use super::load::Fill;
use crate::PAGE_BYTES;

const WORDS: usize = PAGE_BYTES as usize / 8;
const MAGIC: u64 = 0x526f_6d75_6c75_7350;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Words before the body: name, version, checksum, seed of the body.
const HEAD: usize = 4;

/// A page that is not what a guest wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page {page}: {what}")]
pub struct PageFault {
    /// The page.
    pub page: u64,
    /// What is wrong with it.
    pub what: String,
}

/// Mixes a number well (the finalizer of splitmix64).
pub(super) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a page contributes to the guest's digest, which is the sum over all pages. A page never
/// written (version 0) contributes nothing.
pub fn digest_of(page: u64, version: u64) -> u64 {
    if version == 0 { 0 } else { mix(mix(page.wrapping_add(STEP)) ^ version) }
}

fn checksum(page: u64, version: u64, seed: u64) -> u64 {
    mix(digest_of(page, version) ^ seed)
}

fn words(memory: &Memory, offset: usize) -> *mut u64 {
    let words = memory.pointer(offset, PAGE_BYTES as usize).cast::<u64>();
    assert!(words.is_aligned(), "synthetic pages are aligned to words");
    words
}

/// Writes a version of a page. `Fill::Touch` leaves the body as it is, unless it is the first.
pub(super) fn write_page(memory: &Memory, offset: usize, page: u64, version: u64, fill: Fill) {
    let words = words(memory, offset);
    let whole = fill == Fill::Whole || version == 1;
    let seed = match fill {
        Fill::Whole => mix(page ^ version.rotate_left(32)),
        Fill::Touch => mix(page),
    };
    let store = |index: usize, value: u64| {
        // SAFETY: `index` is below WORDS and `words` points to an aligned page inside the span,
        // which stays mapped while `memory` lives; volatile since others read it meanwhile.
        unsafe { words.add(index).write_volatile(value) }
    };
    store(0, MAGIC ^ page);
    store(1, version);
    store(2, checksum(page, version, seed));
    if whole {
        store(3, seed);
        (HEAD..WORDS - 1).for_each(|index| store(index, seed.wrapping_add(STEP.wrapping_mul(index as u64))));
    }
    store(WORDS - 1, version);
}

/// The version of a page, 0 if it was never written.
pub fn check_page(memory: &Memory, offset: usize, page: u64) -> Result<u64, PageFault> {
    let words = words(memory, offset);
    // SAFETY: as in `write_page`.
    let load = |index: usize| unsafe { words.add(index).read_volatile() };
    let fault = |what: String| Err(PageFault { page, what });
    if load(0) == 0 && load(1) == 0 {
        let stray = (0..WORDS).find(|index| load(*index) != 0);
        return stray.map_or(Ok(0), |index| fault(format!("never written, but word {index} is not zero")));
    }
    if load(0) != MAGIC ^ page {
        return fault(format!("holds page {}", load(0) ^ MAGIC));
    }
    let (version, seed) = (load(1), load(3));
    if load(WORDS - 1) != version {
        return fault(format!("begins with version {version} and ends with {}", load(WORDS - 1)));
    }
    if load(2) != checksum(page, version, seed) {
        return fault(format!("version {version} has a wrong checksum"));
    }
    let body = |index: &usize| load(*index) != seed.wrapping_add(STEP.wrapping_mul(*index as u64));
    match (HEAD..WORDS - 1).find(body) {
        Some(index) => fault(format!("version {version} differs at word {index}")),
        None => Ok(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_its_number_and_version_and_nothing_else() {
        let memory = Memory::anonymous(2 * 4096);
        assert_eq!(check_page(&memory, 0, 7), Ok(0));
        for fill in [Fill::Touch, Fill::Whole] {
            let memory = Memory::anonymous(2 * 4096);
            for version in 1..4 {
                write_page(&memory, 4096, 7, version, fill);
                assert_eq!(check_page(&memory, 4096, 7), Ok(version));
                assert!(check_page(&memory, 4096, 8).is_err());
            }
        }
    }

    #[test]
    fn every_single_changed_byte_and_every_mixture_shows() {
        let memory = Memory::anonymous(3 * 4096);
        write_page(&memory, 0, 3, 5, Fill::Whole);
        write_page(&memory, 4096, 3, 6, Fill::Whole);
        for offset in (0..4096).step_by(13) {
            let mut byte = [0];
            memory.read(offset, &mut byte);
            memory.write(offset, &[byte[0] ^ 0x10]);
            assert!(check_page(&memory, 0, 3).is_err(), "byte {offset}");
            memory.write(offset, &byte);
        }
        assert_eq!(check_page(&memory, 0, 3), Ok(5));
        // The first word is the same in both.
        for cut in (16..4096).step_by(8) {
            memory.copy_to(0, &memory, 8192, cut);
            memory.copy_to(4096 + cut, &memory, 8192 + cut, 4096 - cut);
            assert!(check_page(&memory, 8192, 3).is_err(), "cut {cut}");
        }
    }
}
