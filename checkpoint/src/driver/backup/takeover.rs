//! The `takeover` thread: asks the arbiter, makes the image whole, starts the guest.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use super::shared::{Errand, Lent, Shared, milliseconds};
use super::status::{BackupOutcome, TakeoverStatus};
use crate::driver::arbitrate;
use crate::driver::signal::lock;
use crate::ids::Epoch;
use crate::metrics::{Counter, Phase, Quantity};
use crate::placement::committed::HomingCopy;

/// Fewer copies than this are made by one thread: starting others takes longer.
const PARALLEL_FROM: usize = 1024;
/// Standbys that are tried before the guest counts as lost.
const ACTIVATION_ATTEMPTS: u32 = 3;
/// Why nothing is started over an image any more.
const SPOILED: &str = "the guest may have run on this image for a moment, so that its memory does not \
                       belong to the committed state any more: it is not started again";
/// Copies that a thread takes at a time.
const BATCH: usize = 64;

/// Works until the driver is over.
pub(super) fn run(shared: &Shared, errands: &Receiver<Errand>) {
    while let Ok(errand) = errands.recv() {
        let guest = lock(&shared.view).guest.clone();
        match errand {
            Errand::Swap(expected, new) => {
                let outcome = arbitrate::swap(&*shared.arbiter, &guest, expected.as_ref(), &new);
                shared.step(|backup, now, actions| backup.handle_swap(&new, outcome, now, actions));
            }
            Errand::Read => {
                let record = arbitrate::read(&*shared.arbiter, &guest);
                shared.step(|backup, now, actions| backup.handle_record(record, now, actions));
            }
            Errand::TakeOver(epoch, displaced) => take_over(shared, epoch, &displaced),
        }
    }
}

fn take_over(shared: &Shared, epoch: Epoch, displaced: &[HomingCopy]) {
    let granted = shared.clock.now();
    let (fenced, last_sign, mut takeover) = {
        let view = lock(&shared.view);
        (view.step_began, view.last_sign, view.takeover.unwrap_or_default())
    };
    takeover.epoch = epoch.0;
    takeover.displaced_pages = displaced.len() as u64;
    takeover.grant_ms = milliseconds(granted.since(fenced));
    shared.metrics.record(Phase::Grant, granted.since(fenced));
    shared.metrics.record_quantity(Quantity::DisplacedPages, displaced.len() as u64);
    let outcome = activate(shared, epoch, displaced, &mut takeover);
    let now = shared.clock.now();
    let since_fence = milliseconds(now.since(fenced));
    takeover.takeover_ms = takeover.fence_ms + since_fence;
    takeover.total_ms = last_sign.map_or(takeover.takeover_ms, |sign| milliseconds(now.since(sign)));
    shared.metrics.record(Phase::Activate, now.since(granted));
    lock(&shared.view).takeover = Some(takeover);
    let failure = outcome.as_ref().err().cloned();
    shared.step(|backup, _, actions| backup.handle_activated(outcome, actions));
    match failure {
        None => {
            if shared.lent().is_some_and(|lent| lent.shape.copy_only_homes) {
                // The guest's own memory, mapped here: it needs nobody any more who holds it.
                shared.forget_lent();
            }
            shared.metrics.count(Counter::Takeovers, 1);
            shared.note(&format!("the guest runs here, from epoch {epoch}"));
            shared.finish(BackupOutcome::Activated(takeover));
        }
        // The image is the only one there is: it stays, and the operator may ask again.
        Some(why) => {
            tracing::error!(%epoch, %why, "the guest is owned here and does not run");
            let spoiled = shared.lent().is_some_and(|lent| lent.is_spoiled());
            let advice = "; the image is kept: mend the cause and ask for the takeover again";
            shared.note(&format!(
                "this host owns the guest, and it could not be started from epoch {epoch}: {why}{}",
                if spoiled { "" } else { advice }
            ));
        }
    }
}

fn activate(
    shared: &Shared,
    epoch: Epoch,
    displaced: &[HomingCopy],
    takeover: &mut TakeoverStatus,
) -> Result<(), String> {
    let lent = shared.lent().ok_or("there is no image")?;
    if lent.is_spoiled() {
        return Err(SPOILED.into());
    }
    let began = shared.clock.now();
    copy_all(&lent, displaced, shared.options.takeover_threads)?;
    let copied = shared.clock.now();
    takeover.copy_ms = milliseconds(copied.since(began));
    let state = shared.read_state(epoch)?;
    start_guest(shared, &lent, &state)?;
    takeover.activate_ms = milliseconds(shared.clock.now().since(copied));
    Ok(())
}

/// Starts the guest from a state over the image that is whole now. This host owns the guest already,
/// so a standby that is gone or fails is replaced and not taken for the end.
fn start_guest(shared: &Shared, lent: &Lent, state: &[u8]) -> Result<(), String> {
    let mut standby = lock(&shared.standby);
    let mut ready = standby.check();
    for attempt in 1.. {
        let error = match ready.and_then(|()| standby.activate(state)) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if standby.may_have_run() {
            lent.spoil();
            return Err(format!("{error}; {SPOILED}"));
        }
        if attempt == ACTIVATION_ATTEMPTS {
            return Err(error.to_string());
        }
        shared.note(&format!("the guest did not start ({error}): trying again"));
        if lent.shape.copy_only_homes {
            // The image is in this one's memory: there is no other.
            ready = standby.check();
            continue;
        }
        standby.abandon();
        ready = standby.prepare(&lent.layout, &lent.memory.regions).map(drop);
    }
    unreachable!("the last attempt returns")
}

/// Makes all copies, on several threads where there are many.
fn copy_all(lent: &Lent, copies: &[HomingCopy], threads: usize) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let bad = AtomicBool::new(false);
    let share = || {
        loop {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(rest) = copies.get(first..) else { return };
            for copy in &rest[..rest.len().min(BATCH)] {
                if !lent.homes.copy_home(copy) {
                    bad.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let helpers = if copies.len() < PARALLEL_FROM { 0 } else { threads.saturating_sub(1) };
    let panicked = Mutex::new(false);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..helpers).map(|_| scope.spawn(share)).collect();
        share();
        for helper in started {
            *lock(&panicked) |= helper.join().is_err();
        }
    });
    if bad.into_inner() || *lock(&panicked) {
        return Err("a displaced page lies outside the arena".into());
    }
    Ok(())
}
