//! What the backup says on the endpoint.

use arrayvec::ArrayVec;

use crate::ids::{Epoch, HomingSequence, Incarnation, Time};
use crate::wire::AckProof;
use crate::wire::message::{ByeReason, ErrorCode, Message, decode, is_error};

use super::image::{Phase, RoundStep, Rounds};
use super::{Actions, PeerFault, Primary, PrimaryAction, PrimaryReport};

impl Primary {
    /// A message on the endpoint. After an error the driver carries out the actions, among which is the
    /// answer to the peer, then closes the endpoint and calls
    /// [`handle_disconnected`](Self::handle_disconnected); the machine has given the connection
    /// up already. Messages of a connection that is gone are ignored.
    pub fn handle_message(
        &mut self,
        bytes: &[u8],
        now: Time,
        actions: &mut Actions,
    ) -> Result<(), PeerFault> {
        if !self.link.is_up() {
            return Ok(());
        }
        let outcome = self.read_message(bytes, now, actions);
        if let Err(fault) = &outcome {
            if let PeerFault { code: Some(code), text } = fault {
                self.send(Message::Error { code: *code, text: text.clone() }, actions);
            }
            self.drop_link(now);
            self.because(format_args!("{fault}"));
        }
        self.settle(now, actions);
        outcome
    }

    fn read_message(&mut self, bytes: &[u8], now: Time, actions: &mut Actions) -> Result<(), PeerFault> {
        let (identity, message) = decode(bytes).map_err(|error| match is_error(bytes) {
            true => PeerFault::said_by_peer(format!("the backup gives up: {error}")),
            false => error.into(),
        })?;
        let expected = self.identity();
        if identity != expected {
            // The peer's own Error is none of ours to answer, whatever it is under.
            let is_error = matches!(message, Message::Error { .. });
            let code = (!is_error).then_some(ErrorCode::Stale);
            return Err(PeerFault { code, text: format!("message of {identity}; expected {expected}") });
        }
        self.link.last_heard = now;
        match message {
            Message::Heartbeat { .. } => Ok(()),
            Message::Ack { committed, homed_through, proof } => {
                self.take_ack(committed, homed_through, &proof, now, actions)
            }
            Message::RoundAck { round } => self.take_round_ack(round),
            Message::Invalidated { incarnation } => self.take_promise(incarnation),
            Message::Bye { reason: ByeReason::BackupLeaves } => {
                self.send(Message::ByeAck { reason: ByeReason::BackupLeaves }, actions);
                self.take_word();
                self.close(format_args!("the backup {} has left", self.backup.clone()), now, actions);
                Ok(())
            }
            Message::ByeAck { reason } => self.take_bye_ack(reason, now, actions),
            Message::Error { code, text } => {
                self.refused(now);
                let fault = PeerFault::said_by_peer(format!("the backup gives up: {text} ({code:?})"));
                actions.push(PrimaryAction::Report(PrimaryReport::Refused { code, text }));
                Err(fault)
            }
            other => Err(PeerFault::violation(format!("a backup does not send {}", name(&other)))),
        }
    }

    fn take_ack(
        &mut self,
        committed: Epoch,
        homed_through: HomingSequence,
        proof: &AckProof,
        now: Time,
        actions: &mut Actions,
    ) -> Result<(), PeerFault> {
        let image = &mut self.image;
        let in_parts = self.shape.copy_only_homes && matches!(image.phase, Phase::Rounds(_));
        let live = in_parts || matches!(image.phase, Phase::Epochs | Phase::Draining | Phase::Invalidating);
        let begun = committed > Epoch(0);
        if !live || !begun || !image.planner.may_stand_at(committed, homed_through) {
            return Err(PeerFault::violation(format!(
                "Ack of epoch {committed} and homing {homed_through}, with epoch {} acked, {} committed and \
                 homing {} done",
                image.acked, image.commit_sent, image.homed_through
            )));
        }
        image.planner.acked(committed, homed_through);
        image.acked = committed;
        image.homed_through = homed_through;
        image.stalled_until = None;
        let mut through = None;
        while let Some(flight) = image.flights.front().copied().filter(|flight| flight.epoch <= committed) {
            image.flights.pop_front();
            if flight.mark.is_none() {
                continue;
            }
            through = flight.mark;
            let commit_latency = now.since(flight.paused_at);
            image.settling.acked(commit_latency, self.config.interval);
            actions.push(PrimaryAction::Report(PrimaryReport::Acked { epoch: flight.epoch, commit_latency }));
        }
        if let Some(mark) = through {
            self.image.owed = Some((mark, *proof));
        }
        self.last_epoch_acked();
        self.parts_acked();
        self.ask_homings(actions);
        Ok(())
    }

    /// Asks for what homings are due (rule 4).
    pub(super) fn ask_homings(&mut self, actions: &mut Actions) {
        let in_parts =
            matches!(self.image.phase, Phase::Rounds(Rounds { step: RoundStep::Parts { .. }, .. }));
        if !self.link.is_up() || !(in_parts || self.image.phase == Phase::Epochs) {
            return;
        }
        loop {
            let mut homings = ArrayVec::new();
            let Some(first_sequence) = self.image.planner.next_homings(&mut homings) else { return };
            self.send(Message::Home { first_sequence, homings }, actions);
        }
    }

    fn take_round_ack(&mut self, round: u64) -> Result<(), PeerFault> {
        match &mut self.image.phase {
            Phase::Rounds(rounds) if rounds.step == RoundStep::Posted && rounds.round == round => {
                self.round_done();
                Ok(())
            }
            phase => Err(PeerFault::violation(format!("RoundAck of round {round} in {phase:?}"))),
        }
    }

    /// All pages of the present round are at the backup: the next round, or the first checkpoint.
    pub(super) fn round_done(&mut self) {
        let Phase::Rounds(rounds) = &mut self.image.phase else { return };
        let done =
            rounds.pages <= self.config.sync_target_pages || rounds.round >= self.config.sync_max_rounds;
        rounds.step = RoundStep::Idle;
        if done {
            self.image.phase = Phase::Epochs;
        }
    }

    /// The backup's word that it has no image to take over from.
    pub(super) fn take_word(&mut self) {
        self.promised = self.grant.is_protected();
        self.at_large = false;
    }

    /// The backup forgot its image and will not take over from it.
    fn take_promise(&mut self, incarnation: Incarnation) -> Result<(), PeerFault> {
        if self.image.phase != Phase::Invalidating || incarnation <= self.image.incarnation {
            return Err(PeerFault::violation(format!(
                "Invalidated to incarnation {incarnation}, with incarnation {} in {:?}",
                self.image.incarnation, self.image.phase
            )));
        }
        self.take_word();
        self.image.restart_promised(incarnation);
        debug_assert_eq!(self.image.phase, Phase::Rounds(Rounds::default()));
        Ok(())
    }
}

fn name(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "Hello",
        Message::Welcome(_) => "Welcome",
        Message::RoundEnd { .. } => "RoundEnd",
        Message::RoundAck { .. } => "RoundAck",
        Message::Commit { .. } => "Commit",
        Message::Ack { .. } => "Ack",
        Message::Home { .. } => "Home",
        Message::Invalidate => "Invalidate",
        Message::Invalidated { .. } => "Invalidated",
        Message::Heartbeat { .. } => "Heartbeat",
        Message::Bye { .. } => "that Bye",
        Message::ByeAck { .. } => "ByeAck",
        Message::Error { .. } => "Error",
    }
}
