//! What follows from where link, image, grant and gate stand: looked at after every event.

use crate::arbiter::Ownership;
use crate::ids::Time;
use crate::nonce::pairing;
use crate::release::ReleaseToken;
use crate::wire::message::Message;

use super::ending::{Kind, Last};
use super::image::Phase;
use super::link::Phase as LinkPhase;
use super::{Actions, Primary, PrimaryAction, PrimaryReport, PrimaryState};

impl Primary {
    /// Time passed: heartbeats, suspicion, retries.
    pub fn handle_tick(&mut self, now: Time, actions: &mut Actions) {
        if self.over.is_some() {
            return;
        }
        self.heartbeat(now, actions);
        let silent = now.since(self.link.last_heard) >= self.config.suspect_after;
        if silent && !self.suspected && (self.link.is_up() || self.grant.is_protected()) {
            self.suspected = true;
            let silence = self.config.suspect_after;
            if self.link.is_up() {
                self.close(format_args!("nothing heard from the backup for {silence:?}"), now, actions);
            } else {
                self.because(format_args!("no connection to the backup for {silence:?}"));
            }
        }
        if self.answer_due().is_some_and(|at| at <= now) {
            self.close(format_args!("the backup does not answer the good-bye"), now, actions);
        }
        self.grant.tick(now, actions);
        self.settle(now, actions);
    }

    /// When [`handle_tick`](Self::handle_tick) is due next.
    pub fn next_tick(&self) -> Option<Time> {
        if self.over.is_some() {
            return None;
        }
        [self.link_tick(), self.ending_tick(), self.grant.retry_at()].into_iter().flatten().min()
    }

    /// An answer of the arbiter was taken.
    pub(super) fn record_changed(&mut self, now: Time, actions: &mut Actions) {
        if self.over.is_some() {
            return;
        }
        if self.grant.is_missing() {
            self.because(format_args!("the arbiter has no record of the guest; output stays held"));
        } else if self.grant.is_known() {
            let record = self.grant.record();
            let why = record.describe();
            let ours = match &record.ownership {
                Ownership::Protected { primary, .. } | Ownership::Solo { primary } => {
                    *primary == self.config.host
                }
                Ownership::Owned { .. } => false,
                Ownership::Ended => true,
            };
            if !ours {
                self.lost(format_args!("{why}"), now, actions);
                return;
            }
            if !self.grant.is_protected() {
                self.promised = false;
            }
            if self.state != PrimaryState::Protected || !self.grant.is_protected() {
                self.append_reason(&why);
            }
        }
        self.settle(now, actions);
    }

    /// Takes every step that is due.
    pub(super) fn settle(&mut self, now: Time, actions: &mut Actions) {
        if self.over.is_none() {
            self.release_acked(actions);
            self.open_gate(actions);
            self.resume_paused(actions);
            self.drain(actions);
            self.hold_output(actions);
            self.decide(now, actions);
            self.tell_ending(now, actions);
            self.poll(now);
            self.conclude(now, actions);
        }
        self.refresh_state(actions);
    }

    /// Whether this connection is becoming, or is, a protection.
    fn is_pairing(&self) -> bool {
        matches!(self.link.phase, LinkPhase::Welcomed | LinkPhase::Up)
            && self.image.phase == Phase::Epochs
            && self.ending.is_none_or(|ending| ending.kind == Kind::Failover)
    }

    /// Lets output go whose epoch is acked (I1): by the very image that the record lets take over,
    /// or while nobody may take over. An ack of another image than the record names (a second
    /// backup of the same name) waits until the record is won.
    fn release_acked(&mut self, actions: &mut Actions) {
        let Some((mark, proof)) = self.image.owed else { return };
        if self.grant.covers(|nonce| self.image.is_named_by(nonce, self.config.session)) {
            self.image.owed = None;
            if let Some(token) = ReleaseToken::acked(mark, &proof) {
                actions.push(PrimaryAction::Release(token));
            }
        }
    }

    /// Lets all output go when the record says that this host runs the guest alone.
    fn open_gate(&mut self, actions: &mut Actions) {
        if self.gate.is_open() || self.is_pairing() || self.may_hand_back() || self.at_large {
            return;
        }
        if let Some(grant) = self.grant.solo(&self.config.host) {
            self.gate.opened();
            self.image.output_let_go();
            actions.push(PrimaryAction::Release(ReleaseToken::solo(&grant)));
        }
    }

