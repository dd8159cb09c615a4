//! Copies for a target that nobody reads soon: past the caches, so that the lines overwritten are
//! not fetched first and what is in use stays. And the reverse: fetching what is read next.

/// Copies `len_bytes`. In order with what the calling thread stores later, as any copy.
///
/// # Safety
/// Both ranges must be mapped, and the target writable. Where they overlap, it is not said what arrives.
pub(crate) unsafe fn copy(from: *const u8, into: *mut u8, len_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    if lines::fit(from, into, len_bytes) {
        // SAFETY: mapped by the caller's promise, and `fit` has checked alignment and length.
        return unsafe { lines::copy(from, into, len_bytes) };
    }
    // SAFETY: the caller's promise; `copy` allows overlap.
    unsafe { std::ptr::copy(from, into, len_bytes) }
}

/// Begins to fetch what is at an address: enough for the processor to go on by itself.
pub(crate) fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    lines::prefetch(from);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

#[cfg(target_arch = "x86_64")]
mod lines {
    use std::arch::x86_64::{
        __m128i, _MM_HINT_T0, _mm_load_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128,
    };

    const LINE_BYTES: usize = 64;
    /// Where the processor's own prefetching takes over.
    const FIRST_LINES: usize = 4;

    pub(super) fn fit(from: *const u8, into: *mut u8, len_bytes: usize) -> bool {
        let all = from.addr() | into.addr() | len_bytes;
        all.is_multiple_of(LINE_BYTES)
    }

    /// # Safety
    /// Both ranges must be mapped, the target writable, and `fit` true of them.
    pub(super) unsafe fn copy(from: *const u8, into: *mut u8, len_bytes: usize) {
        let (from, into) = (from.cast::<__m128i>(), into.cast::<__m128i>());
        for at in (0..len_bytes / size_of::<__m128i>()).step_by(4) {
            // SAFETY: four aligned parts of a line inside both ranges, by the caller's promise.
            unsafe {
                let line = [0, 1, 2, 3].map(|part| _mm_load_si128(from.add(at + part)));
                for (part, value) in line.into_iter().enumerate() {
                    _mm_stream_si128(into.add(at + part), value);
                }
            }
        }
        // SAFETY: every x86-64 has it. Streaming stores are ordered against others only by this.
        unsafe { _mm_sfence() }
    }

    pub(super) fn prefetch(from: *const u8) {
        for line in 0..FIRST_LINES {
            // SAFETY: a hint; an address that is not mapped is ignored.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line * LINE_BYTES).cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Memory;

    #[test]
    fn all_lengths_and_alignments_arrive() {
        let source = Memory::anonymous(1 << 16);
        let bytes: Vec<u8> = (0..1 << 16).map(|at| (at * 31 % 251) as u8).collect();
        source.write(0, &bytes);
        for (from, into, len_bytes) in [
            (0, 0, 4096),
            (4096, 64, 8192),
            (128, 4096, 64),
            (1, 0, 4096),
            (0, 3, 4096),
            (64, 64, 100),
            (9, 9, 0),
        ] {
            let target = Memory::anonymous(1 << 16);
            source.copy_streaming(from, &target, into, len_bytes);
            let mut all = vec![0; 1 << 16];
            target.read(0, &mut all);
            let mut expected = vec![0; 1 << 16];
            expected[into..into + len_bytes].copy_from_slice(&bytes[from..from + len_bytes]);
            assert!(all == expected, "{len_bytes} bytes from {from} to {into}");
        }
    }

    #[test]
    #[should_panic(expected = "exceeds the span")]
    fn a_range_outside_is_refused() {
        let memory = Memory::anonymous(4096);
        memory.copy_streaming(0, &Memory::anonymous(8192), 0, 8192);
    }
}
