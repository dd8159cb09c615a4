//! Taking over: fence, grant, home what is displaced, activate (rule 10, I6, I9).
//!
//! On suspicion, or at the operator's wish, the fence comes first, then the swap. At the primary's
//! own wish (`Bye{Failover}`, `Bye{GuestDied}`) the connection is kept until the record is won, so
//! that the primary can be told; from the decision on nothing is committed or acked, and the
//! connection is fenced before the image is read.

use crate::arbiter::{Ownership, Record, SwapOutcome};
use crate::ids::{HomingSequence, Time};
use crate::nonce::pairing;
use crate::placement::committed::HomingCopy;
use crate::wire::message::{ByeReason, ErrorCode, Message};

use super::{Actions, Backup, BackupAction, LinkPhase, Refusal, Standing};

/// How often an idle backup looks at the record, in suspicion times.
const REREAD_SUSPICIONS: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Swap,
    Read,
}

/// A takeover under way.
#[derive(Debug)]
pub(super) struct Takeover {
    /// Who is told on the connection that is still there.
    bye: Option<ByeReason>,
    fence_asked: bool,
    fenced: bool,
    expected: Record,
    new: Record,
    asked: Asked,
    retry_at: Option<Time>,
    granted: bool,
    activating: bool,
}

impl Backup {
    /// The operator says: take over now (`force`: the primary is dead, whatever the record says
    /// under arbiter `none`; also while a connection is there).
    ///
    /// # Errors
    /// Says why there is nothing to take over.
    pub fn request_takeover(&mut self, force: bool, actions: &mut Actions) -> Result<(), String> {
        match self.standing {
            Standing::Active => return Err("the guest runs here already".to_owned()),
            Standing::Leaving(_) | Standing::Left => return Err("this backup is shutting down".to_owned()),
            Standing::Backup | Standing::OwnedNotActive => {}
        }
        if self.takeover.is_some() {
            return Err("a takeover is under way already".to_owned());
        }
        if self.standing == Standing::OwnedNotActive {
            self.because(format_args!("the operator asks to start the guest again"));
            self.start_takeover(None, true, actions);
            self.refresh_state(actions);
            return Ok(());
        }
        if !self.has_image() {
            return Err("there is no committed epoch here to resume".to_owned());
        }
        if self.link.phase != LinkPhase::Down && !force {
            return Err("the primary is connected: ask it for a planned failover, or force".to_owned());
        }
        self.because(format_args!("the operator asks to take over"));
        self.begin_takeover(actions);
        self.refresh_state(actions);
        Ok(())
    }

    /// Fences first.
    pub(super) fn begin_takeover(&mut self, actions: &mut Actions) {
        self.start_takeover(None, false, actions);
    }

    /// At the primary's wish, over a connection that is still there.
    pub(super) fn begin_handover(&mut self, bye: ByeReason, actions: &mut Actions) {
        self.start_takeover(Some(bye), false, actions);
        self.swap(actions);
    }

    fn start_takeover(&mut self, bye: Option<ByeReason>, granted: bool, actions: &mut Actions) {
        let Some(expected) = self.expected_record() else { return };
        let new = self.owned_after(&expected);
        self.takeover = Some(Takeover {
            bye,
            fence_asked: false,
            fenced: false,
            expected,
            new,
            asked: Asked::Nothing,
            retry_at: None,
            granted,
            activating: false,
        });
        self.reread_at = None;
        if let Some(image) = &mut self.image {
            image.disconnected();
            image.quiescing = true;
        }
        if bye.is_none() {
            self.fence(actions);
        }
    }

    /// The record that lets this image take over, in the generation that it probably has.
    fn expected_record(&self) -> Option<Record> {
        let (session, image) = (self.session.as_ref()?, self.image.as_ref()?);
        Some(Record {
            ownership: Ownership::Protected {
                primary: session.primary.clone(),
                backup: self.config.host.clone(),
            },
            generation: session.protected_generation,
            nonce: pairing(session.id, image.incarnation),
        })
    }

    fn owned_after(&mut self, expected: &Record) -> Record {
        let backup = self.config.host.clone();
        expected.successor(Ownership::Owned { backup }, self.nonces.draw())
    }