    /// Whether the guest's process died with all its output covered by the backup's image, while
    /// the record says that this host runs it alone: the record can go back.
    fn may_hand_back(&self) -> bool {
        self.has_died() && self.gate.is_held() && self.image.is_fresh()
    }

    /// An epoch too large for the spares: once those before it are acked the image is given up.
    fn drain(&mut self, actions: &mut Actions) {
        let drained = match self.image.phase {
            // The last committed epoch of a guest that died is all there is left of it.
            Phase::Draining => self.image.flights.is_empty() && !self.has_died(),
            Phase::Foreign => true,
            _ => false,
        };
        if drained && self.link.is_up() {
            self.image.phase = Phase::Invalidating;
            self.send(Message::Invalidate, actions);
        }
    }

    fn has_died(&self) -> bool {
        self.ending.is_some_and(|ending| ending.kind == Kind::GuestDied)
    }

    fn hold_output(&mut self, actions: &mut Actions) {
        if self.gate.is_open() && self.link.is_up() && self.is_pairing() && !self.may_stay_open() {
            self.gate.ask_hold();
            // Each moment from here to its ack is one that clients wait for.
            self.image.early = true;
            actions.push(PrimaryAction::HoldOutput);
        }
    }

    /// Whether epochs may be made while output is free: the record says that nobody can take over from
    /// them, and they are not as quick yet as those that clients will have to wait for. Where nobody
    /// arbitrates a backup may take over from any epoch.
    pub(super) fn may_stay_open(&self) -> bool {
        self.config.shared_arbiter && self.gate.is_open() && !self.image.settling.is_over()
    }

    /// Asks the arbiter for what record there ought to be.
    fn decide(&mut self, now: Time, actions: &mut Actions) {
        if !self.grant.may_swap() {
            return;
        }
        match self.wanted(now) {
            Some(ownership @ Ownership::Protected { .. }) => {
                let nonce = pairing(self.config.session, self.image.incarnation);
                self.grant.swap(ownership, nonce, actions);
            }
            Some(ownership) => {
                let nonce = self.grant.draw();
                self.grant.swap(ownership, nonce, actions);
            }
            // What was wanted is wanted no more, but may have happened or may yet.
            None if self.grant.must_repeat() => self.grant.repeat(actions),
            None => {}
        }
    }

    /// The ownership that the record ought to have instead of the present one.
    fn wanted(&self, now: Time) -> Option<Ownership> {
        let solo = || Some(Ownership::Solo { primary: self.config.host.clone() });
        let protected = || {
            let (primary, backup) = (self.config.host.clone(), self.backup.clone());
            Some(Ownership::Protected { primary, backup })
        };
        let ending = self.ending.as_ref();
        match (&self.grant.record().ownership, ending.map(|ending| ending.kind)) {
            (Ownership::Protected { .. }, Some(Kind::Detach)) => solo(),
            // With nothing to take over from at the backup it has died unprotected.
            (Ownership::Protected { .. }, Some(Kind::GuestDied)) => self.is_unbacked().then(solo).flatten(),
            (Ownership::Protected { .. }, Some(Kind::GuestEnded)) => {
                match ending.map(|ending| ending.last) {
                    Some(Last::Acked) => Some(Ownership::Ended),
                    // With the grant its last output may leave before the record is closed.
                    Some(Last::None) => solo(),
                    _ => None,
                }
            }
            (Ownership::Protected { .. }, Some(Kind::Failover)) if !self.is_unbacked() => {
                let due = ending.and_then(|ending| ending.reclaim_at).is_some_and(|at| at <= now);
                (due && self.config.shared_arbiter).then(solo).flatten()
            }
            (Ownership::Protected { .. }, _) => {
                let lost = self.suspected && !self.link.is_up() && self.config.solo_automatic;
                (lost || self.is_unbacked()).then(solo).flatten()
            }
            (Ownership::Solo { .. }, Some(Kind::GuestEnded)) => Some(Ownership::Ended),
            (Ownership::Solo { .. }, Some(Kind::GuestDied)) if self.may_hand_back() => protected(),
            (Ownership::Solo { .. }, None) if self.is_covered() => protected(),
            _ => None,
        }
    }

    /// Whether the record names the image, or one that its backup gave up for it.
    fn is_named(&self) -> bool {
        self.image.is_named_by(self.grant.record().nonce, self.config.session)
    }

