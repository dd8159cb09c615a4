//! The guest's pause as a value: whatever happens while it exists, the guest runs on (I8).

use std::time::{Duration, Instant};

use crate::guest::{Guest, GuestError};
use crate::metrics::{Metrics, Phase};

/// Attempts to resume a guest before its stop is reported.
const RESUME_ATTEMPTS: u32 = 5;
const RESUME_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// A paused guest. Dropping it resumes the guest.
pub(super) struct Paused<'a> {
    guest: Option<&'a mut dyn Guest>,
    flag: &'a (dyn Fn(bool) + Send + Sync),
    metrics: &'a Metrics,
    began: Instant,
}

/// A pause that failed.
pub(super) struct NotPaused {
    /// Why.
    pub error: GuestError,
    /// Whether the guest is known to run since, with the flag down. Otherwise the flag is up.
    pub resumed: Result<(), GuestError>,
}

impl<'a> Paused<'a> {
    /// Raises the flag and pauses the guest.
    pub fn pause(
        guest: &'a mut dyn Guest,
        flag: &'a (dyn Fn(bool) + Send + Sync),
        metrics: &'a Metrics,
    ) -> Result<Self, NotPaused> {
        let began = Instant::now();
        flag(true);
        match metrics.run_phase(Phase::Stop, || guest.pause()) {
            Ok(()) => Ok(Self { guest: Some(guest), flag, metrics, began }),
            Err(error) => {
                let resumed = resume_at_last(guest);
                if resumed.is_ok() {
                    flag(false);
                }
                Err(NotPaused { error, resumed })
            }
        }
    }

    /// The guest, paused.
    pub fn guest(&mut self) -> &mut dyn Guest {
        &mut **self.guest.as_mut().expect("taken only where the value ends")
    }

    /// Lets the guest run on. After failure it is paused and the flag stays up.
    pub fn resume(mut self) -> Result<(), GuestError> {
        let Some(guest) = self.guest.take() else { return Ok(()) };
        let outcome = self.metrics.run_phase(Phase::Resume, || guest.resume());
        let outcome = outcome.or_else(|_| resume_at_last(guest));
        self.metrics.record(Phase::Pause, self.began.elapsed());
        if outcome.is_ok() {
            (self.flag)(false);
        }
        outcome
    }

    /// Leaves the guest paused and the flag up: a last checkpoint.
    pub fn keep(mut self) {
        self.guest = None;
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let Some(guest) = self.guest.take() else { return };
        match resume_at_last(guest) {
            Ok(()) => (self.flag)(false),
            Err(error) => tracing::error!(%error, "the guest is paused and could not be resumed"),
        }
    }
}

/// Resumes a guest, again and again for a while.
pub(super) fn resume_at_last(guest: &mut dyn Guest) -> Result<(), GuestError> {
    let mut outcome = guest.resume();
    for _ in 1..RESUME_ATTEMPTS {
        if !matches!(outcome, Err(GuestError::Failed { .. })) {
            break;
        }
        std::thread::sleep(RESUME_AGAIN_AFTER);
        outcome = guest.resume();
    }
    outcome
}
