//! One simulated connection: two sides, and what is on its way between them.

use std::collections::VecDeque;

use super::lane::{MessageLane, StreamLane};
use super::random::Random;
use crate::arena::Arena;
use crate::error::CloseReason;
use crate::memory::Memory;

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that connected; it posts the one-sided writes.
    Initiator,
    /// The end that accepted; its arena is written.
    Responder,
}

impl Side {
    /// The other end.
    pub fn other(self) -> Side {
        match self {
            Side::Initiator => Side::Responder,
            Side::Responder => Side::Initiator,
        }
    }

    pub(super) const BOTH: [Side; 2] = [Side::Initiator, Side::Responder];
}

/// An event waiting in an endpoint.
#[derive(Debug)]
pub(super) enum Arrived {
    Message(Vec<u8>),
    Fenced(u64),
}

/// Writes between two markers, as far as local memory is concerned.
#[derive(Debug)]
struct Batch {
    marker: Option<u64>,
    local_fragments: u64,
}

/// News of the connection's end on its way to a side.
#[derive(Debug)]
pub(super) struct Notice {
    pub reason: CloseReason,
    pub due: u64,
    /// It comes from the peer, so it cannot pass a frozen or dead direction.
    pub from_peer: bool,
}

/// One end.
#[derive(Debug)]
pub(super) struct End {
    pub regions: Vec<Memory>,
    pub streams: Vec<StreamLane>,
    pub messages: MessageLane,
    pub markers_in: Vec<VecDeque<u64>>,
    pub arrived: VecDeque<Arrived>,
    pub notice: Option<Notice>,
    pub ended: Option<CloseReason>,
    pub closed: bool,
    pub dropped: bool,
    /// Nothing this end sends arrives for now.
    pub frozen: bool,
    /// Nothing this end posts from now on ever arrives.
    pub dead: bool,
    pub completed: u64,
    pub bytes_written: u64,
    batches: VecDeque<Batch>,
    first_batch: u64,
}

impl End {
    fn new(streams: usize) -> Self {
        let mut end = End {
            regions: Vec::new(),
            streams: Vec::new(),
            messages: MessageLane::default(),
            markers_in: Vec::new(),
            arrived: VecDeque::new(),
            notice: None,
            ended: None,
            closed: false,
            dropped: false,
            frozen: false,
            dead: false,
            completed: 0,
            bytes_written: 0,
            batches: VecDeque::from([Batch { marker: None, local_fragments: 0 }]),
            first_batch: 0,
        };
        end.streams.resize_with(streams, StreamLane::default);
        end.markers_in.resize_with(streams, VecDeque::new);
        end
    }

    /// Counts a posted fragment and says which batch it belongs to.
    pub(super) fn count_fragment(&mut self) -> u64 {
        if let Some(batch) = self.batches.back_mut() {
            batch.local_fragments += 1;
        }
        self.first_batch + self.batches.len() as u64 - 1
    }

    /// A posted fragment was split in two.
    pub(super) fn count_split(&mut self, batch: u64) {
        if let Some(batch) = self.batches.get_mut((batch - self.first_batch) as usize) {
            batch.local_fragments += 1;
        }
    }

    /// Whether writes posted before this marker are still in local memory.
    pub(super) fn is_pending(&self, marker: u64) -> bool {
        self.batches.iter().any(|batch| batch.marker == Some(marker))
    }

    pub(super) fn count_marker(&mut self, marker: u64) {
        if let Some(batch) = self.batches.back_mut() {
            batch.marker = Some(marker);
        }
        self.batches.push_back(Batch { marker: None, local_fragments: 0 });
        self.advance_completed();
    }

    /// A fragment of `batch` has left local memory.
    pub(super) fn count_departure(&mut self, batch: u64) {
        if let Some(batch) = self.batches.get_mut((batch - self.first_batch) as usize) {
            batch.local_fragments -= 1;
        }
        self.advance_completed();
    }

