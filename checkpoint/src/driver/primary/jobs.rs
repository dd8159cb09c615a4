//! What `capture` hands to `sender`: a fixed number of jobs that go round.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use romulus_transport::{Memory, Write};

use crate::driver::mapping::anonymous_mapping;
use crate::driver::signal::{Signal, lock};
use crate::extent::{Extent, Transfer};
use crate::ids::Identity;
use crate::layout::ArenaShape;
use crate::primary::PlacedEpoch;

use super::staging::Piece;

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is left of an epoch after its pieces: data, slot, marker, Commit.
    Epoch(PlacedEpoch),
    /// A synchronization round, straight from guest memory or through staging.
    Round {
        /// The connection it was asked for on.
        identity: Identity,
        /// Its number.
        round: u64,
        /// All pages, of which those outside [`Job::extents`] are zero; or the pages in it.
        everything: bool,
    },
}

/// A job and its memory, which is used again and again.
#[derive(Debug)]
pub(super) struct Job {
    /// What it is.
    pub kind: Kind,
    /// Counts jobs submitted; see [`Jobs::wait_finished`].
    pub number: u64,
    /// One-sided writes of pages straight from guest memory.
    pub writes: Vec<Write>,
    /// Staging memory that is free once the job is finished: the last piece of an epoch, the
    /// pieces of a round.
    pub pieces: Vec<Piece>,
    /// An epoch's transfers.
    pub transfers: Vec<Transfer>,
    /// A round's pages.
    pub extents: Vec<Extent>,
    /// Place of this job's slot in the slot memory; the state is at the same place of the state
    /// memory.
    pub slot_index: usize,
    /// Length of the state.
    pub state_bytes: u64,
}

/// What waits for the sender.
#[derive(Debug)]
pub(super) enum Task {
    /// A full piece of an epoch whose job follows.
    Piece(Piece),
    /// Anything else.
    Job(Job),
}

/// Local memory of slots and states, one of each for every job, to be registered.
#[derive(Debug)]
pub(super) struct SlotMemory {
    /// Headers and extents.
    pub heads: Memory,
    /// States.
    pub states: Memory,
    /// Length of one slot.
    pub slot_bytes: u64,
    /// Length of one state.
    pub state_bytes: u64,
}

impl SlotMemory {
    /// For `jobs` jobs.
    pub fn new(shape: &ArenaShape, max_state_bytes: u64, jobs: usize) -> std::io::Result<Self> {
        Ok(Self {
            heads: anonymous_mapping(jobs * shape.slot_bytes as usize)?,
            states: anonymous_mapping(jobs * max_state_bytes as usize)?,
            slot_bytes: shape.slot_bytes,
            state_bytes: max_state_bytes,
        })
    }

    /// The slot of a job: its offset in `heads` and its memory.
    pub fn head(&self, index: usize) -> (u64, Memory) {
        let offset = index as u64 * self.slot_bytes;
        (offset, self.heads.part(offset as usize, self.slot_bytes as usize))
    }

    /// The state of a job: its offset in `states` and its memory.
    pub fn state(&self, index: usize) -> (u64, Memory) {
        let offset = index as u64 * self.state_bytes;
        (offset, self.states.part(offset as usize, self.state_bytes as usize))
    }
}

/// The jobs that are free and those that wait for the sender.
#[derive(Debug)]
pub(super) struct Jobs {
    free: Mutex<Vec<Job>>,
    waiting: Mutex<VecDeque<Task>>,
    submitted: AtomicU64,
    /// Tasks handed over and not yet posted.
    unposted: AtomicU64,
    finished: AtomicU64,
    /// Counts what has left local memory, up to a marker each.
    departed: AtomicU64,
    closed: AtomicBool,
    /// Something waits, or the end has come.
    pub wake_sender: Signal,
    /// A job was finished.
    pub freed: Signal,
}

impl Jobs {
    /// `count` jobs, beside `pieces` pieces of staging memory.
    pub fn new(count: usize, pieces: usize, spin: Duration) -> Self {
        let job = |slot_index| Job {
            kind: Kind::Round { identity: Identity::default(), round: 0, everything: false },
            number: 0,
            writes: Vec::new(),
            pieces: Vec::with_capacity(1),
            transfers: Vec::new(),
            extents: Vec::new(),
            slot_index,
            state_bytes: 0,
        };
        Self {
            free: Mutex::new((0..count).map(job).collect()),
            waiting: Mutex::new(VecDeque::with_capacity(count + pieces)),
            submitted: AtomicU64::new(0),
            unposted: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            departed: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            wake_sender: Signal::new(spin),
            freed: Signal::new(spin),
        }
    }

    /// A free job; waits for one for at most `timeout`.
    pub fn take_free(&self, timeout: Duration) -> Option<Job> {
        let seen = self.freed.seen();
        let pop = || lock(&self.free).pop();
        pop().or_else(|| self.freed.wait(seen, timeout).then(pop).flatten())
    }

    /// Gives back a job that was not submitted.
    pub fn give_back(&self, job: Job) {
        lock(&self.free).push(job);
    }

    /// Hands a job to the sender; returns its number.
    pub fn submit(&self, mut job: Job) -> u64 {
        let number = self.submitted.fetch_add(1, Ordering::Relaxed) + 1;
        job.number = number;
        self.unposted.fetch_add(1, Ordering::AcqRel);
        lock(&self.waiting).push_back(Task::Job(job));
        self.wake_sender.notify();
        number
    }

    /// Hands a full piece to the sender, ahead of its epoch's job.
    pub fn submit_piece(&self, piece: Piece) {
        self.unposted.fetch_add(1, Ordering::AcqRel);
        lock(&self.waiting).push_back(Task::Piece(piece));
        self.wake_sender.notify();
    }

    /// Sender: what is next.
    pub fn next(&self) -> Option<Task> {
        lock(&self.waiting).pop_front()
    }

    /// Sender: what `next` gave last is posted, or will not be.
    pub fn posted(&self) {
        self.unposted.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether all that was handed over is posted.
    pub fn all_posted(&self) -> bool {
        self.unposted.load(Ordering::Acquire) == 0
    }

    /// Sender: the job's memory is no longer read. Jobs are finished in the order submitted.
    pub fn finish(&self, job: Job) {
        let number = job.number;
        lock(&self.free).push(job);
        self.finished.store(number, Ordering::Release);
        self.freed.notify();
    }

    /// Sender: so much more has left local memory, up to a marker each.
    pub fn depart(&self, flights: u64) {
        self.departed.fetch_add(flights, Ordering::AcqRel);
    }

    /// Grows whenever something has left local memory.
    pub fn departed(&self) -> u64 {
        self.departed.load(Ordering::Acquire)
    }

    /// Waits until job `number` is finished, at most for `timeout`. True also when no job will
    /// be finished any more.
    pub fn wait_finished(&self, number: u64, timeout: Duration) -> bool {
        let done = || self.finished.load(Ordering::Acquire) >= number || self.closed.load(Ordering::Acquire);
        let seen = self.freed.seen();
        done() || (self.freed.wait(seen, timeout) && done())
    }

    /// The sender is gone.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.freed.notify();
    }
}
