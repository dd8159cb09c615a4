//! The `capture` thread: owns the guest, asks the machine what to do, and does it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use romulus_transport::Write;

use super::copy::{Copier, CopyItem};
use super::jobs::Kind;
use super::plan::Plan;
use super::shared::Shared;
use super::status::PrimaryOutcome;
use crate::extent::Extent;
use crate::guest::{Guest, GuestError, GuestEvent};
use crate::ids::{Identity, Time};
use crate::metrics::Counter;
use crate::primary::{PrimaryState, Work};
use crate::wire::message::ByeReason;

/// Pause before a guest operation that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// Failures of the same operation in a row that end protection.
const MOST_FAILURES: u32 = 50;

/// The thread's own state.
pub(super) struct Capture {
    pub(super) shared: Arc<Shared>,
    pub(super) guest: Box<dyn Guest>,
    pub(super) tools: Tools,
    tracking: bool,
    /// A last checkpoint left the guest paused.
    pub(super) held_paused: bool,
    paused_by_others: bool,
    gone: Option<PrimaryOutcome>,
    destroyed: bool,
    /// The backup owns the guest, and it may still run here: its output must not leave.
    at_large: bool,
    pub(super) failures: u32,
    /// Begin of the last checkpoint, if the one after it is due an interval later.
    pub(super) last_begin: Option<Time>,
    pub(super) ended_early: bool,
    last_look: Time,
}

/// What an epoch's pages are handled with.
pub(super) struct Tools {
    pub copier: Copier,
    pub plan: Plan,
    pub copies: Vec<CopyItem>,
    /// Writes straight from guest memory.
    pub direct: Vec<Write>,
    /// Collected since the last epoch.
    pub dirty: Dirty,
}

/// Dirty pages collected in several goes, kept as one sorted list.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pages: Vec<Extent>,
    fresh: Vec<Extent>,
    merged: Vec<Extent>,
}

impl Dirty {
    /// All pages so far.
    pub fn extents(&self) -> &[Extent] {
        &self.pages
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.pages.iter().map(|extent| extent.pages).sum()
    }

    /// They are somebody else's now.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Adds what the guest has written since the last call.
    pub fn collect(&mut self, guest: &mut dyn Guest) -> Result<(), GuestError> {
        self.fresh.clear();
        guest.collect(&mut self.fresh)?;
        if self.pages.is_empty() {
            std::mem::swap(&mut self.pages, &mut self.fresh);
        } else if !self.fresh.is_empty() {
            union(&self.pages, &self.fresh, &mut self.merged);
            std::mem::swap(&mut self.pages, &mut self.merged);
        }
        Ok(())
    }
}

/// The union of two sorted lists without overlap, sorted and without overlap.
fn union(one: &[Extent], other: &[Extent], into: &mut Vec<Extent>) {
    into.clear();
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    loop {
        let from_one = match (one.peek(), other.peek()) {
            (Some(a), Some(b)) => a.first <= b.first,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return,
        };
        let Some(next) = (if from_one { one.next() } else { other.next() }) else { return };
        match into.last_mut() {
            Some(last) if next.first.0 <= last.first.0 + last.pages => {
                last.pages = last.pages.max(next.first.0 + next.pages - last.first.0);
            }
            _ => into.push(*next),
        }
    }
}

impl Capture {
    pub fn new(shared: Arc<Shared>, guest: Box<dyn Guest>, copier: Copier) -> Self {
        Self {
            shared,
            guest,
            tools: Tools {
                copier,
                plan: Plan::default(),
                copies: Vec::new(),
                direct: Vec::new(),
                dirty: Dirty::default(),
            },
            tracking: false,
            held_paused: false,
            paused_by_others: false,
            gone: None,
            destroyed: false,
            at_large: false,
            failures: 0,
            last_begin: None,
            ended_early: false,
            last_look: Time::default(),
        }
    }

