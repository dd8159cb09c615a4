//! One data queue pair of the initiator: collects writes, posts them together, counts them.

use std::io;

use super::status::{Work, WorkId};
use super::verbs::{MemoryRegion, QueuePair, SendList};

/// Writes posted with one doorbell, at most.
const BATCH_MAX: usize = 32;

/// A list reports its completion when it ends at least this part of the depth without a report:
/// seldom enough not to wake a waiting poster for each write, often enough that room comes early.
const SILENT: u64 = 8;

/// A contiguous piece of a write, under one local and one remote key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub local_address: u64,
    pub local_key: u32,
    pub remote_address: u64,
    pub remote_key: u32,
    pub len_bytes: u32,
}

/// The last write in the list, which may grow.
#[derive(Clone, Copy, Debug)]
struct Open {
    local_end: u64,
    local_key: u32,
    remote_end: u64,
    remote_key: u32,
    len_bytes: u32,
}

pub(super) struct Lane {
    pair: QueuePair,
    index: u8,
    list: SendList,
    open: Option<Open>,
    /// Requests posted or in the list, and those known to be complete.
    posted: u64,
    completed: u64,
    /// Requests on their way at a time, at most.
    depth: u64,
    /// Requests since the last that reports its completion, those in the list apart.
    silent: u64,
    /// Bytes given to this lane so far, and those in the list.
    bytes: u64,
    listed_bytes: u64,
}

impl Lane {
    pub(super) fn new(pair: QueuePair, index: usize, depth: u32, sges: usize) -> Self {
        // With `SILENT`, some request on a full lane reports its completion.
        let batch = BATCH_MAX.min(depth as usize / 4).max(1);
        Lane {
            pair,
            index: index as u8,
            list: SendList::new(batch, sges),
            open: None,
            posted: 0,
            completed: 0,
            depth: depth.into(),
            silent: 0,
            bytes: 0,
            listed_bytes: 0,
        }
    }

    fn id(&self, work: Work) -> u64 {
        WorkId { work, lane: self.index, number: self.posted }.encode()
    }

    /// Bytes given to this lane so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the list.
    pub(super) fn listed_bytes(&self) -> u64 {
        self.listed_bytes
    }

    /// The number of the last request.
    pub(super) fn posted(&self) -> u64 {
        self.posted
    }

    /// All requests up to this one are complete.
    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    /// The device reports the request of this number complete.
    pub(super) fn complete(&mut self, number: u64) {
        self.completed = self.completed.max(number);
    }

    /// Whether a further request fits.
    pub(super) fn has_room(&self) -> bool {
        self.posted - self.completed < self.depth
    }

    /// Adds the piece to the last write, if it continues it and stays within `most_bytes`.
    pub(super) fn grow(&mut self, piece: &Piece, most_bytes: u32) -> bool {
        let Some(open) = &mut self.open else { return false };
        if piece.remote_address != open.remote_end
            || piece.remote_key != open.remote_key
            || most_bytes - open.len_bytes < piece.len_bytes
        {
            return false;
        }
        if piece.local_address == open.local_end && piece.local_key == open.local_key {
            self.list.extend_place(piece.len_bytes);
        } else if self.list.sges_left() > 0 {
            self.list.add_place(piece.local_address, piece.len_bytes, piece.local_key);
        } else {
            return false;
        }
        open.len_bytes += piece.len_bytes;
        open.remote_end += u64::from(piece.len_bytes);
        open.local_end = piece.local_address + u64::from(piece.len_bytes);
        open.local_key = piece.local_key;
        self.count(piece);
        true
    }

    fn count(&mut self, piece: &Piece) {
        self.bytes += u64::from(piece.len_bytes);
        self.listed_bytes += u64::from(piece.len_bytes);
    }

    /// Begins a new write; there must be room.
    pub(super) fn begin(&mut self, piece: &Piece) -> io::Result<()> {
        if self.list.is_full() {
            self.flush()?;
        }
        self.posted += 1;
        self.list.push_write(self.id(Work::Write), piece.remote_address, piece.remote_key);
        self.list.add_place(piece.local_address, piece.len_bytes, piece.local_key);
        self.open = Some(Open {
            local_end: piece.local_address + u64::from(piece.len_bytes),
            local_key: piece.local_key,
            remote_end: piece.remote_address + u64::from(piece.len_bytes),
            remote_key: piece.remote_key,
            len_bytes: piece.len_bytes,
        });
        self.count(piece);
        Ok(())
    }

    /// Posts what is in the list.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.open = None;
        self.listed_bytes = 0;
        if self.list.is_empty() {
            return Ok(());
        }
        self.silent += self.list.len() as u64;
        if self.silent >= self.depth / SILENT {
            self.list.signal_last();
            self.silent = 0;
        }
        self.pair.post(&mut self.list)
    }

    /// Posts a marker that lies in a region; there must be room, and the list must be empty.
    pub(super) fn mark(&mut self, region: &MemoryRegion, offset: usize, len_bytes: usize) -> io::Result<()> {
        self.posted += 1;
        self.silent = 0;
        self.pair.send(region, offset, len_bytes, self.id(Work::Marker))
    }
}
