//! The ends of protection: planned failover, the guest's end or death, detaching.

use crate::arbiter::Ownership;
use crate::ids::{Epoch, Time};
use crate::wire::message::{ByeReason, Message};

use super::image::Phase;
use super::{Actions, PeerFault, Primary, PrimaryAction, PrimaryState};

/// What protection is coming to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The guest is to run on at the backup; paused here once the last epoch is placed.
    Failover,
    /// It powered off: its end is an epoch, and then a record.
    GuestEnded,
    /// Its process died: the backup is to take over.
    GuestDied,
    /// The operator ends protection; the guest goes on here.
    Detach,
}

/// The last checkpoint's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Wanted,
    Placed(Epoch),
    Acked,
    /// There will be none, or none is needed.
    None,
}

/// An end under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) kind: Kind,
    pub(super) last: Last,
    /// When the Bye was sent on the present connection.
    pub(super) told_at: Option<Time>,
    /// When to swap the record of a failover back.
    pub(super) reclaim_at: Option<Time>,
}

impl Ending {
    fn new(kind: Kind, last: Last) -> Self {
        Self { kind, last, told_at: None, reclaim_at: None }
    }

    fn bye(&self) -> ByeReason {
        match self.kind {
            Kind::Failover => ByeReason::Failover,
            Kind::GuestEnded => ByeReason::GuestEnded,
            Kind::GuestDied => ByeReason::GuestDied,
            Kind::Detach => ByeReason::Detached,
        }
    }
}

/// A guest that the last checkpoint of a planned failover left paused.
#[derive(Clone, Copy, Debug)]
pub(super) struct PausedGuest {
    /// The last epoch: while it is read from the guest's memory the guest stays paused.
    pub(super) epoch: Epoch,
    /// `Bye{Failover}` was sent: only the record, or the backup's word, says who runs it.
    pub(super) told: bool,
}

impl Primary {
    /// The operator wants the guest at the backup.
    ///
    /// # Errors
    /// Says why not: only a guest that is protected over a living connection can be moved.
    pub fn request_failover(&mut self, now: Time, actions: &mut Actions) -> Result<(), String> {
        if self.ending.is_some() || self.over.is_some() {
            return Err("protection is ending already".to_owned());
        }
        if self.state != PrimaryState::Protected || !self.link.is_up() || !self.grant.is_known() {
            return Err(format!("a connected backup must protect the guest; it is {:?}", self.state));
        }
        self.ending = Some(Ending::new(Kind::Failover, Last::Wanted));
        self.because(format_args!("planned failover to {}", self.backup.clone()));
        self.settle(now, actions);
        Ok(())
    }

    /// The operator ends protection: the guest goes on here alone. A planned failover under way
    /// is taken back, if the record still allows it.
    ///
    /// Where nobody arbitrates and the backup may take over by itself, a connected backup is told
    /// first, and output stays held until it has understood. Asked for without a connection, it is
    /// the operator's word that the backup does not run the guest.
    pub fn request_stop(&mut self, now: Time, actions: &mut Actions) {
        match self.ending.map(|ending| ending.kind) {
            Some(Kind::Detach | Kind::GuestEnded) => self.at_large &= self.link.is_up(),
            Some(Kind::GuestDied) => {
                self.finish(format_args!("stopped; the guest's process has died"), now, actions);
            }
            Some(Kind::Failover) | None => {
                self.ending = Some(Ending::new(Kind::Detach, Last::None));
                self.at_large &= self.link.is_up();
                self.because(format_args!("the operator ends protection"));
            }
        }
        self.settle(now, actions);
    }

