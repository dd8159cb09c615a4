//! What the capture thread does: rounds of the synchronization, and checkpoints.

use std::time::Duration;

use crate::extent::{Extent, Transfer};
use crate::ids::{GateMark, Time};
use crate::placement::planner::NotPlaced;
use crate::wire::message::Message;

use super::image::{Capture, Flight, Phase, RoundStep, within};
use super::{Actions, NotTaken, PlacedEpoch, Primary, PrimaryAction, PrimaryReport, Work};

impl Primary {
    /// What the capture thread is to do.
    pub fn next_work(&mut self, now: Time) -> Work {
        if !self.link.is_up() || self.over.is_some() {
            return Work::Wait { until: None };
        }
        match &mut self.image.phase {
            Phase::Rounds(rounds) if rounds.step == RoundStep::Idle && self.ending.is_none() => {
                rounds.step = RoundStep::Taken;
                Work::Round { round: rounds.round + 1, everything: rounds.round == 0 }
            }
            Phase::Rounds(rounds) if rounds.step == (RoundStep::Parts { waits: false }) => self.next_part(),
            Phase::Epochs => self.next_checkpoint(now),
            _ => Work::Wait { until: None },
        }
    }

    fn next_checkpoint(&mut self, now: Time) -> Work {
        let next_is_last = self.next_is_last();
        let held = self.gate.is_held();
        if !held && !self.may_stay_open() {
            return Work::Wait { until: None };
        }
        let image = &mut self.image;
        // Depth D; it also keeps slot n at most A + K - 1 (rule 7), since K is at least D + 1.
        let full = image.flights.len() as u64 >= self.config.depth
            || image.placed.0 + 1 > image.acked.0 + self.shape.slots.saturating_sub(1);
        let Some(last) = next_is_last else { return Work::Wait { until: None } };
        image.early |= last;
        let mut due = image.due(self.config.interval, now);
        if full {
            // Back-pressure: the guest runs on while acks are awaited, and is held where `place` would
            // soon have to say that its pages never fit.
            let may_hold = !self.config.throttle_pause.is_zero() && image.stalled_until.is_none();
            let limit = image.outgrows_at(self.shape.spares).filter(|_| may_hold);
            let Some(limit) = limit else { return Work::Wait { until: None } };
            due = due.max(limit);
        }
        if now < due {
            return Work::Wait { until: Some(due) };
        }
        image.begin(due, self.config.interval, now);
        let (connection, mark) = (self.link.connection, self.last_mark);
        image.capture = Some(Capture { connection, last, held, mark, paused_at: now });
        Work::Checkpoint { last }
    }

    /// The length of an epoch.
    pub fn interval(&self) -> Duration {
        self.config.interval
    }

    /// From the next epoch on.
    pub fn set_interval(&mut self, interval: Duration) {
        self.config.interval = interval;
    }

    /// End the present epoch now (watermark, gate's byte bound).
    pub fn end_epoch_early(&mut self) {
        self.image.early = true;
    }

    /// The writes of a round are posted, followed by the marker `ROUND_MARKER | round`; `pages`
    /// is how many it had. Ignored when the round is not the one asked for last (the connection
    /// has changed meanwhile).
    pub fn round_posted(&mut self, round: u64, pages: u64, actions: &mut Actions) {
        let Phase::Rounds(rounds) = &mut self.image.phase else { return };
        if !self.link.is_up() || rounds.step != RoundStep::Taken || round != rounds.round + 1 {
            return;
        }
        rounds.round = round;
        rounds.step = RoundStep::Posted;
        rounds.pages = pages;
        self.send(Message::RoundEnd { round }, actions);
    }

    /// A round was not sent, nothing of it was posted: its pages must be sent by a later round or
    /// epoch. Ignored when the round is not the one asked for last: the connection has changed
    /// meanwhile, and all pages are asked for again.
    pub fn round_failed(&mut self, round: u64, dirty: &[Extent]) {
        if let Phase::Rounds(rounds) = &mut self.image.phase
            && rounds.step == RoundStep::Taken
            && round == rounds.round + 1
        {
            rounds.step = RoundStep::Idle;
            self.image.keep(dirty);
        }
    }

    /// The guest has been paused, since `began` at the earliest: the mark to give to the gate.
    pub fn paused(&mut self, began: Time) -> GateMark {
        self.last_mark = self.last_mark.next();
        // An epoch that began while output was free does not end what has been held since.
        let was_free = self.image.capture.is_some_and(|capture| !capture.held);
        self.image.early &= was_free && !self.gate.is_open();
        if let Some(capture) = &mut self.image.capture {
            capture.mark = self.last_mark;
            capture.paused_at = began;
        }
        self.last_mark
    }