    fn advance_completed(&mut self) {
        while let Some(Batch { marker: Some(marker), local_fragments: 0 }) = self.batches.front() {
            self.completed = *marker;
            self.batches.pop_front();
            self.first_batch += 1;
        }
    }

    fn clear_outgoing(&mut self) {
        self.messages.queue.clear();
        for stream in &mut self.streams {
            stream.segments.clear();
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    ends: [End; 2],
    /// The responder's memory, from `answer` until it closes.
    pub arena: Option<Arena>,
    /// The shape of that memory, as the initiator learned it: chunks by first offset and length.
    pub chunks: Option<Vec<(u64, u64)>>,
    pub established: bool,
}

impl Connection {
    pub(super) fn new(streams: usize) -> Self {
        Connection {
            ends: [End::new(streams), End::new(streams)],
            arena: None,
            chunks: None,
            established: false,
        }
    }

    pub(super) fn end(&self, side: Side) -> &End {
        &self.ends[side as usize]
    }

    pub(super) fn end_mut(&mut self, side: Side) -> &mut End {
        &mut self.ends[side as usize]
    }

    /// A side learns that the connection is over. What is on its way to it may still land, as
    /// long as it has not closed.
    pub(super) fn learn(&mut self, side: Side, reason: CloseReason) {
        let end = self.end_mut(side);
        end.notice = None;
        if end.ended.is_some() {
            return;
        }
        end.ended = Some(reason);
        for stream in &mut end.streams {
            stream.sender_ended();
        }
        end.dead = true;
        self.end_mut(side.other()).messages.queue.clear();
    }

    /// A side closes: nothing lands there any more, and what it has not sent is lost.
    pub(super) fn close(&mut self, side: Side, random: &mut Random, notice_steps_max: u64, now: u64) {
        if self.end(side).closed {
            return;
        }
        self.learn(side, CloseReason::Local);
        let end = self.end_mut(side);
        end.closed = true;
        if random.chance(1, 2) {
            let kept = random.index(end.messages.queue.len() + 1);
            end.messages.queue.truncate(kept);
            for stream in &mut end.streams {
                let kept = random.index(stream.segments.len() + 1);
                stream.segments.truncate(kept);
            }
        }
        if side == Side::Responder {
            self.arena = None;
        }
        self.end_mut(side.other()).clear_outgoing();
        let due = now + random.below(notice_steps_max);
        let reason = CloseReason::Peer("closed".into());
        self.schedule(side.other(), Notice { reason, due, from_peer: true });
    }

    /// Puts a notice on its way, unless the side knows or will know by itself.
    pub(super) fn schedule(&mut self, side: Side, notice: Notice) {
        let end = self.end_mut(side);
        let known = end.ended.is_some() || end.notice.as_ref().is_some_and(|old| !old.from_peer);
        if !known {
            end.notice = Some(notice);
        }
    }

    /// The path is cut: what is on its way in a direction is lost or still arrives, by chance;
    /// nothing posted from now on does. Each side notices later.
    pub(super) fn cut(&mut self, random: &mut Random, notice_steps_max: u64, now: u64) {
        for side in Side::BOTH {
            let end = self.end_mut(side);
            end.dead = true;
            if random.chance(1, 2) {
                end.clear_outgoing();
            }
            let due = now + random.below(notice_steps_max);
            let reason = CloseReason::Failed("the simulated network was cut".into());
            self.schedule(side, Notice { reason, due, from_peer: false });
        }
    }

    /// A marker has arrived on a stream; says which fence, if any, is now complete.
    pub(super) fn marker_arrived(&mut self, receiver: Side, stream: usize, marker: u64) -> Option<u64> {
        let end = self.end_mut(receiver);
        if end.ended.is_some() {
            return None;
        }
        end.markers_in[stream].push_back(marker);
        if end.markers_in.iter().any(|markers| markers.front() != Some(&marker)) {
            return None;
        }
        for markers in &mut end.markers_in {
            markers.pop_front();
        }
        end.arrived.push_back(Arrived::Fenced(marker));
        Some(marker)
    }
}