    /// The guest has powered off ([`ByeReason::GuestEnded`]) or its process died.
    pub fn guest_gone(&mut self, reason: ByeReason, now: Time, actions: &mut Actions) {
        let known = self.ending.map(|ending| ending.kind);
        if self.over.is_some() || matches!(known, Some(Kind::GuestDied | Kind::GuestEnded)) {
            return;
        }
        self.paused_guest = None;
        if reason == ByeReason::GuestEnded {
            let protected =
                self.link.is_up() && self.image.phase == Phase::Epochs && self.grant.is_protected();
            let last = if protected { Last::Wanted } else { Last::None };
            self.ending = Some(Ending::new(Kind::GuestEnded, last));
            self.because(format_args!("the guest has powered off"));
        } else {
            self.ending = Some(Ending::new(Kind::GuestDied, Last::None));
            self.because(format_args!("the guest's process has died"));
        }
        self.settle(now, actions);
    }

    /// The machine has ended with a guest whose process died while the record said that this host
    /// ran it alone: no backup goes on with it.
    pub fn guest_died_unprotected(&self) -> bool {
        let died = self.ending.is_some_and(|ending| ending.kind == Kind::GuestDied);
        let ended = self.over == Some(PrimaryState::Ended);
        died && ended && self.grant.solo(&self.config.host).is_some()
    }

    /// Whether the next checkpoint, if any, is the last; `None`: none any more.
    pub(super) fn next_is_last(&self) -> Option<bool> {
        match &self.ending {
            None => Some(false),
            Some(ending) => (ending.last == Last::Wanted).then_some(true),
        }
    }

    /// A connection has ended.
    pub(super) fn ending_disconnected(&mut self, now: Time) {
        let Some(ending) = &mut self.ending else { return };
        let told = ending.told_at.take().is_some();
        match ending.kind {
            Kind::Failover if told => {
                ending.reclaim_at.get_or_insert(now.after(self.config.suspect_after));
            }
            // Without the Bye nothing has happened; a paused guest is let go on by `settle`.
            Kind::Failover if self.paused_guest.is_none_or(|paused| !paused.told) => self.ending = None,
            Kind::GuestEnded if ending.last != Last::Acked => ending.last = Last::None,
            _ => {}
        }
    }

    /// Tells a connected backup what the end asks of it, once on each connection.
    pub(super) fn tell_ending(&mut self, now: Time, actions: &mut Actions) {
        let free = self.gate.is_open() || self.at_large;
        let solo = self.grant.solo(&self.config.host).is_some() && free;
        let ended = self.record_ended();
        let live = matches!(self.image.phase, Phase::Epochs | Phase::Draining);
        let protected = self.grant.is_protected() && !self.is_unbacked() && live;
        let Some(ending) = self.ending.as_mut().filter(|ending| ending.told_at.is_none()) else { return };
        let due = match ending.kind {
            Kind::Failover => ending.last == Last::Acked && protected,
            Kind::GuestEnded => ending.last == Last::Acked || ended,
            Kind::GuestDied => protected,
            Kind::Detach => solo,
        };
        if !due || !self.link.is_up() {
            return;
        }
        ending.told_at = Some(now);
        let reason = ending.bye();
        if let Some(paused) = self.paused_guest.as_mut().filter(|_| reason == ByeReason::Failover) {
            paused.told = true;
        }
        self.send(Message::Bye { reason }, actions);
    }

    pub(super) fn record_ended(&self) -> bool {
        self.grant.is_known() && self.grant.record().ownership == Ownership::Ended
    }

    /// The last checkpoint was placed: a guest that is to run elsewhere stays paused.
    pub(super) fn last_epoch_placed(&mut self, epoch: Epoch) {
        if let Some(ending) = &mut self.ending {
            ending.last = Last::Placed(epoch);
            if ending.kind == Kind::Failover {
                self.paused_guest = Some(PausedGuest { epoch, told: false });
            }
        }
    }

    /// Looks whether the last epoch is among those acked.
    pub(super) fn last_epoch_acked(&mut self) {
        let acked = self.image.acked;
        if let Some(ending) = &mut self.ending
            && matches!(ending.last, Last::Placed(epoch) if epoch <= acked)
        {
            ending.last = Last::Acked;
        }
    }