    /// Whether a record names the image held here, in whatever generation.
    fn names_image(&self, record: &Record) -> bool {
        let (Some(session), Some(image)) = (&self.session, &self.image) else { return false };
        let ours = matches!(&record.ownership, Ownership::Protected { primary, backup }
            if *primary == session.primary && *backup == self.config.host);
        ours && image.is_named_by(record.nonce, session.id)
    }

    fn fence(&mut self, actions: &mut Actions) {
        if let Some(takeover) = self.takeover.as_mut().filter(|takeover| !takeover.fence_asked) {
            takeover.fence_asked = true;
            takeover.bye = None;
            self.link.phase = LinkPhase::Down;
            actions.push(BackupAction::Fence);
        }
    }

    /// The fence asked for stands.
    pub fn handle_fenced(&mut self, actions: &mut Actions) {
        let Some(takeover) = self.takeover.as_mut().filter(|takeover| takeover.fence_asked) else { return };
        takeover.fenced = true;
        self.link.phase = LinkPhase::Down;
        self.advance(actions);
    }

    /// The primary's connection ended before the record was won.
    pub(super) fn link_lost_in_takeover(&mut self, actions: &mut Actions) {
        self.fence(actions);
    }

    fn swap(&mut self, actions: &mut Actions) {
        if let Some(takeover) = self.takeover.as_mut().filter(|takeover| takeover.asked == Asked::Nothing) {
            takeover.asked = Asked::Swap;
            takeover.retry_at = None;
            actions.push(BackupAction::Swap {
                expected: Some(takeover.expected.clone()),
                new: takeover.new.clone(),
            });
        }
    }

    /// How a swap ended.
    pub fn handle_swap(&mut self, new: &Record, outcome: SwapOutcome, now: Time, actions: &mut Actions) {
        let retry_at = now.after(self.config.heartbeat_every);
        let Some(takeover) =
            self.takeover.as_mut().filter(|takeover| takeover.asked == Asked::Swap && takeover.new == *new)
        else {
            return;
        };
        takeover.asked = Asked::Nothing;
        match outcome {
            SwapOutcome::Won => self.granted(actions),
            SwapOutcome::Lost(actual) => self.record_found(actual, now, actions),
            SwapOutcome::Unknown(why) => {
                takeover.retry_at = Some(retry_at);
                self.because(format_args!("the arbiter's answer is not known: {why}"));
            }
        }
        self.refresh_state(actions);
    }

    /// What a read of the record gave.
    pub fn handle_record(
        &mut self,
        record: Result<Option<Record>, String>,
        now: Time,
        actions: &mut Actions,
    ) {
        let retry_at = now.after(self.config.heartbeat_every);
        match self.takeover.as_mut().filter(|takeover| takeover.asked == Asked::Read) {
            Some(takeover) => {
                takeover.asked = Asked::Nothing;
                match record {
                    Err(_) => takeover.retry_at = Some(retry_at),
                    Ok(actual) => self.record_found(actual, now, actions),
                }
            }
            None if std::mem::take(&mut self.rereading) => self.record_reread(record, now, actions),
            None => {}
        }
        self.refresh_state(actions);
    }

    /// The arbiter's record is known while a grant is sought.
    fn record_found(&mut self, actual: Option<Record>, now: Time, actions: &mut Actions) {
        let Some(takeover) = &self.takeover else { return };
        match actual {
            // A swap of unknown outcome has happened after all.
            Some(record) if record == takeover.new => self.granted(actions),
            Some(record) if self.names_image(&record) => {
                if self.takeover.as_ref().is_some_and(|takeover| takeover.expected != record) {
                    let new = self.owned_after(&record);
                    if let Some(takeover) = &mut self.takeover {
                        takeover.new = new;
                        takeover.expected = record;
                    }
                }
                self.swap(actions);
            }
            actual => self.not_granted(actual.as_ref(), now, actions),
        }
    }

