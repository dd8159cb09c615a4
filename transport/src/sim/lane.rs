//! What is on its way in one direction of one connection.

use std::collections::VecDeque;

use super::random::Random;
use crate::memory::Memory;

/// A contiguous part of a posted write.
#[derive(Debug)]
pub(super) struct Fragment {
    /// Where the bytes are.
    pub source: Source,
    /// Where in the peer's arena they go.
    pub remote_offset: u64,
    /// The batch (writes between two markers) that it belongs to.
    pub batch: u64,
}

/// Bytes that are still in local memory, or have left it.
#[derive(Debug)]
pub(super) enum Source {
    /// Read when the fragment departs: whoever changes the memory before completion sees that
    /// change arrive, as with a NIC.
    Local(Memory),
    /// Left local memory; on the wire.
    Departed(Vec<u8>),
}

impl Source {
    fn len_bytes(&self) -> usize {
        match self {
            Source::Local(memory) => memory.len_bytes(),
            Source::Departed(bytes) => bytes.len(),
        }
    }
}

impl Fragment {
    pub(super) fn len_bytes(&self) -> usize {
        self.source.len_bytes()
    }

    /// Reads local memory, if that has not happened yet; says whether it happened now.
    pub(super) fn depart(&mut self) -> bool {
        let Source::Local(memory) = &self.source else { return false };
        let mut bytes = vec![0; memory.len_bytes()];
        memory.read(0, &mut bytes);
        self.source = Source::Departed(bytes);
        true
    }

    /// Cuts the fragment in two at `at`, which lies inside it; keeps the first part.
    pub(super) fn split_off(&mut self, at: usize) -> Fragment {
        let source = match &mut self.source {
            Source::Local(memory) => {
                let rest = memory.part(at, memory.len_bytes() - at);
                *memory = memory.part(0, at);
                Source::Local(rest)
            }
            Source::Departed(bytes) => Source::Departed(bytes.split_off(at)),
        };
        Fragment { source, remote_offset: self.remote_offset + at as u64, batch: self.batch }
    }
}

/// Fragments in any order, then a marker.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub fragments: Vec<Fragment>,
    pub marker: Option<u64>,
}

/// One data stream in one direction.
#[derive(Debug, Default)]
pub(super) struct StreamLane {
    pub segments: VecDeque<Segment>,
    /// Nothing of the lane moves before this step.
    pub held_until: u64,
}

impl StreamLane {
    pub(super) fn post(&mut self, fragment: Fragment) {
        if self.segments.back().is_none_or(|segment| segment.marker.is_some()) {
            self.segments.push_back(Segment::default());
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.fragments.push(fragment);
        }
    }

    pub(super) fn mark(&mut self, marker: u64) {
        match self.segments.back_mut() {
            Some(segment) if segment.marker.is_none() => segment.marker = Some(marker),
            _ => self.segments.push_back(Segment { fragments: Vec::new(), marker: Some(marker) }),
        }
    }

    /// Takes a random fragment of the first segment, possibly only a part of it.
    pub(super) fn take_fragment(&mut self, random: &mut Random, partial_percent: u32) -> Option<Fragment> {
        let segment = self.segments.front_mut()?;
        if segment.fragments.is_empty() {
            return None;
        }
        let chosen = random.index(segment.fragments.len());
        let mut fragment = segment.fragments.swap_remove(chosen);
        if fragment.len_bytes() > 1 && random.chance(partial_percent, 100) {
            let at = 1 + random.index(fragment.len_bytes() - 1);
            let mut rest = fragment.split_off(at);
            if random.chance(1, 2) {
                std::mem::swap(&mut fragment, &mut rest);
            }
            segment.fragments.push(rest);
        }
        if segment.fragments.is_empty() && segment.marker.is_none() {
            self.segments.pop_front();
        }
        Some(fragment)
    }

    /// Puts a fragment back that departed but is not placed yet.
    pub(super) fn put_back(&mut self, fragment: Fragment) {
        if self.segments.front().is_none() {
            self.segments.push_back(Segment::default());
        }
        if let Some(segment) = self.segments.front_mut() {
            segment.fragments.push(fragment);
        }
    }

    /// Takes the first segment's marker, once nothing is before it.
    pub(super) fn take_marker(&mut self) -> Option<u64> {
        let segment = self.segments.front()?;
        let marker = segment.marker.filter(|_| segment.fragments.is_empty())?;
        self.segments.pop_front();
        Some(marker)
    }

    /// The sender's end is gone: what has not left its memory never will, nor the marker behind
    /// it or anything later.
    pub(super) fn sender_ended(&mut self) {
        let complete = |segment: &Segment| {
            segment.fragments.iter().all(|fragment| matches!(fragment.source, Source::Departed(_)))
        };
        if let Some(broken) = self.segments.iter().position(|segment| !complete(segment)) {
            self.segments.truncate(broken + 1);
            let segment = &mut self.segments[broken];
            segment.marker = None;
            segment.fragments.retain(|fragment| matches!(fragment.source, Source::Departed(_)));
            if segment.fragments.is_empty() {
                self.segments.pop_back();
            }
        }
    }
}

/// The messages of one direction.
#[derive(Debug, Default)]
pub(super) struct MessageLane {
    pub queue: VecDeque<Vec<u8>>,
    /// Nothing of the lane moves before this step.
    pub held_until: u64,
}