    /// Works until protection is over, then leaves the guest as it is to be left.
    pub fn run(&mut self) {
        while !self.shared.is_over() {
            let seen = self.shared.wake_capture.seen();
            self.shared.perform();
            self.obey_orders();
            let state = self.shared.state();
            if matches!(state, PrimaryState::Ended | PrimaryState::Lost) {
                // `leave` obeys what was ordered together with this state.
                break;
            }
            self.poll_guest();
            if self.paused_by_others {
                self.shared.wake_capture.wait(seen, self.shared.options.poll_every);
                continue;
            }
            // The connection that work is given for is the one of that moment.
            let (work, identity) =
                self.shared.call(|primary, now, _| (primary.next_work(now), primary.identity()));
            match work {
                Work::Wait { until } => self.wait(seen, until),
                Work::Round { round, everything } => self.round(&identity, round, everything),
                Work::Part => self.part(),
                Work::Checkpoint { last } => self.checkpoint(last),
            }
        }
        self.leave();
    }

    /// Carries out what the machine ordered for the guest.
    fn obey_orders(&mut self) {
        if self.shared.orders.destroy.swap(false, Ordering::AcqRel) {
            self.destroy_guest();
        }
        if self.shared.orders.resume.swap(false, Ordering::AcqRel) {
            self.resume_held();
        }
    }

    /// Once: the backup owns the guest. Whatever comes of it, the guest does not run on here.
    fn destroy_guest(&mut self) {
        if std::mem::replace(&mut self.destroyed, true) {
            return;
        }
        self.held_paused = false;
        match self.guest.destroy() {
            Ok(()) => {
                self.shared.note("the backup owns the guest: destroyed here");
                self.shared.conclude(PrimaryOutcome::TakenOver);
                (self.shared.pause_flag)(false);
            }
            // The flag stays as it is: a guest that is paused is the guard's to destroy.
            Err(error) => {
                self.at_large = true;
                self.shared.conclude(PrimaryOutcome::Failed(format!(
                    "the backup owns the guest, and it could not be destroyed here: {error}"
                )));
            }
        }
    }

    /// Lets a guest run on that a last checkpoint left paused (I8).
    fn resume_held(&mut self) {
        if !std::mem::take(&mut self.held_paused) {
            return;
        }
        match super::pause::resume_at_last(&mut *self.guest) {
            Ok(()) => (self.shared.pause_flag)(false),
            Err(error) => self.not_resumed(error),
        }
    }

    /// A guest that was to run does not: it is gone, or paused for good, with the flag up.
    pub(super) fn not_resumed(&mut self, error: GuestError) {
        if let GuestError::Gone(why) = error {
            (self.shared.pause_flag)(false);
            return self.guest_gone(ByeReason::GuestDied, PrimaryOutcome::GuestDied(why));
        }
        self.shared.fail(format!("the guest is paused and could not be resumed: {error}"));
    }

    /// Takes note of what happened to the guest by itself.
    pub(super) fn poll_guest(&mut self) {
        while let Some(event) = self.guest.poll_event() {
            match event {
                GuestEvent::Ended => self.guest_gone(ByeReason::GuestEnded, PrimaryOutcome::GuestEnded),
                GuestEvent::Died(why) => {
                    self.guest_gone(ByeReason::GuestDied, PrimaryOutcome::GuestDied(why));
                }
                GuestEvent::Reset => self.shared.note("the guest has rebooted and stays protected"),
                GuestEvent::PausedByOthers(paused) => {
                    self.paused_by_others = paused;
                    self.last_begin = None;
                    let what = if paused { "paused: no epochs meanwhile" } else { "resumed" };
                    self.shared.note(&format!("somebody else has {what}"));
                }
            }
        }
    }

    fn guest_gone(&mut self, reason: ByeReason, outcome: PrimaryOutcome) {
        if self.gone.is_some() {
            return;
        }
        self.shared.note(&match &outcome {
            PrimaryOutcome::GuestDied(why) => format!("the guest's process has died: {why}"),
            _ => "the guest has powered off".to_owned(),
        });
        self.gone = Some(outcome);
        self.paused_by_others = false;
        self.shared.step(|primary, now, actions| primary.guest_gone(reason, now, actions));
    }

