//! The `standby` thread: trial loads, and whether the prepared machine still stands ready.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use super::handshake::difference;
use super::shared::{Lent, Shared, StandbyErrand};
use crate::backup::BackupState;
use crate::driver::signal::lock;

/// Works until the driver is over.
pub(super) fn run(shared: &Shared, errands: &Receiver<StandbyErrand>) {
    loop {
        match errands.recv_timeout(shared.options.check_standby_every) {
            Ok(StandbyErrand::Trial(state)) => {
                let outcome = state
                    .and_then(|state| lock(&shared.standby).trial(&state).map_err(|error| error.to_string()));
                shared.step(|backup, now, actions| backup.handle_trial(outcome, now, actions));
            }
            Ok(StandbyErrand::Abandon(lent)) => abandon(shared, lent),
            Err(RecvTimeoutError::Timeout) => check(shared),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Drops the image and the standby of a session, unless another has begun.
fn abandon(shared: &Shared, ended: Option<Arc<Lent>>) {
    let _admitting = lock(&shared.admitting);
    let current = shared.lent();
    if current.as_ref().map(Arc::as_ptr) == ended.as_ref().map(Arc::as_ptr) {
        lock(&shared.standby).abandon();
        shared.forget_lent();
    }
}

/// A standby that died is prepared anew, over the same image, if that is not lost with it.
fn check(shared: &Shared) {
    let _admitting = lock(&shared.admitting);
    let Some(lent) = shared.lent() else { return };
    // Before anything is looked at: a takeover that was under way is over then, or goes first.
    let mut standby = lock(&shared.standby);
    let taken = matches!(shared.progress().0, BackupState::TakingOver | BackupState::Active);
    if taken || lent.is_spoiled() {
        return;
    }
    let Err(error) = standby.check() else { return };
    if lent.shape.copy_only_homes {
        // The image was in its memory. No copy may finish in the name of another image.
        shared.quiesce_homing();
        drop(standby);
        let why = format!("the standby is gone, and the guest's image in its memory with it: {error}");
        if shared.step(|backup, now, actions| backup.image_lost(&why, now, actions)) {
            lock(&shared.standby).abandon();
            shared.forget_lent();
        }
        return;
    }
    shared.note(&format!("the standby is gone ({error}): preparing another"));
    match standby.prepare(&lent.layout, &lent.memory.regions) {
        Ok(machine) => match difference(&lent.machine, &machine) {
            None => shared.note("another standby stands ready"),
            Some(text) => {
                // Nothing stands ready: the next check tries again.
                standby.abandon();
                shared.note(&format!(
                    "no standby stands ready: the new one differs from the guest and was ended: {text}"
                ));
            }
        },
        Err(error) => shared.note(&format!("no standby stands ready: {error}")),
    }
}
