//! What the sender thread does: posts what was captured, frees staging once its bytes have left.

use std::collections::VecDeque;
use std::time::Duration;

use romulus_checkpoint::extent::Transfer;
use romulus_checkpoint::layout::ArenaShape;
use romulus_checkpoint::primary::PlacedEpoch;
use romulus_checkpoint::wire::message::ROUND_MARKER;
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{ConnectionNumber, PAGE_BYTES};
use romulus_transport::{Memory, Write};

use super::env::{Env, Progress, Step};
use super::primary_process::PrimaryProcess;
use super::scenario::{Mutant, Scenario};

/// What a job is for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Round { round: u64 },
    Epoch { placed: PlacedEpoch },
}

/// One write from a page-sized piece of staging.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    chunk: u64,
    target: u64,
    len_bytes: u64,
}

/// Writes that end with one marker.
#[derive(Debug)]
pub struct Job {
    pub kind: Kind,
    connection: ConnectionNumber,
    pieces: Vec<Piece>,
    posted: usize,
    marked: bool,
}

impl Job {
    pub fn new(kind: Kind, connection: ConnectionNumber) -> Self {
        Self { kind, connection, pieces: Vec::new(), posted: 0, marked: false }
    }

    fn marker(&self) -> u64 {
        match self.kind {
            Kind::Round { round } => ROUND_MARKER | round,
            Kind::Epoch { placed } => placed.epoch.0,
        }
    }
}

#[derive(Debug)]
pub struct Sender {
    pub staging: Memory,
    pub jobs: VecDeque<Job>,
    /// The round handed over last is posted (or failed).
    pub round_done: Option<bool>,
    free: VecDeque<u64>,
    leaving: VecDeque<(u64, Vec<Piece>)>,
}

impl Sender {
    pub fn new(scenario: &Scenario) -> Self {
        let chunks = (scenario.depth + 3) * (scenario.shape.pages + 1);
        Self {
            staging: Memory::anonymous((chunks * PAGE_BYTES) as usize),
            jobs: VecDeque::new(),
            round_done: None,
            free: (0..chunks).collect(),
            leaving: VecDeque::new(),
        }
    }

    /// Copies a page to staging, if there is room.
    pub fn stage(&mut self, guest: &Memory, page: u64, target: u64, job: &mut Job) -> bool {
        let Some(chunk) = self.free.pop_front() else { return false };
        let (from, to) = (page * PAGE_BYTES, chunk * PAGE_BYTES);
        guest.copy_to(from as usize, &self.staging, to as usize, PAGE_BYTES as usize);
        job.pieces.push(Piece { chunk, target, len_bytes: PAGE_BYTES });
        true
    }

    /// Writes a commit slot to staging, if there is room.
    pub fn stage_slot(
        &mut self,
        placed: &PlacedEpoch,
        transfers: &[Transfer],
        state: &[u8],
        shape: &ArenaShape,
        job: &mut Job,
    ) -> bool {
        let Some(chunk) = self.free.pop_front() else { return false };
        let memory = self.staging.part((chunk * PAGE_BYTES) as usize, PAGE_BYTES as usize);
        let at = slot::state_offset_bytes(transfers.len() as u64) as usize;
        memory.write(at, state);
        let checksum = slot::checksum(&memory, at, state.len());
        let (identity, epoch, length) = (&placed.identity, placed.epoch, state.len() as u64);
        let used = slot::encode(identity, epoch, transfers, length, checksum, &memory);
        let len_bytes = used.expect("a slot has room for all pages of the model");
        job.pieces.push(Piece { chunk, target: shape.slot_offset_bytes(epoch), len_bytes });
        true
    }

    /// The connection is closed: nothing of staging is read any more.
    pub fn disconnected(&mut self) {
        for (_, pieces) in std::mem::take(&mut self.leaving) {
            self.reclaim(&pieces);
        }
    }

    fn reclaim(&mut self, pieces: &[Piece]) {
        // What was freed last is used first: a byte read too late shows.
        pieces.iter().for_each(|piece| self.free.push_front(piece.chunk));
    }

    fn drop_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        self.reclaim(&job.pieces);
        if let Kind::Round { .. } = job.kind {
            self.round_done = Some(false);
        }
    }
}

impl PrimaryProcess {
    pub fn step_sender(&mut self, env: &mut Env) -> Step {
        if self.free_staging() == Progress::Some {
            return Ok(Progress::Some);
        }
        let Some(job) = self.sender.jobs.front_mut() else { return Ok(Progress::None) };
        let Some(link) = self.link.as_ref().filter(|link| link.number == job.connection) else {
            self.sender.drop_job();
            return Ok(Progress::Some);
        };
        if job.posted < job.pieces.len() {
            let end = job.pieces.len().min(job.posted + env.rng.between(1, 4) as usize);
            let write = |piece: &Piece| Write {
                region: link.staging,
                local_offset: piece.chunk * PAGE_BYTES,
                remote_offset: piece.target,
                len_bytes: piece.len_bytes,
            };
            let writes: Vec<_> = job.pieces[job.posted..end].iter().map(write).collect();
            job.posted = end;
            if link.endpoint.write(&writes).is_err() {
                self.sender.drop_job();
            }
        } else if !job.marked {
            job.marked = true;
            if link.endpoint.mark(job.marker()).is_err() {
                self.sender.drop_job();
            }
        } else {
            return self.job_posted(env);
        }
        self.point(env)?;
        Ok(Progress::Some)
    }

    fn job_posted(&mut self, env: &mut Env) -> Step {
        let Some(job) = self.sender.jobs.pop_front() else { return Ok(Progress::None) };
        match job.kind {
            Kind::Round { round } => {
                let pages = job.pieces.len() as u64;
                self.machine.round_posted(round, pages, &mut self.actions);
                self.sender.round_done = Some(true);
            }
            Kind::Epoch { placed } => self.machine.epoch_posted(&placed, env.now, &mut self.actions),
        }
        if env.mutant(Mutant::ReuseStaging) {
            self.sender.reclaim(&job.pieces);
        } else {
            self.sender.leaving.push_back((job.marker(), job.pieces));
        }
        self.called(env)
    }

    fn free_staging(&mut self) -> Progress {
        let (Some(link), Some((marker, _))) = (&self.link, self.sender.leaving.front()) else {
            return Progress::None;
        };
        let Ok(reached) = link.endpoint.completed(*marker, Duration::ZERO) else { return Progress::None };
        let leaving = &mut self.sender.leaving;
        let Some(last) = leaving.iter().position(|(marker, _)| *marker == reached) else {
            return Progress::None;
        };
        for (_, pieces) in leaving.drain(..=last).collect::<Vec<_>>() {
            self.sender.reclaim(&pieces);
        }
        Progress::Some
    }
}