    /// Waits for the next epoch, looking after the guest and the gate meanwhile.
    fn wait(&mut self, seen: u64, until: Option<Time>) {
        let shared = &self.shared;
        let timeout = shared.clock.remaining(until, shared.options.poll_every);
        if shared.wake_capture.wait(seen, timeout) || self.ended_early {
            return;
        }
        let level = shared.gate.level();
        if level.bytes > 0 && level.bytes >= shared.gate.bound_bytes() {
            return self.end_early("output held by the gate");
        }
        if let Some(watermark) = shared.options.watermark
            && self.tracking
            && shared.state() == PrimaryState::Protected
        {
            let now = shared.clock.now();
            if now.since(self.last_look) < watermark.check_every {
                return;
            }
            self.last_look = now;
            if let Err(error) = self.tools.dirty.collect(&mut *self.guest) {
                return self.guest_failed("collecting dirty pages", &error);
            }
            if self.tools.dirty.count() >= watermark.pages {
                self.end_early("dirty pages");
            }
        }
    }

    fn end_early(&mut self, why: &str) {
        tracing::debug!(why, "the epoch ends early");
        self.ended_early = true;
        self.shared.metrics.count(Counter::EarlyEpochs, 1);
        self.shared.call(|primary, _, _| primary.end_epoch_early());
    }

    /// Hands a synchronization round to the sender and waits for it to be posted; with copy-only
    /// homes tells the machine its pages. It was asked for under `identity`.
    fn round(&mut self, identity: &Identity, round: u64, everything: bool) {
        if let Err((what, error)) = self.prepare_round(everything) {
            let dirty = self.tools.dirty.extents();
            self.shared.call(|primary, _, _| primary.round_failed(round, dirty));
            self.tools.dirty.clear();
            return self.guest_failed(what, &error);
        }
        if self.shared.shape.copy_only_homes {
            return self.list_round(identity, round, everything);
        }
        let Some(mut job) = self.shared.jobs.take_free(Duration::from_secs(1)) else {
            let dirty = self.tools.dirty.extents();
            self.shared.call(|primary, _, _| primary.round_failed(round, dirty));
            return self.tools.dirty.clear();
        };
        self.failures = 0;
        self.last_begin = None;
        job.kind = Kind::Round { identity: *identity, round, everything };
        job.extents.clear();
        if everything {
            self.guest.populated(&mut job.extents);
        } else {
            job.extents.extend_from_slice(self.tools.dirty.extents());
        }
        self.tools.dirty.clear();
        let number = self.shared.jobs.submit(job);
        while !self.shared.jobs.wait_finished(number, self.shared.options.poll_every) {
            self.poll_guest();
        }
    }

    fn prepare_round(&mut self, everything: bool) -> Result<(), (&'static str, GuestError)> {
        if !self.tracking {
            self.start_tracking().map_err(|error| ("starting to track dirty pages", error))?;
            self.tracking = true;
        }
        self.tools.dirty.collect(&mut *self.guest).map_err(|error| ("collecting dirty pages", error))?;
        if everything {
            self.tools.dirty.clear();
        }
        Ok(())
    }

    /// It may pause the guest for a moment: the flag is up until the guest is known to run.
    fn start_tracking(&mut self) -> Result<(), GuestError> {
        (self.shared.pause_flag)(true);
        let outcome = self.guest.start_tracking();
        if outcome.is_err()
            && let Err(error) = super::pause::resume_at_last(&mut *self.guest)
        {
            self.not_resumed(error);
        } else {
            (self.shared.pause_flag)(false);
        }
        outcome
    }

    /// A guest operation failed and the guest runs.
    pub(super) fn guest_failed(&mut self, what: &str, error: &GuestError) {
        self.failures += 1;
        self.last_begin = None;
        match error {
            GuestError::Gone(why) => {
                let outcome = PrimaryOutcome::GuestDied(why.clone());
                return self.guest_gone(ByeReason::GuestDied, outcome);
            }
            GuestError::Refused(_) => self.give_up(format!("{what}: {error}")),
            GuestError::Failed { .. } if self.failures >= MOST_FAILURES => {
                self.give_up(format!("{what} failed {} times in a row, at last: {error}", self.failures));
            }
            GuestError::Failed { .. } if self.failures == 1 => {
                self.shared.note(&format!("{what} failed, trying again: {error}"));
            }
            GuestError::Failed { .. } => {}
        }
        let seen = self.shared.wake_capture.seen();
        self.shared.wake_capture.wait(seen, RETRY_AFTER);
    }

