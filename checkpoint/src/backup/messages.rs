//! What the primary says on the endpoint.

use crate::ids::{Identity, Time};
use crate::wire::message::{ByeReason, ErrorCode, Message, ROUND_MARKER, decode, is_error};

use super::{Actions, Backup, BackupAction, Refusal, Standing};

impl Backup {
    /// A message on the endpoint. After an error the actions answer the peer and close; the machine has
    /// given the connection up already. Messages of a connection that is gone are ignored.
    pub fn handle_message(&mut self, bytes: &[u8], now: Time, actions: &mut Actions) -> Result<(), Refusal> {
        if !self.is_up() {
            return Ok(());
        }
        let outcome = self.read_message(bytes, now, actions);
        self.give_up_on(&outcome, now, actions);
        self.refresh_state(actions);
        outcome
    }

    /// Refuses what broke the rules.
    pub(super) fn give_up_on(&mut self, outcome: &Result<(), Refusal>, now: Time, actions: &mut Actions) {
        if let Err(refusal) = outcome {
            self.refuse(refusal.clone(), now, actions);
        }
    }

    fn read_message(&mut self, bytes: &[u8], now: Time, actions: &mut Actions) -> Result<(), Refusal> {
        let (identity, message) = match decode(bytes) {
            // Whatever it is under: an Error is never answered.
            Ok((_, Message::Error { code, text })) => {
                self.close(format_args!("the primary gives up: {text} ({code:?})"), now, actions);
                return Ok(());
            }
            Err(error) if is_error(bytes) => {
                self.close(format_args!("the primary gives up: {error}"), now, actions);
                return Ok(());
            }
            Err(error) => return Err(Refusal::new(error.code(), error.to_string())),
            Ok(decoded) => decoded,
        };
        self.check_identity(&identity, &message)?;
        self.link.last_heard = now;
        let leaves = ByeReason::BackupLeaves;
        let leaving =
            matches!(self.standing, Standing::Leaving(_)) && message != Message::ByeAck { reason: leaves };
        if self.takeover.is_some() || leaving {
            // Nothing of this primary is taken any more; it was sent before it knew.
            return Ok(());
        }
        match message {
            Message::Heartbeat { .. } => Ok(()),
            Message::RoundEnd { round } => self.take_round_end(round, actions),
            Message::Commit { epoch } => self.take_commit(epoch, actions),
            Message::Home { first_sequence, homings } => self.take_home(first_sequence, &homings, actions),
            Message::Invalidate => self.take_invalidate(actions),
            Message::Bye { reason } => self.take_bye(reason, actions),
            Message::ByeAck { reason: ByeReason::BackupLeaves }
                if matches!(self.standing, Standing::Leaving(_)) =>
            {
                self.leave(now, actions);
                Ok(())
            }
            Message::Error { .. }
            | Message::Hello(_)
            | Message::Welcome(_)
            | Message::RoundAck { .. }
            | Message::Ack { .. }
            | Message::Invalidated { .. }
            | Message::ByeAck { .. } => {
                Err(Refusal::new(ErrorCode::Violation, "a message that a primary does not send here"))
            }
        }
    }

    fn check_identity(&self, found: &Identity, message: &Message) -> Result<(), Refusal> {
        let expected = self.identity();
        if *found == expected {
            return Ok(());
        }
        // Sent before the primary learned of the new incarnation.
        let previous = self.image.as_ref().and_then(|image| image.previous);
        let late = Identity { incarnation: expected.incarnation, ..*found } == expected
            && previous == Some(found.incarnation)
            && matches!(message, Message::Heartbeat { .. } | Message::Bye { .. });
        if late {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::Stale, format!("message of {found}; expected {expected}")))
    }

    /// The markers of all data streams are in.
    pub fn handle_fence(&mut self, marker: u64, now: Time, actions: &mut Actions) {
        let leaving = matches!(self.standing, Standing::Leaving(_));
        if !self.is_up() || self.takeover.is_some() || leaving {
            return;
        }
        self.link.last_heard = now;
        let outcome = if marker & ROUND_MARKER != 0 {
            self.take_round_fence(marker & !ROUND_MARKER, actions)
        } else {
            self.take_epoch_fence(marker, actions)
        };
        if let Err(refusal) = outcome {
            self.refuse(refusal, now, actions);
        }
        self.refresh_state(actions);
    }

    fn take_round_end(&mut self, round: u64, actions: &mut Actions) -> Result<(), Refusal> {
        let Some(image) = self.image.as_mut().filter(|image| image.takes_rounds()) else {
            return Err(Refusal::new(ErrorCode::Violation, format!("round {round} over a live image")));
        };
        if round != image.rounds.ended + 1 || image.rounds.ended != image.rounds.acked {
            return Err(Refusal::new(
                ErrorCode::Violation,
                format!("the end of round {round} after round {}", image.rounds.ended),
            ));
        }
        image.rounds.ended = round;
        self.acknowledge_round(actions);
        Ok(())
    }

    fn take_round_fence(&mut self, round: u64, actions: &mut Actions) -> Result<(), Refusal> {
        let Some(image) = self.image.as_mut().filter(|image| image.takes_rounds()) else {
            return Err(Refusal::new(
                ErrorCode::Violation,
                format!("a marker of round {round} over a live image"),
            ));
        };
        if round != image.rounds.fenced + 1 || image.rounds.fenced != image.rounds.acked {
            return Err(Refusal::new(
                ErrorCode::Violation,
                format!("the marker of round {round} after round {}", image.rounds.fenced),
            ));
        }
        image.rounds.fenced = round;
        self.acknowledge_round(actions);
        Ok(())
    }

    fn acknowledge_round(&mut self, actions: &mut Actions) {
        let Some(image) = &mut self.image else { return };
        let round = image.rounds.ended.min(image.rounds.fenced);
        if round > image.rounds.acked {
            image.rounds.acked = round;
            actions.push(BackupAction::Send(self.identity(), Message::RoundAck { round }));
        }
    }
}
