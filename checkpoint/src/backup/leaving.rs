//! Good-byes: the primary's, and the backup's own.

use crate::ids::Time;
use crate::wire::message::{ByeReason, ErrorCode, Message};

use super::{Actions, Backup, BackupAction, LinkPhase, Refusal, Standing};

impl Backup {
    pub(super) fn take_bye(&mut self, reason: ByeReason, actions: &mut Actions) -> Result<(), Refusal> {
        match reason {
            ByeReason::GuestEnded => {
                self.send(Message::ByeAck { reason }, actions);
                self.because(format_args!("the guest has ended"));
                self.end_session(actions);
                Ok(())
            }
            ByeReason::Detached => {
                self.send(Message::ByeAck { reason }, actions);
                self.because(format_args!("protection has ended; the guest runs at the primary"));
                self.drop_image(actions);
                Ok(())
            }
            ByeReason::Failover | ByeReason::GuestDied => {
                // Whatever was known of the record before: the swap will tell.
                if !self.has_image() {
                    return Err(Refusal::new(
                        ErrorCode::Violation,
                        "there is no epoch here to take over from",
                    ));
                }
                self.because(format_args!("the primary hands the guest over ({reason:?})"));
                self.begin_handover(reason, actions);
                Ok(())
            }
            ByeReason::BackupLeaves => {
                Err(Refusal::new(ErrorCode::Violation, "a primary is no backup that leaves"))
            }
        }
    }

    /// The guest must never be resumed.
    pub(super) fn end_session(&mut self, actions: &mut Actions) {
        if let Some(session) = &mut self.session {
            session.ended = true;
        }
        self.drop_image(actions);
    }

    fn drop_image(&mut self, actions: &mut Actions) {
        if let Some(image) = &mut self.image {
            image.consumed = true;
            image.quiescing = true;
            image.abandoned = true;
        }
        actions.push(BackupAction::Abandon);
        if self.link.phase == LinkPhase::Down {
            self.forget_abandoned();
        }
    }

    /// What was abandoned is gone with the connection on which the primary was told. That a
    /// session has ended stays known.
    pub(super) fn forget_abandoned(&mut self) {
        if self.image.as_ref().is_some_and(|image| image.abandoned) {
            self.image = None;
            self.session = self.session.take().filter(|session| session.ended);
        }
    }

    /// The image is lost, with the standby in whose memory it was. As if this backup had just been
    /// started: the primary is told, and goes on alone once the record says so. Call when no copy
    /// runs. False, and nothing is done, where a takeover is under way or the session is over: the
    /// standby is not to be touched then.
    pub fn image_lost(&mut self, why: &str, now: Time, actions: &mut Actions) -> bool {
        if self.standing != Standing::Backup || self.takeover.is_some() {
            return false;
        }
        if self.link.phase == LinkPhase::Down {
            self.because(format_args!("{why}"));
        } else {
            self.refuse(Refusal::new(ErrorCode::StandbyFailed, why), now, actions);
        }
        self.forget();
        self.refresh_state(actions);
        true
    }

    /// The operator ends this backup. A guest that runs here is not touched.
    pub fn request_stop(&mut self, now: Time, actions: &mut Actions) {
        if self.standing != Standing::Backup || self.takeover.is_some() {
            return;
        }
        self.because(format_args!("the operator ends this backup"));
        if self.link.phase == LinkPhase::Up {
            // The Bye is the promise not to take over from this image.
            self.send(Message::Bye { reason: ByeReason::BackupLeaves }, actions);
            self.standing = Standing::Leaving(now.after(self.config.suspect_after));
            if let Some(image) = &mut self.image {
                // Its heartbeats may still come under the incarnation before.
                let previous = image.previous;
                image.disconnected();
                image.previous = previous;
                image.consumed = true;
                image.quiescing = true;
            }
        } else {
            self.leave(now, actions);
        }
        self.refresh_state(actions);
    }

    pub(super) fn leave(&mut self, now: Time, actions: &mut Actions) {
        if self.standing == Standing::Left {
            return;
        }
        self.standing = Standing::Left;
        self.close(format_args!("this backup has left"), now, actions);
        self.forget();
        actions.push(BackupAction::Abandon);
        self.refresh_state(actions);
    }
}