    /// Protection cannot go on: ends it in order.
    fn give_up(&mut self, text: String) {
        self.shared.note(&text);
        self.shared.conclude(PrimaryOutcome::Failed(text));
        self.shared.step(|primary, now, actions| primary.request_stop(now, actions));
    }

    /// A guest operation succeeded.
    pub(super) fn guest_worked(&mut self) {
        self.failures = 0;
    }

    /// The backup was told to go on with a guest that is paused here, and nobody knows whether it
    /// does. Without a grant the guest stays paused and the flag up: who resumes it needs one (I9).
    fn leave_paused(&mut self) {
        let text = "the guest is paused: the backup was told to go on with it and may run it; \
                    resume it here only when the record says that this host runs it alone";
        self.shared.note(text);
        self.shared.conclude_failed_also(text);
    }

    /// The end of the thread: the guest runs (unless it is gone, owned elsewhere or perhaps so),
    /// untracked; the gate is out of its way if the machine let go of its output.
    fn leave(&mut self) {
        // Asked for first: what was ordered on the way to this state is queued by now.
        let (state, may_run, unprotected) = self.shared.call(|primary, _, _| {
            (primary.state(), primary.keep_guest_here(), primary.guest_died_unprotected())
        });
        self.shared.perform();
        self.obey_orders();
        if state == PrimaryState::Lost {
            self.destroy_guest();
        } else if self.gone.is_some() {
            (self.shared.pause_flag)(false);
        } else if may_run {
            self.resume_held();
        } else if self.held_paused {
            self.leave_paused();
        }
        let goes_on = state == PrimaryState::Ended && self.gone.is_none();
        if let Err(error) = self.guest.stop_tracking() {
            self.left_behind(goes_on, &format!("ending dirty tracking failed: {error}"));
        }
        if matches!(state, PrimaryState::Ended | PrimaryState::Lost)
            && !self.at_large
            && let Err(error) = self.shared.gate.detach()
        {
            self.left_behind(goes_on, &format!("taking the output gate away failed: {error}"));
        }
        self.shared.conclude(match self.gone.take() {
            _ if state == PrimaryState::Lost => PrimaryOutcome::TakenOver,
            Some(PrimaryOutcome::GuestDied(why)) if unprotected => PrimaryOutcome::GuestDiedUnprotected(why),
            Some(gone) => gone,
            None => PrimaryOutcome::Stopped,
        });
        self.shared.finish();
    }

    /// Something of protection stays around the guest. One that goes on here may be cut off by it (I8):
    /// the guard, which acts after a failure, takes it away.
    fn left_behind(&self, goes_on: bool, text: &str) {
        self.shared.note(text);
        if goes_on {
            self.shared.conclude_failed_also(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageIndex;

    #[test]
    fn the_union_of_extents_is_sorted_and_without_overlap() {
        let extents = |list: &[(u64, u64)]| -> Vec<Extent> {
            list.iter().map(|(first, pages)| Extent { first: PageIndex(*first), pages: *pages }).collect()
        };
        let mut into = Vec::new();
        for (one, other, expected) in [
            (vec![], vec![(3, 1)], vec![(3, 1)]),
            (vec![(0, 2), (8, 2)], vec![(2, 1), (5, 1)], vec![(0, 3), (5, 1), (8, 2)]),
            (vec![(0, 10)], vec![(2, 3), (9, 4)], vec![(0, 13)]),
            (vec![(4, 1), (6, 1)], vec![(4, 1), (5, 1), (6, 1)], vec![(4, 3)]),
        ] {
            union(&extents(&one), &extents(&other), &mut into);
            assert_eq!(into, extents(&expected));
        }
    }
}
