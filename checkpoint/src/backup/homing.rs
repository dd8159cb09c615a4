//! Homings, and the end of an image at the primary's wish.

use crate::ids::{Epoch, HomingSequence, Time};
use crate::placement::committed::HomingCopy;
use crate::wire::message::{ErrorCode, Homing, Message};

use super::image::{Trial, WaitingHoming};
use super::{Actions, Backup, BackupAction, Refusal};

impl Backup {
    pub(super) fn take_home(
        &mut self,
        first_sequence: HomingSequence,
        homings: &[Homing],
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        let spares = self.session.as_ref().map_or(0, |session| session.shape.spares);
        let Some(image) = self.image.as_mut().filter(|image| image.asked > Epoch(0) && !image.invalidating)
        else {
            let text = "Home before the first Commit of an image or after Invalidate";
            return Err(Refusal::new(ErrorCode::Violation, text));
        };
        // A homing depends on the epochs whose Commit came before it: until they are in the map,
        // it would be taken for one that they have superseded.
        if image.asked > image.committed || !image.waiting.is_empty() {
            let room = spares.saturating_sub(image.waiting.len() as u64);
            if homings.len() as u64 > room {
                return Err(Refusal::new(ErrorCode::Violation, "more homings than spare frames"));
            }
            let after = image.asked;
            for (offset, homing) in homings.iter().enumerate() {
                let sequence = HomingSequence(first_sequence.0.saturating_add(offset as u64));
                image.waiting.push_back(WaitingHoming { after, sequence, homing: *homing });
            }
            return Ok(());
        }
        image.map.take_homings(first_sequence, homings).map_err(violation)?;
        self.wake_homing(actions);
        Ok(())
    }

    /// Takes the homings whose epochs are committed now.
    pub(super) fn take_waiting_homings(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        let Some(image) = &mut self.image else { return Ok(()) };
        let mut taken = false;
        while let Some(next) = image.waiting.front().copied().filter(|next| next.after <= image.committed) {
            image.waiting.pop_front();
            image.map.take_homings(next.sequence, &[next.homing]).map_err(violation)?;
            taken = true;
        }
        if taken {
            self.wake_homing(actions);
        }
        Ok(())
    }

    pub(super) fn wake_homing(&mut self, actions: &mut Actions) {
        let due = self.image.as_ref().is_some_and(|image| image.may_home() && image.map.copies_waiting());
        if due {
            actions.push(BackupAction::WakeHoming);
        } else {
            self.acknowledge_homings(1, actions);
        }
    }

    /// The next copy for the homing thread.
    pub fn next_homing(&mut self) -> Option<HomingCopy> {
        let copy = self.image.as_mut().filter(|image| image.may_home())?.map.next_copy()?;
        self.copying += 1;
        Some(copy)
    }

    /// A copy is finished; once for each.
    pub fn homing_finished(&mut self, copy: &HomingCopy, now: Time, actions: &mut Actions) {
        self.copying = self.copying.saturating_sub(1);
        if let Some(image) = &mut self.image {
            image.map.copy_finished(copy.sequence);
            self.acknowledge_homings(u64::MAX, actions);
            self.finish_invalidate(now, actions);
            self.refresh_state(actions);
        }
    }

    /// No homing copy runs and none will start before [`welcome`](Self::welcome). False while
    /// one still runs, be it of an image that is forgotten: call again after it has finished.
    pub fn quiesce_homing(&mut self) -> bool {
        if let Some(image) = &mut self.image {
            image.quiescing = true;
        }
        self.copying == 0
    }

    /// From now on the image is no state to resume; the promise follows when nothing touches it.
    pub(super) fn take_invalidate(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        let Some(image) = &mut self.image else {
            return Err(Refusal::new(ErrorCode::Violation, "Invalidate without an image"));
        };
        // Elsewhere the first epoch fits whatever it has, since all homes are free. With copy-only
        // homes it may not, and comes without parts before it where all pages were zero.
        if image.invalidating || (image.asked == Epoch(0) && !image.copy_only) {
            let text = "Invalidate before the first Commit of an image or after another Invalidate";
            return Err(Refusal::new(ErrorCode::Violation, text));
        }
        if image.asked != image.committed || image.fenced != image.committed {
            return Err(Refusal::new(
                ErrorCode::Violation,
                format!(
                    "Invalidate with epoch {} committed, {} asked for and {} fenced",
                    image.committed, image.asked, image.fenced
                ),
            ));
        }
        image.invalidating = true;
        image.quiescing = true;
        self.because(format_args!("the primary gives the image up"));
        self.try_finish_invalidate(actions)
    }

    pub(super) fn finish_invalidate(&mut self, now: Time, actions: &mut Actions) {
        if let Err(refusal) = self.try_finish_invalidate(actions) {
            self.refuse(refusal, now, actions);
        }
    }

    fn try_finish_invalidate(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        let up = self.is_up();
        let (Some(image), Some(session)) = (&mut self.image, &self.session) else { return Ok(()) };
        let still = !image.map.copies_running() && image.trial != Trial::Running;
        if !image.invalidating || !still || !up {
            return Ok(());
        }
        let Some(incarnation) = image.next_incarnation(session.connection) else {
            return Err(Refusal::new(ErrorCode::Busy, "too many images on one connection; connect anew"));
        };
        let previous = image.incarnation;
        self.send(Message::Invalidated { incarnation }, actions);
        if let Some(image) = &mut self.image {
            image.restart(incarnation);
            image.previous = Some(previous);
        }
        Ok(())
    }
}

fn violation(violation: crate::placement::committed::PlacementViolation) -> Refusal {
    Refusal::new(ErrorCode::Violation, violation.to_string())
}