    /// Whether the record says `Protected` and no image goes with it: by the backup's own word,
    /// because it names one that its backup has given up, or because another backup than the one
    /// that it names is connected.
    pub(super) fn is_unbacked(&self) -> bool {
        let present = pairing(self.config.session, self.image.incarnation);
        let other = self.grant.record().nonce != present && (self.is_named() || self.link.is_up());
        self.grant.is_protected() && (self.promised || other)
    }

    /// Whether the connected backup stands ready with all that has left.
    fn is_covered(&self) -> bool {
        self.link.is_up() && self.gate.is_held() && self.image.is_fresh()
    }

    /// Where only the record can tell how a failover or a death ended, it is read again and again.
    fn poll(&mut self, now: Time) {
        let paused = self.paused_guest.is_some_and(|paused| paused.told);
        let died = self.has_died();
        // Without a swap of its own the record is all that tells that the backup has taken over.
        let manual = self.config.shared_arbiter && !self.config.solo_automatic;
        let waits = self.suspected && self.grant.is_protected() && manual;
        if (paused || died || waits) && !self.link.is_up() {
            self.grant.read_later(if waits { 10 } else { 1 }, now);
        }
    }

    /// Ends the machine's work when nothing is left to do.
    fn conclude(&mut self, now: Time, actions: &mut Actions) {
        let Some(ending) = self.ending else { return };
        let down = !self.link.is_up();
        let solo = self.grant.solo(&self.config.host).is_some();
        match ending.kind {
            Kind::Detach if solo && down && self.gate.is_open() => {
                self.finish(format_args!("protection has ended; the guest runs on here alone"), now, actions);
            }
            Kind::GuestEnded if self.record_ended() && down => {
                self.finish(format_args!("the guest has ended"), now, actions);
            }
            Kind::GuestDied if solo && !self.may_hand_back() => {
                self.finish(format_args!("the guest's process has died unprotected"), now, actions);
            }
            _ => {}
        }
    }

    /// Nothing more to do; the guest is what it is.
    pub(super) fn finish(&mut self, why: std::fmt::Arguments<'_>, now: Time, actions: &mut Actions) {
        self.close(why, now, actions);
        self.over = Some(PrimaryState::Ended);
        self.because(why);
    }

    /// Another host has the guest.
    pub(super) fn lost(&mut self, why: std::fmt::Arguments<'_>, now: Time, actions: &mut Actions) {
        self.close(why, now, actions);
        self.over = Some(PrimaryState::Lost);
        self.because(why);
        actions.push(PrimaryAction::DestroyGuest);
        self.refresh_state(actions);
    }

    /// Derives the state and reports a change.
    fn refresh_state(&mut self, actions: &mut Actions) {
        let state = self.derive_state();
        if state != self.state {
            self.state = state;
            actions.push(PrimaryAction::Report(PrimaryReport::State(state, self.why.clone())));
        }
    }

    fn derive_state(&self) -> PrimaryState {
        if let Some(over) = self.over {
            return over;
        }
        if self.record_ended() {
            return PrimaryState::Ended;
        }
        match self.ending.map(|ending| ending.kind) {
            Some(Kind::GuestDied) => return PrimaryState::TakingOver,
            Some(Kind::Detach) if !self.grant.is_protected() => return PrimaryState::Solo,
            _ if self.paused_guest.is_some() => return PrimaryState::TakingOver,
            _ => {}
        }
        if matches!(self.image.phase, Phase::Draining | Phase::Invalidating) && self.link.is_up() {
            return PrimaryState::Invalid;
        }
        let nonce = self.grant.record().nonce;
        let present = nonce == pairing(self.config.session, self.image.incarnation);
        if self.grant.is_protected()
            && self.image.phase == Phase::Epochs
            && (present || (self.image.is_fresh() && self.is_named()))
        {
            return PrimaryState::Protected;
        }
        match self.link.phase {
            LinkPhase::Welcomed | LinkPhase::Up => PrimaryState::Syncing,
            // Until the grant is won the guest's output is held: it is not alone yet.
            LinkPhase::Down | LinkPhase::Greeting if self.grant.is_protected() || self.at_large => {
                PrimaryState::Protected
            }
            LinkPhase::Down | LinkPhase::Greeting => PrimaryState::Solo,
        }
    }
}
