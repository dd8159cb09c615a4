//! Whether the guest runs, and by whose will: QEMU's events sorted into ours and others'.

use std::collections::VecDeque;

use romulus_checkpoint::guest::GuestEvent;

use crate::qmp::Event;

/// What is known of the guest's run state.
#[derive(Debug)]
pub(super) struct RunState {
    /// A `stop` of ours is under way and its event has not come.
    stopping: bool,
    /// A `cont` of ours is under way and its event has not come.
    resuming: bool,
    /// Our `stop` is what stopped it.
    stopped_by_us: bool,
    /// Somebody else stopped it.
    stopped_by_others: bool,
    /// It has shut down.
    ended: bool,
    /// A reset came that nobody took yet.
    reset: bool,
    events: VecDeque<GuestEvent>,
}

impl RunState {
    pub(super) fn running() -> Self {
        Self {
            stopping: false,
            resuming: false,
            stopped_by_us: false,
            stopped_by_others: false,
            ended: false,
            reset: false,
            events: VecDeque::with_capacity(64),
        }
    }

    /// A `stop` is being sent.
    pub(super) fn expect_stop(&mut self) {
        self.stopping = true;
    }

    /// The `stop` was answered; a guest that was stopped already gives no event for it.
    pub(super) fn stop_answered(&mut self) {
        self.stopping = false;
    }

    /// A `cont` is being sent.
    pub(super) fn expect_resume(&mut self) {
        self.resuming = true;
    }

    /// The `cont` was answered.
    pub(super) fn resume_answered(&mut self, runs: bool) {
        self.resuming = false;
        self.stopped_by_us &= !runs;
    }

    /// Whether it stands still because of us, so that a resume is ours to do.
    pub(super) fn is_ours_to_resume(&self) -> bool {
        self.stopped_by_us
    }

    /// Whether it has shut down.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a reset came since the last call.
    pub(super) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    /// The oldest event that nobody took.
    pub(super) fn next(&mut self) -> Option<GuestEvent> {
        self.events.pop_front()
    }

    /// Something happened that is no event of QEMU's.
    pub(super) fn report(&mut self, event: GuestEvent) {
        // The last room stays for an end, which must not be lost.
        let is_end = matches!(event, GuestEvent::Ended | GuestEvent::Died(_));
        if self.events.len() + 1 < self.events.capacity() || is_end {
            self.events.push_back(event);
        }
    }

    pub(super) fn absorb(&mut self, event: Event) {
        match event {
            Event::Stop if self.ended => {}
            Event::Stop if self.stopping => {
                self.stopping = false;
                self.stopped_by_us = true;
            }
            Event::Stop => {
                self.stopped_by_others = true;
                self.report(GuestEvent::PausedByOthers(true));
            }
            Event::Resume => {
                let ours = std::mem::take(&mut self.resuming);
                self.stopped_by_us = false;
                if std::mem::take(&mut self.stopped_by_others) || !ours {
                    self.report(GuestEvent::PausedByOthers(false));
                }
            }
            Event::Reset => {
                self.reset = true;
                self.report(GuestEvent::Reset);
            }
            Event::Shutdown { guest, reason } => self.shut_down(guest, &reason),
            Event::Panicked => tracing::warn!("the guest's kernel panicked"),
            Event::Migration(_) | Event::Other => {}
        }
    }

    /// A guest that powers off has ended. A QEMU that is told to go by its host has not: for the
    /// clients that is a failure of the host.
    fn shut_down(&mut self, guest: bool, reason: &str) {
        let by_guest = guest || reason.starts_with("guest") || reason == "subsystem-reset";
        self.ended = true;
        if by_guest {
            self.report(GuestEvent::Ended);
        } else {
            self.report(GuestEvent::Died(format!("QEMU was told to end ({reason})")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(state: &mut RunState) -> Vec<GuestEvent> {
        std::iter::from_fn(|| state.next()).collect()
    }

    #[test]
    fn our_own_pause_is_silent() {
        let mut state = RunState::running();
        state.expect_stop();
        state.absorb(Event::Stop);
        state.stop_answered();
        assert!(state.is_ours_to_resume());
        state.expect_resume();
        state.absorb(Event::Resume);
        state.resume_answered(true);
        assert!(!state.is_ours_to_resume());
        assert!(events(&mut state).is_empty());
    }

    #[test]
    fn a_guest_paused_by_others_is_not_ours_to_resume() {
        let mut state = RunState::running();
        state.absorb(Event::Stop);
        state.expect_stop();
        state.stop_answered();
        assert!(!state.is_ours_to_resume());
        state.absorb(Event::Resume);
        assert_eq!(events(&mut state), [GuestEvent::PausedByOthers(true), GuestEvent::PausedByOthers(false)]);
    }

    #[test]
    fn resumed_by_others_while_we_hold_it() {
        let mut state = RunState::running();
        state.expect_stop();
        state.absorb(Event::Stop);
        state.stop_answered();
        state.absorb(Event::Resume);
        assert!(!state.is_ours_to_resume());
        assert_eq!(events(&mut state), [GuestEvent::PausedByOthers(false)]);
    }

    #[test]
    fn power_off_is_an_end_and_its_stop_is_no_pause() {
        let mut state = RunState::running();
        state.expect_stop();
        state.absorb(Event::Shutdown { guest: true, reason: "guest-shutdown".into() });
        state.absorb(Event::Stop);
        state.stop_answered();
        assert!(state.has_ended() && !state.is_ours_to_resume());
        assert_eq!(events(&mut state), [GuestEvent::Ended]);
    }

    #[test]
    fn a_signal_to_qemu_is_no_power_off() {
        let mut state = RunState::running();
        state.absorb(Event::Shutdown { guest: false, reason: "host-signal".into() });
        assert!(matches!(events(&mut state)[..], [GuestEvent::Died(_)]));
    }

    #[test]
    fn a_flood_of_events_keeps_the_end() {
        let mut state = RunState::running();
        for _ in 0..10_000 {
            state.absorb(Event::Reset);
        }
        state.absorb(Event::Shutdown { guest: true, reason: "guest-shutdown".into() });
        let events = events(&mut state);
        assert!(events.len() < 100 && events.last() == Some(&GuestEvent::Ended));
    }
}
