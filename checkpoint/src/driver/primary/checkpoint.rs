//! One checkpoint: pause, mark, save, collect, place, copy, resume, and off to the sender.

use std::time::{Duration, Instant};

use super::capture::{Capture, Tools};
use super::jobs::{Job, Kind};
use super::options::CaptureMode;
use super::pause::{NotPaused, Paused};
use super::plan::Plan;
use super::shared::Shared;
use super::staging::{PIECE_BYTES, Piece};
use crate::PAGE_BYTES;
use crate::guest::GuestError;
use crate::ids::{Identity, Time};
use crate::metrics::{Counter, Phase, Quantity};
use crate::primary::{NotTaken, PlacedEpoch};
use crate::wire::slot;

/// Longest wait for a job before the machine is asked again.
pub(super) const JOB_WAIT: Duration = Duration::from_millis(5);
/// Longest that a guest stays paused while staging memory or direct sending makes no progress;
/// then the connection is given up.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// How often that is looked at.
const STUCK_LOOK: Duration = Duration::from_millis(250);
/// Longest write of direct sending: what is sent up to a marker consists of whole writes.
const DIRECT_PAGES: u64 = PIECE_BYTES / PAGE_BYTES;

/// What came of a pause.
pub(super) enum Captured {
    /// Placed and copied, to be sent.
    Taken(Job),
    /// Placed and already sent, straight from guest memory.
    Sent,
    /// The machine keeps the pages for the next epoch.
    NotTaken(NotTaken),
    /// A step failed; no page is lost.
    Failed(&'static str, GuestError),
}

impl Capture {
    /// Makes one checkpoint. With `last` the guest stays paused after it.
    pub(super) fn checkpoint(&mut self, last: bool) {
        let Some(job) = self.shared.jobs.take_free(JOB_WAIT) else { return };
        self.count_lateness();
        match self.pause_and_capture(job, last) {
            Ok(Captured::Taken(job)) => {
                self.guest_worked();
                self.shared.jobs.submit(job);
            }
            Ok(captured) => self.not_taken(captured),
            Err(NotPaused { error, resumed }) => {
                if let Err(error) = resumed {
                    self.not_resumed(error);
                }
                self.guest_failed("pausing the guest", &error);
            }
        }
    }

    /// From before the pause to after it.
    fn pause_and_capture(&mut self, job: Job, last: bool) -> Result<Captured, NotPaused> {
        let shared = &*self.shared;
        // Stopping takes its time, and the guest's output waits for that too.
        let began = shared.clock.now();
        let mut paused = match Paused::pause(&mut *self.guest, &*shared.pause_flag, &shared.metrics) {
            Ok(paused) => paused,
            Err(not_paused) => {
                shared.jobs.give_back(job);
                shared.call(|primary, _, _| primary.capture_failed(&[]));
                return Err(not_paused);
            }
        };
        shared.metrics.count(Counter::EpochsCaptured, 1);
        let captured = capture(shared, &mut self.tools, &mut paused, job, began);
        if last && matches!(captured, Captured::Taken(_) | Captured::Sent) {
            paused.keep();
            self.guest.leave_paused();
            self.held_paused = true;
        } else if let Err(error) = paused.resume() {
            self.not_resumed(error);
        }
        Ok(captured)
    }

    fn not_taken(&mut self, captured: Captured) {
        match captured {
            Captured::Taken(_) => {}
            Captured::Sent => self.guest_worked(),
            Captured::NotTaken(NotTaken::Stalled) => {
                self.last_begin = None;
                self.shared.metrics.count(Counter::Stalls, 1);
            }
            Captured::NotTaken(_) => self.last_begin = None,
            Captured::Failed(what, error) => {
                self.shared.metrics.count(Counter::CaptureFailures, 1);
                self.guest_failed(what, &error);
            }
        }
    }