    fn granted(&mut self, actions: &mut Actions) {
        let Some(takeover) = &mut self.takeover else { return };
        takeover.granted = true;
        let bye = takeover.bye.take();
        self.standing = Standing::OwnedNotActive;
        if let Some(reason) = bye {
            // The primary's word that its guest is gone from there.
            self.send(Message::ByeAck { reason }, actions);
        }
        self.fence(actions);
        self.advance(actions);
    }

    fn not_granted(&mut self, actual: Option<&Record>, now: Time, actions: &mut Actions) {
        let why = actual.map_or("the arbiter has no record of the guest".to_owned(), Record::describe);
        let told = self.takeover.take().is_some_and(|takeover| takeover.bye.is_some());
        self.known_solo = true;
        if let Some(image) = &mut self.image {
            image.quiescing = false;
        }
        if matches!(actual, Some(record) if record.ownership == Ownership::Ended) {
            self.end_session(actions);
        }
        if told {
            self.refuse(Refusal::new(ErrorCode::NotGranted, why), now, actions);
        } else {
            self.because(format_args!("not granted: {why}"));
        }
        self.reread_at = Some(now.after(self.config.suspect_after * REREAD_SUSPICIONS));
    }

    /// Goes on when fence and grant stand.
    fn advance(&mut self, actions: &mut Actions) {
        let Some(takeover) = &mut self.takeover else { return };
        if !takeover.granted {
            if takeover.fenced {
                self.swap(actions);
            }
            return;
        }
        if !takeover.fenced || takeover.activating {
            return;
        }
        takeover.activating = true;
        let Some(image) = &mut self.image else { return };
        image.consumed = true;
        let displaced = image.map.displaced().into_iter().map(|(page, source)| HomingCopy {
            sequence: HomingSequence(0),
            page,
            source,
            target: crate::FrameIndex(page.0),
        });
        let displaced = displaced.collect();
        actions.push(BackupAction::TakeOver { epoch: image.committed, displaced });
    }

    /// How the activation ended.
    pub fn handle_activated(&mut self, outcome: Result<(), String>, actions: &mut Actions) {
        if self.takeover.take_if(|takeover| takeover.activating).is_none() {
            return;
        }
        match outcome {
            Ok(()) => {
                self.standing = Standing::Active;
                self.because(format_args!("the guest runs here from epoch {}", self.committed()));
            }
            Err(why) => self.because(format_args!("the guest could not be started here: {why}")),
        }
        self.refresh_state(actions);
    }

    pub(super) fn takeover_tick(&mut self, now: Time, actions: &mut Actions) {
        if let Some(takeover) = &mut self.takeover {
            if takeover.asked == Asked::Nothing && takeover.retry_at.is_some_and(|at| at <= now) {
                takeover.asked = Asked::Read;
                takeover.retry_at = None;
                actions.push(BackupAction::ReadRecord);
            }
        } else if self.reread_at.is_some_and(|at| at <= now) {
            self.reread_at = None;
            if self.is_idle() {
                self.rereading = true;
                actions.push(BackupAction::ReadRecord);
            }
        }
    }

    pub(super) fn takeover_due(&self) -> Option<Time> {
        match &self.takeover {
            Some(takeover) => takeover.retry_at,
            None => self.reread_at,
        }
    }

    /// Whether there is a good image, nobody connected, and the record said otherwise.
    fn is_idle(&self) -> bool {
        self.known_solo
            && self.link.phase == LinkPhase::Down
            && self.takeover.is_none()
            && self.standing == Standing::Backup
            && self.config.takeover_automatic
            && self.config.shared_arbiter
            && self.has_image()
    }

    /// An idle backup has looked at the record: a guard hands it back when its guest has died and
    /// nothing was released.
    fn record_reread(&mut self, record: Result<Option<Record>, String>, now: Time, actions: &mut Actions) {
        if !self.is_idle() {
            return;
        }
        match record {
            Ok(Some(record)) if self.names_image(&record) => {
                self.known_solo = false;
                self.because(format_args!("the record was handed back: {}", record.describe()));
                self.begin_takeover(actions);
            }
            Ok(Some(record)) if record.ownership == Ownership::Ended => self.end_session(actions),
            _ => self.reread_at = Some(now.after(self.config.suspect_after * REREAD_SUSPICIONS)),
        }
    }
}
