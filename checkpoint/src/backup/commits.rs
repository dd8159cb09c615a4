//! Epochs: committed once their markers, their Commit and a valid slot are there (I4), one after
//! the other (I5); acked once the state was loaded for trial.

use crate::extent::Transfer;
use crate::ids::{Epoch, Time};
use crate::wire::AckProof;
use crate::wire::message::{ErrorCode, Message};
use crate::wire::slot::{SlotError, SlotHeader};

use super::image::Trial;
use super::{Actions, Backup, BackupAction, BackupReport, Refusal};

/// Homings done that are worth an Ack of their own.
const HOMINGS_PER_ACK: u64 = 256;

impl Backup {
    pub(super) fn take_commit(&mut self, epoch: Epoch, actions: &mut Actions) -> Result<(), Refusal> {
        self.check_next("Commit", epoch, |image| image.asked)?;
        if let Some(image) = &mut self.image {
            image.asked = epoch;
        }
        self.read_next_slot(actions);
        Ok(())
    }

    pub(super) fn take_epoch_fence(&mut self, marker: u64, actions: &mut Actions) -> Result<(), Refusal> {
        let epoch = Epoch(marker);
        self.check_next("marker", epoch, |image| image.fenced)?;
        if let Some(image) = &mut self.image {
            image.fenced = epoch;
        }
        self.read_next_slot(actions);
        Ok(())
    }

    /// Rule 8, and D: nothing but the next epoch, and not more ahead than was agreed.
    fn check_next(
        &self,
        what: &str,
        epoch: Epoch,
        before: impl Fn(&super::image::Image) -> Epoch,
    ) -> Result<(), Refusal> {
        let violation = |text: String| Err(Refusal::new(ErrorCode::Violation, text));
        let (Some(image), Some(session)) = (&self.image, &self.session) else {
            return violation(format!("{what} of epoch {epoch} without an image"));
        };
        let before = before(image);
        if epoch.0 != before.0 + 1 {
            return violation(format!("{what} of epoch {epoch} after epoch {before}"));
        }
        if epoch.0 > image.told.0 + session.depth {
            return violation(format!(
                "{what} of epoch {epoch} with epoch {} acked and a depth of {}",
                image.told, session.depth
            ));
        }
        let rounds = image.rounds;
        if image.invalidating || rounds.ended != rounds.acked || rounds.fenced != rounds.acked {
            return violation(format!("{what} of epoch {epoch} within a round or after Invalidate"));
        }
        Ok(())
    }

    fn read_next_slot(&mut self, actions: &mut Actions) {
        let Some(epoch) = self.image.as_mut().and_then(super::image::Image::begin_read) else { return };
        actions.push(BackupAction::ReadSlot { identity: self.identity(), epoch });
    }

    /// The slot asked for by [`BackupAction::ReadSlot`]: commits the epoch or ends the connection.
    /// An error is that of [`handle_message`](Self::handle_message). A slot of a connection that is
    /// gone is ignored.
    pub fn handle_slot(
        &mut self,
        slot: Result<SlotHeader, SlotError>,
        transfers: &[Transfer],
        now: Time,
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        let reading =
            self.image.as_mut().is_some_and(|image| std::mem::take(&mut image.reading) && !image.consumed);
        if !reading || !self.is_up() || self.takeover.is_some() {
            return Ok(());
        }
        let outcome = self.commit(slot, transfers, actions);
        self.give_up_on(&outcome, now, actions);
        self.refresh_state(actions);
        outcome
    }

    fn commit(
        &mut self,
        slot: Result<SlotHeader, SlotError>,
        transfers: &[Transfer],
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        let Some(image) = &mut self.image else { return Ok(()) };
        let next = image.committed.next();
        let slot = slot.map_err(|error| {
            let code = match error {
                SlotError::Malformed(_) => ErrorCode::Malformed,
                SlotError::Mismatch { .. } => ErrorCode::Stale,
            };
            Refusal::new(code, format!("epoch {next}: {error}"))
        })?;
        if slot.epoch != next || slot.transfers != transfers.len() as u64 {
            let text = format!("a slot of epoch {} for epoch {next}", slot.epoch);
            return Err(Refusal::new(ErrorCode::Violation, text));
        }
        // Only what has a state can be resumed.
        let whole = !image.copy_only || slot.state_bytes > 0;
        if image.whole && !whole {
            let text = format!("epoch {next} has no state, and the image was whole before it");
            return Err(Refusal::new(ErrorCode::Violation, text));
        }
        image
            .map
            .commit(transfers, image.committed == Epoch(0))
            .map_err(|violation| Refusal::new(ErrorCode::Violation, format!("epoch {next}: {violation}")))?;
        image.committed = next;
        image.whole = whole;
        let pages = transfers.iter().map(|transfer| transfer.pages).sum();
        actions.push(BackupAction::Report(BackupReport::Committed { epoch: next, pages }));
        self.known_solo = false;
        self.take_waiting_homings(actions)?;
        self.try_or_ack(actions);
        self.read_next_slot(actions);
        Ok(())
    }

    /// The first whole epoch of an image is loaded for trial; later ones, and the first after that,
    /// are acked, and so are the parts before it.
    fn try_or_ack(&mut self, actions: &mut Actions) {
        let Some(image) = &mut self.image else { return };
        match image.trial {
            Trial::Due if !image.whole => self.acknowledge(actions),
            Trial::Due => {
                image.trial = Trial::Running;
                actions.push(BackupAction::Trial { epoch: image.committed });
            }
            Trial::Running => {}
            Trial::Passed => self.acknowledge(actions),
        }
    }

    /// Rule 6: C is the state to resume (or a part of one to come), no homing up to h touches memory.
    fn acknowledge(&mut self, actions: &mut Actions) {
        let up = self.is_up() && self.takeover.is_none();
        let acked = |image: &&mut super::image::Image| image.is_resumable() || image.is_in_parts();
        let Some(image) = self.image.as_mut().filter(|image| up && acked(image)) else { return };
        image.told = image.committed;
        image.told_homed = image.map.homed_through();
        let (committed, homed_through) = (image.told, image.told_homed);
        let proof = AckProof::outgoing();
        self.send(Message::Ack { committed, homed_through, proof }, actions);
    }

    /// An Ack without a new epoch, when homings have got at least `worth` further.
    pub(super) fn acknowledge_homings(&mut self, worth: u64, actions: &mut Actions) {
        let Some(image) = &self.image else { return };
        let gone = image.map.homed_through().0 - image.told_homed.0;
        let idle = !image.map.copies_running() && !image.map.copies_waiting();
        if gone >= worth || (gone > 0 && idle) || gone >= HOMINGS_PER_ACK {
            self.acknowledge(actions);
        }
    }

    /// How the trial load ended.
    pub fn handle_trial(&mut self, outcome: Result<(), String>, now: Time, actions: &mut Actions) {
        let Some(image) = self.image.as_mut().filter(|image| image.trial == Trial::Running) else { return };
        match outcome {
            Ok(()) => {
                image.trial = Trial::Passed;
                self.because(format_args!("the guest's state loads here"));
                self.acknowledge(actions);
                self.wake_homing(actions);
            }
            Err(why) => {
                image.trial = Trial::Due;
                let text = format!("the standby could not load the guest's state: {why}");
                self.refuse(Refusal::new(ErrorCode::StandbyFailed, text), now, actions);
            }
        }
        self.finish_invalidate(now, actions);
        self.refresh_state(actions);
    }
}