    /// An epoch is late when it begins more than a tenth of the interval after its time.
    fn count_lateness(&mut self) {
        let now = self.shared.clock.now();
        let interval = self.shared.call(|primary, _, _| primary.interval());
        let early = std::mem::take(&mut self.ended_early);
        if let Some(last) = self.last_begin
            && !early
            && now.since(last) > interval + interval / 10
        {
            self.shared.metrics.count(Counter::LateEpochs, 1);
        }
        self.last_begin = Some(now);
    }
}

/// What is done while the guest is paused. The order is the protocol's: state before pages, since
/// saving the state may write guest memory.
fn capture(
    shared: &Shared,
    tools: &mut Tools,
    paused: &mut Paused<'_>,
    mut job: Job,
    began: Time,
) -> Captured {
    let mark = shared.call(|primary, _, _| primary.paused(began));
    if let Err(error) = shared.metrics.run_phase(Phase::Gate, || shared.gate.mark(mark)) {
        let error = GuestError::Failed { what: "marking output".into(), why: error.to_string() };
        let failed = failed(shared, tools, job, "marking the guest's output", error);
        // While a gate is broken the guest may be cut off: that is not for whole intervals.
        shared.call(|primary, _, _| primary.end_epoch_early());
        return failed;
    }
    let (_, state) = shared.slots.state(job.slot_index);
    match shared.metrics.run_phase(Phase::State, || paused.guest().save_state(&state)) {
        // Nothing could be resumed from it.
        Ok(0) if shared.shape.copy_only_homes => {
            let why = "it is empty".into();
            let error = GuestError::Failed { what: "saving the device state".into(), why };
            return failed(shared, tools, job, "saving the device state", error);
        }
        Ok(state_bytes) => job.state_bytes = state_bytes,
        Err(error) => return failed(shared, tools, job, "saving the device state", error),
    }
    let collected = shared.metrics.run_phase(Phase::Collect, || tools.dirty.collect(paused.guest()));
    if let Err(error) = collected {
        return failed(shared, tools, job, "collecting dirty pages", error);
    }
    let placed = shared.metrics.run_phase(Phase::Place, || {
        let dirty = tools.dirty.extents();
        shared.call(|primary, now, actions| primary.place(dirty, now, &mut job.transfers, actions))
    });
    tools.dirty.clear();
    let placed = match placed {
        Err(NotTaken::Full { until }) => {
            shared.metrics.count(Counter::Throttled, 1);
            shared.metrics.run_phase(Phase::Throttle, || place_when_free(shared, &mut job, until))
        }
        placed => placed,
    };
    match placed {
        Ok(placed) => {
            count_epoch(shared, &job, &placed);
            shared.metrics.run_phase(Phase::Copy, || take_pages(shared, tools, job, placed))
        }
        Err(reason) => {
            shared.jobs.give_back(job);
            Captured::NotTaken(reason)
        }
    }
}

/// Back-pressure: the guest stays paused until acks and homings have made room for its epoch.
fn place_when_free(shared: &Shared, job: &mut Job, until: Time) -> Result<PlacedEpoch, NotTaken> {
    loop {
        // Seen before the machine is asked: an ack that comes after that wakes at once.
        let seen = shared.wake_capture.seen();
        if shared.is_over() {
            // Nobody hears the backup any more (I8).
            shared.call(|primary, _, _| primary.capture_failed(&[]));
            return Err(NotTaken::Superseded);
        }
        shared.perform();
        match shared.call(|primary, now, actions| primary.place(&[], now, &mut job.transfers, actions)) {
            Err(NotTaken::Full { .. }) => {}
            outcome => return outcome,
        }
        shared.wake_capture.wait(seen, shared.clock.remaining(Some(until), JOB_WAIT));
    }
}

fn failed(shared: &Shared, tools: &mut Tools, job: Job, what: &'static str, error: GuestError) -> Captured {
    shared.jobs.give_back(job);
    let dirty = tools.dirty.extents();
    shared.call(|primary, _, _| primary.capture_failed(dirty));
    tools.dirty.clear();
    Captured::Failed(what, error)
}

fn count_epoch(shared: &Shared, job: &Job, placed: &PlacedEpoch) {
    let transfers = job.transfers.len() as u64;
    let metrics = &shared.metrics;
    metrics.record_quantity(Quantity::DirtyPages, placed.pages);
    metrics.record_quantity(Quantity::Transfers, transfers);
    metrics.record_quantity(Quantity::StateBytes, job.state_bytes);
    let slot_bytes = slot::state_offset_bytes(transfers) + job.state_bytes;
    metrics.record_quantity(Quantity::EpochBytes, placed.pages * PAGE_BYTES + slot_bytes);
    crate::driver::signal::lock(&shared.view).last_dirty_pages = placed.pages;
}

/// Gets the placed pages out of the guest, which is paused, or runs and writes them again.
pub(super) fn take_pages(shared: &Shared, tools: &mut Tools, mut job: Job, placed: PlacedEpoch) -> Captured {
    tools.plan.begin(&job.transfers);
    job.kind = Kind::Epoch(placed);
    job.writes.clear();
    if shared.options.capture == CaptureMode::Direct {
        send_directly(shared, &mut tools.plan, job, &placed.identity);
        return Captured::Sent;
    }
    while tools.plan.pages_left() > 0 {
        if placed.pages >= shared.send_now_from_pages() && send_now(shared, tools, &placed) {
            continue;
        }
        // Without one the connection is gone or was given up: nothing of this epoch will be sent. The
        // piece comes last: one that was taken would have to be given back.
        let Some(link) = shared.link_of(&placed.identity) else { break };
        let Some(mut piece) = wait_for_piece(shared, &placed.identity) else { break };
        piece.identity = placed.identity;
        tools.copies.clear();
        tools.plan.stage(&mut piece, link.staging, &shared.borders, &shared.shape, &mut tools.copies);
        tools.copier.copy(&mut tools.copies, placed.pages);
        send_or_keep(shared, &mut job, piece, tools.plan.pages_left() == 0);
    }
    if placed.pages * PAGE_BYTES > shared.staging.count() as u64 * PIECE_BYTES {
        crate::driver::signal::lock(&shared.view).pieced_epochs += 1;
    }
    Captured::Taken(job)
}

/// Sends all pages from the memory of the guest, which is paused until they have left.
fn send_directly(shared: &Shared, plan: &mut Plan, mut job: Job, identity: &Identity) {
    if let Some(link) = shared.link_of(identity) {
        while plan.pages_left() > 0 {
            plan.direct(DIRECT_PAGES, &link.guest, &shared.borders, &shared.shape, &mut job.writes);
        }
    }
    let number = shared.jobs.submit(job);
    let mut last = (shared.jobs.departed(), Instant::now());
    while !shared.jobs.wait_finished(number, STUCK_LOOK) {
        let departed = shared.jobs.departed();
        if departed != last.0 {
            last = (departed, Instant::now());
        } else if last.1.elapsed() >= STUCK_AFTER {
            if let Some(link) = shared.link_of(identity) {
                shared.close_link(&link, "the pages of a paused guest do not get away");
            }
            last.1 = Instant::now();
        }
    }
}

/// Sends the next pages straight from the paused guest's memory if the fabric takes them at once:
/// then the fabric's own copy is the only one. False when it did not take all that was offered.
fn send_now(shared: &Shared, tools: &mut Tools, placed: &PlacedEpoch) -> bool {
    // What was handed to the sender, the epoch before above all, goes first.
    let link = shared.link_of(&placed.identity).filter(|link| !link.guest.is_empty());
    let Some(link) = link.filter(|_| shared.jobs.all_posted()) else { return false };
    let begin = tools.plan.place();
    tools.direct.clear();
    let most = PIECE_BYTES / PAGE_BYTES;
    tools.plan.direct(most, &link.guest, &shared.borders, &shared.shape, &mut tools.direct);
    // An error is met again, and dealt with, by the sender.
    let taken = link.endpoint.write_now(&tools.direct).unwrap_or(0);
    let pages = tools.direct[..taken].iter().map(|write| write.len_bytes).sum::<u64>() / PAGE_BYTES;
    shared.metrics.count(Counter::PagesSent, pages);
    shared.metrics.count(Counter::BytesSent, pages * PAGE_BYTES);
    if taken < tools.direct.len() {
        tools.plan.go_on_from(begin, pages, &shared.borders, &shared.shape);
        return false;
    }
    true
}

/// Full pieces leave at once, while the guest is still paused and the next is copied; the last one
/// goes with the job, so that a small epoch wakes the sender once.
fn send_or_keep(shared: &Shared, job: &mut Job, piece: Piece, last: bool) {
    if last {
        job.pieces.push(piece);
    } else {
        shared.jobs.submit_piece(piece);
    }
}

/// Waits until the sender has freed a piece. `None` when the connection of that identity is gone; it is
/// given up when none is freed for long.
fn wait_for_piece(shared: &Shared, identity: &Identity) -> Option<Piece> {
    let begun = Instant::now();
    loop {
        let seen = shared.staging.freed.seen();
        if let Some(piece) = shared.staging.take() {
            return Some(piece);
        }
        let link = shared.link_of(identity)?;
        if begun.elapsed() >= STUCK_AFTER {
            shared.close_link(&link, "staging memory is not freed");
            return None;
        }
        shared.staging.freed.wait(seen, JOB_WAIT);
    }
}