    /// Places what was collected while paused, with pages carried over from epochs that did not
    /// commit. `transfers` is cleared first. In each error case the pages are kept, for the next call
    /// or the next epoch.
    pub fn place(
        &mut self,
        dirty: &[Extent],
        now: Time,
        transfers: &mut Vec<Transfer>,
        actions: &mut Actions,
    ) -> Result<PlacedEpoch, NotTaken> {
        transfers.clear();
        debug_assert!(within(dirty, self.shape.pages));
        let next_is_last = self.next_is_last();
        let capture = self.image.capture.take().filter(|capture| {
            // A pause before the present hold, or for another connection, ends no epoch of this
            // one: what left since then would belong to no epoch. (Unless output was free at the
            // pause: such an epoch covers nothing, whatever the gate does meanwhile.) And a last
            // checkpoint that is wanted no more would leave the guest paused.
            capture.connection == self.link.connection
                && (!capture.last || next_is_last == Some(true))
                && self.link.is_up()
                && (self.gate.is_held() || !capture.held)
                && self.image.phase == Phase::Epochs
                && self.over.is_none()
        });
        let Some(capture) = capture else {
            self.image.keep(dirty);
            return Err(NotTaken::Superseded);
        };
        let epoch = self.image.placed.next();
        let image = &mut self.image;
        let merge = !image.carry.is_empty();
        if merge {
            image.merge(dirty);
        }
        let pages: &[Extent] = if merge { &image.merged } else { dirty };
        let count = pages.iter().map(|extent| extent.pages).sum();
        let placed = match image.flights.len() as u64 >= self.config.depth {
            true => Err(NotPlaced::Later),
            false => image.planner.place(epoch, pages, transfers),
        };
        match placed {
            Ok(()) => {
                image.carry.clear();
                image.placed = epoch;
                image.stalled_until = None;
                let Capture { mark, paused_at, held, .. } = capture;
                image.pace.placed(count, paused_at, now);
                image.flights.push_back(Flight { epoch, mark: Some(mark), paused_at });
                if held {
                    image.fresh_from = Some(image.fresh_from.map_or(epoch, |first| first.min(epoch)));
                }
                if capture.last {
                    self.last_epoch_placed(epoch);
                }
                Ok(PlacedEpoch { epoch, identity: self.identity(), pages: count })
            }
            Err(not_placed) => {
                self.image.keep(dirty);
                let until = capture.paused_at.after(self.config.throttle_pause);
                // Once in vain is enough until something is acked: else a backup that frees nothing
                // would have the guest paused nearly all the time (I8).
                if not_placed == NotPlaced::Later && now < until && self.image.stalled_until.is_none() {
                    self.image.capture = Some(capture);
                    self.ask_homings(actions);
                    return Err(NotTaken::Full { until });
                }
                Err(self.not_placed(not_placed, count, now, actions))
            }
        }
    }

    fn not_placed(&mut self, why: NotPlaced, pages: u64, now: Time, actions: &mut Actions) -> NotTaken {
        let outcome = match why {
            NotPlaced::Later => {
                self.image.stalled_until = Some(now.after(self.config.interval));
                self.ask_homings(actions);
                NotTaken::Stalled
            }
            NotPlaced::NeverFits { spares, .. } => {
                self.image.phase = Phase::Draining;
                actions.push(PrimaryAction::Report(PrimaryReport::Overflow { pages }));
                self.because(format_args!("an epoch of {pages} pages exceeds the {spares} spare frames"));
                self.last_epoch_failed();
                NotTaken::Overflow
            }
        };
        self.settle(now, actions);
        outcome
    }

    /// Capture failed after pages were collected and before [`place`](Self::place), or before
    /// anything was collected (`dirty` is empty then).
    pub fn capture_failed(&mut self, dirty: &[Extent]) {
        self.image.keep(dirty);
        if self.image.capture.take().is_some_and(|capture| capture.last) {
            self.last_epoch_failed();
        }
    }

    /// Data, slot and markers of the epoch are posted on this connection: sends Commit.
    /// Ignored when the epoch belongs to an older connection.
    pub fn epoch_posted(&mut self, placed: &PlacedEpoch, now: Time, actions: &mut Actions) {
        let in_parts = self.shape.copy_only_homes && matches!(self.image.phase, Phase::Rounds(_));
        let live = in_parts || matches!(self.image.phase, Phase::Epochs | Phase::Draining);
        if !self.link.is_up() || !live || placed.identity != self.identity() {
            return;
        }
        if placed.epoch != self.image.commit_sent.next() {
            // An epoch was lost between capture and sender: only a new connection mends that.
            let (posted, before) = (placed.epoch, self.image.commit_sent);
            self.close(format_args!("epoch {posted} was posted after epoch {before}"), now, actions);
            self.settle(now, actions);
            return;
        }
        self.image.commit_sent = placed.epoch;
        // From a part nobody can take over.
        self.at_large |= !in_parts && !self.config.shared_arbiter && !self.config.solo_automatic;
        self.image.planner.commit_sent(placed.epoch);
        self.send(Message::Commit { epoch: placed.epoch }, actions);
    }
}
