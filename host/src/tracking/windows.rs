//! Which parts of a range to protect anew after a scan that only looked.
//!
//! Each protecting call costs a system call and one MMU notification for its whole window; under
//! KVM the notification drops the guest's second-level mappings of the window, clean pages
//! included, and the guest pays for those it touches again. So only near dirty runs share a
//! window, and the number of windows is bounded, whatever the pattern.

/// Runs closer than this share a window.
const GAP_BYTES: u64 = 256 << 10;
/// Windows at most, per slice.
const MAX_WINDOWS: usize = 128;

/// Address ranges in ascending order, without overlap; reused from scan to scan.
#[derive(Debug, Default)]
pub struct Windows {
    spans: Vec<(u64, u64)>,
    gap_bytes: u64,
}

impl Windows {
    /// Forgets all windows.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.gap_bytes = GAP_BYTES;
    }

    /// Includes a dirty run, rounded outwards to `align_bytes` (a power of two) and clamped to
    /// `bounds`. Runs come in ascending order.
    pub fn include(&mut self, start: u64, end: u64, align_bytes: u64, bounds: (u64, u64)) {
        let start = (start & !(align_bytes - 1)).max(bounds.0);
        let end = end.checked_next_multiple_of(align_bytes).unwrap_or(u64::MAX).min(bounds.1);
        match self.spans.last_mut() {
            Some(last) if start <= last.1.saturating_add(self.gap_bytes) => last.1 = last.1.max(end),
            _ => self.spans.push((start, end)),
        }
        while self.spans.len() > MAX_WINDOWS {
            self.widen();
        }
    }

    /// The windows: first address and first address after.
    pub fn spans(&self) -> &[(u64, u64)] {
        &self.spans
    }

    /// Their lengths in all.
    pub fn covered_bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.1 - span.0).sum()
    }

    fn widen(&mut self) {
        self.gap_bytes = self.gap_bytes.saturating_mul(4);
        let mut kept = 0;
        for index in 1..self.spans.len() {
            let span = self.spans[index];
            if span.0 <= self.spans[kept].1.saturating_add(self.gap_bytes) {
                self.spans[kept].1 = span.1;
            } else {
                kept += 1;
                self.spans[kept] = span;
            }
        }
        self.spans.truncate(kept + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const HUGE_PAGE_BYTES: u64 = 2 << 20;

    fn windows(pages: &[u64], bounds: (u64, u64)) -> Windows {
        let mut windows = Windows::default();
        windows.clear();
        for page in pages {
            windows.include(page * PAGE, (page + 1) * PAGE, HUGE_PAGE_BYTES, bounds);
        }
        windows
    }

    #[test]
    fn near_runs_share_a_window_and_far_ones_do_not() {
        let bounds = (0, 1 << 40);
        assert_eq!(windows(&[0, 3, 600], bounds).spans(), &[(0, 2 * HUGE_PAGE_BYTES)]);
        let far = windows(&[0, 4 * 512], bounds);
        assert_eq!(far.covered_bytes(), 2 * HUGE_PAGE_BYTES);
        assert_eq!(far.spans(), &[(0, HUGE_PAGE_BYTES), (4 * HUGE_PAGE_BYTES, 5 * HUGE_PAGE_BYTES)]);
    }

    #[test]
    fn windows_stay_inside_the_bounds() {
        let bounds = (5 * PAGE, 700 * PAGE);
        assert_eq!(windows(&[6, 690], bounds).spans(), &[bounds]);
    }

    #[test]
    fn any_pattern_gives_a_bounded_number_that_covers_every_run() {
        let pages: Vec<u64> = (0..5_000u64).map(|index| index * index * 97).collect();
        let windows = windows(&pages, (0, 1 << 50));
        assert!(windows.spans().len() <= MAX_WINDOWS);
        assert!(windows.spans().windows(2).all(|pair| pair[0].1 < pair[1].0));
        for page in pages {
            let (start, end) = (page * PAGE, (page + 1) * PAGE);
            assert!(windows.spans().iter().any(|span| span.0 <= start && end <= span.1));
        }
    }
}
