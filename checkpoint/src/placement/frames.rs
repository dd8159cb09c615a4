//! Why frames are used, 64 frames a word. Whether a frame is free is derived from the reasons on
//! every look; there is no flag that says so.

/// A reason for a frame to be used (rule 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Of a home: its page is *not* in it. Of a spare: the map has a page in it.
    Moved,
    /// An epoch that is not yet acked places into it.
    Claimed,
    /// Source or target of a homing that may still touch memory.
    Homing,
}

/// The reasons of 64 frames, side by side so that a look at a frame costs one cache miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Word {
    moved: u64,
    claimed: u64,
    homing: u64,
}

impl Word {
    fn put(&mut self, reason: Reason, mask: u64, holds: bool) {
        let bits = match reason {
            Reason::Moved => &mut self.moved,
            Reason::Claimed => &mut self.claimed,
            Reason::Homing => &mut self.homing,
        };
        *bits = if holds { *bits | mask } else { *bits & !mask };
    }
}

/// All homes, or all spares. Zeroed words describe the fresh arena, so that the operating system
/// backs only the parts of a large guest that are ever displaced: 3 bits a frame at most.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Frames {
    words: Vec<Word>,
    len: u64,
    /// All ones for homes, whose pages are in them unless moved.
    rest: u64,
}

impl Frames {
    /// `len` homes, holding their pages.
    pub fn homes(len: u64) -> Self {
        Self { words: words(len), len, rest: !0 }
    }

    /// `len` spares, holding nothing.
    pub fn spares(len: u64) -> Self {
        Self { words: words(len), len, rest: 0 }
    }

    /// Which of the 64 frames from `64 * index` on are used. `live` says whether the map counts:
    /// before the first epoch of an incarnation it describes nothing.
    fn used_word(&self, index: usize, live: bool) -> u64 {
        let word = &self.words[index];
        let mapped = if live { word.moved ^ self.rest } else { 0 };
        mapped | word.claimed | word.homing
    }

    /// Whether a frame is used.
    pub fn is_used(&self, frame: u64, live: bool) -> bool {
        self.used_word((frame / 64) as usize, live) >> (frame % 64) & 1 == 1
    }

    /// Whether `frame` is used, and how many frames from it on (at most `limit`) are alike.
    pub fn run(&self, frame: u64, limit: u64, live: bool) -> (bool, u64) {
        let used = self.is_used(frame, live);
        let flip = if used { !0 } else { 0 };
        let limit = limit.min(self.len - frame);
        let mut run = 0;
        while run < limit {
            let at = frame + run;
            let unlike = (self.used_word((at / 64) as usize, live) ^ flip) >> (at % 64);
            let alike = u64::from(unlike.trailing_zeros()).min(64 - at % 64);
            run += alike;
            if unlike != 0 {
                break;
            }
        }
        (used, run.min(limit))
    }

    /// The first free frame at or after `from` (no wrap), and the length of the free run there
    /// within its word, at most `limit`.
    pub fn next_free(&self, from: u64, limit: u64) -> Option<(u64, u64)> {
        let mut at = from;
        while at < self.len {
            let free = !self.used_word((at / 64) as usize, true) >> (at % 64);
            if free == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            let first = at + u64::from(free.trailing_zeros());
            let run = u64::from((!(free >> free.trailing_zeros())).trailing_zeros());
            let run = run.min(64 - first % 64).min(limit).min(self.len.saturating_sub(first));
            return (run > 0).then_some((first, run));
        }
        None
    }

    /// Whether a reason holds for a frame.
    pub fn has(&self, reason: Reason, frame: u64) -> bool {
        let word = &self.words[(frame / 64) as usize];
        let bits = match reason {
            Reason::Moved => word.moved,
            Reason::Claimed => word.claimed,
            Reason::Homing => word.homing,
        };
        bits >> (frame % 64) & 1 == 1
    }

    /// Sets or clears a reason of one frame.
    pub fn put(&mut self, reason: Reason, frame: u64, holds: bool) {
        self.words[(frame / 64) as usize].put(reason, 1 << (frame % 64), holds);
    }

    /// Sets or clears a reason of a run of frames.
    pub fn put_run(&mut self, reason: Reason, first: u64, count: u64, holds: bool) {
        let mut at = first;
        let end = first + count;
        while at < end {
            let here = (64 - at % 64).min(end - at);
            let mask = (!0 >> (64 - here)) << (at % 64);
            self.words[(at / 64) as usize].put(reason, mask, holds);
            at += here;
        }
    }

    /// Counts the free frames from first principles.
    pub fn count_free(&self) -> u64 {
        (0..self.len).filter(|frame| !self.is_used(*frame, true)).count() as u64
    }
}

fn words(len: u64) -> Vec<Word> {
    vec![Word::default(); len.div_ceil(64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_free_frames_cross_words() {
        let mut spares = Frames::spares(200);
        spares.put_run(Reason::Claimed, 60, 80, true);
        assert_eq!(spares.run(0, 200, true), (false, 60));
        assert_eq!(spares.run(60, 200, true), (true, 80));
        assert_eq!(spares.run(140, 200, true), (false, 60));
        assert_eq!(spares.next_free(60, 10), Some((140, 10)));
        assert_eq!(spares.next_free(190, 64), Some((190, 2)), "a run ends with its word");
        assert_eq!(spares.next_free(192, 64), Some((192, 8)), "and with the frames");
        assert_eq!(spares.next_free(200, 1), None);
        spares.put_run(Reason::Claimed, 60, 80, false);
        assert_eq!(spares.count_free(), 200);
    }

    #[test]
    fn homes_hold_their_pages_unless_moved_or_nothing_is_live() {
        let mut homes = Frames::homes(130);
        assert_eq!(homes.run(0, 130, true), (true, 130));
        assert_eq!(homes.run(0, 130, false), (false, 130));
        homes.put(Reason::Moved, 64, true);
        assert_eq!(homes.run(0, 130, true), (true, 64));
        assert_eq!(homes.run(64, 130, true), (false, 1));
        homes.put(Reason::Homing, 64, true);
        assert!(homes.is_used(64, true) && homes.is_used(64, false));
    }
}