    /// The last epoch will not come about: a failover is off, and a guest's end goes without.
    pub(super) fn last_epoch_failed(&mut self) {
        match &mut self.ending {
            Some(ending) if ending.kind == Kind::Failover => self.ending = None,
            Some(ending) => ending.last = Last::None,
            None => {}
        }
    }

    /// The backup says that what was asked of it will not happen by its own doing.
    pub(super) fn refused(&mut self, now: Time) {
        if let Some(ending) = self.ending.as_mut().filter(|ending| ending.kind == Kind::Failover) {
            ending.reclaim_at = Some(now);
            // Without a shared record its word is all there is.
            self.promised |= !self.config.shared_arbiter;
        }
    }

    pub(super) fn take_bye_ack(
        &mut self,
        reason: ByeReason,
        now: Time,
        actions: &mut Actions,
    ) -> Result<(), PeerFault> {
        let told = self.ending.filter(|ending| ending.told_at.is_some()).map(|ending| ending.bye());
        let failover = self.paused_guest.is_some_and(|paused| paused.told);
        match reason {
            // Said only by a backup that has won the record; also after the operator thought
            // better of it.
            ByeReason::Failover | ByeReason::GuestDied if told == Some(reason) || failover => {
                self.lost(format_args!("{} has taken the guest over", self.backup.clone()), now, actions);
                Ok(())
            }
            // A failover that was called off after the Bye: the record tells whether it was in time.
            ByeReason::Failover | ByeReason::GuestDied if self.config.shared_arbiter => {
                self.close(format_args!("the backup says that it has taken over"), now, actions);
                self.grant.ask_read(actions);
                Ok(())
            }
            _ if told == Some(reason) => {
                self.at_large = false;
                self.close(format_args!("the backup was told"), now, actions);
                Ok(())
            }
            _ => Err(PeerFault::violation(format!("ByeAck of {reason:?} in {:?}", self.ending))),
        }
    }

    /// A guest paused for a failover that is off runs on here.
    pub(super) fn resume_paused(&mut self, actions: &mut Actions) {
        let Some(paused) = self.paused_guest else { return };
        let leaving = self.ending.is_some_and(|ending| ending.kind == Kind::Failover);
        let here = if paused.told {
            self.grant.solo(&self.config.host).is_some()
        } else {
            !leaving && (!self.link.is_up() || paused.epoch <= self.image.acked)
        };
        if here {
            self.paused_guest = None;
            if leaving {
                self.ending = None;
            }
            actions.push(PrimaryAction::ResumeGuest);
        }
    }

    /// The driver ends. Whether the guest, if paused, may run on here: then a planned failover is
    /// off, and the backup will not be told of one. Once it was told only the record can say so
    /// (I9).
    pub fn keep_guest_here(&mut self) -> bool {
        let told = self.paused_guest.is_some_and(|paused| paused.told);
        if told && self.grant.solo(&self.config.host).is_none() {
            return false;
        }
        self.paused_guest = None;
        self.ending.take_if(|ending| ending.kind == Kind::Failover);
        true
    }

    /// Until when a good-bye has to be answered. One of a failover is waited for as long as the
    /// connection lives: the backup may be asking its arbiter.
    pub(super) fn answer_due(&self) -> Option<Time> {
        let ending = self.ending.as_ref().filter(|ending| ending.kind != Kind::Failover)?;
        ending.told_at.map(|at| at.after(self.config.suspect_after))
    }

    /// When an end needs a tick.
    pub(super) fn ending_tick(&self) -> Option<Time> {
        let ending = self.ending.as_ref()?;
        let answer = self.answer_due().filter(|_| self.link.is_up());
        // While the arbiter is being asked its answer is what comes next.
        let may_reclaim = self.config.shared_arbiter && self.grant.may_swap() && self.grant.is_protected();
        let reclaim = ending.reclaim_at.filter(|_| may_reclaim);
        answer.into_iter().chain(reclaim).min()
    }
}
