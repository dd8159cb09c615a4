//! The `committer` thread: takes what the primary says and writes to the machine, and the passing
//! of time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use romulus_transport::{Event, MessageBuffer};

use super::shared::Shared;
use super::status::BackupOutcome;
use crate::backup::BackupState;
use crate::driver::signal::lock;
use crate::wire::message::is_part;

/// Longest wait without a look at the machine's clock.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Longest wait for the primary's consent to an end.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Works until the driver is over.
pub(super) fn run(shared: &Shared) {
    let mut message = MessageBuffer::default();
    let mut stopping_since = None;
    while !shared.is_over() {
        let seen = shared.wake_committer.seen();
        let timeout = tick(shared);
        match shared.link() {
            Some(link) => match link.endpoint.next_event(&mut message, timeout) {
                Ok(Event::Idle) => {}
                event => {
                    let _committing = lock(&shared.committing);
                    // A handshake may have replaced the connection meanwhile.
                    if shared.link().is_some_and(|current| std::sync::Arc::ptr_eq(&current, &link)) {
                        take_event(shared, &link, event, &message);
                    }
                }
            },
            None => {
                shared.wake_committer.wait(seen, timeout);
            }
        }
        if shared.stopping.load(Ordering::Acquire) {
            stop_when_ready(shared, *stopping_since.get_or_insert_with(Instant::now));
        }
    }
    shared.perform();
    if let Some(link) = lock(&shared.link).take() {
        link.endpoint.close();
    }
}

/// Lets the machine know the time if it is due; returns how long to wait at most.
fn tick(shared: &Shared) -> Duration {
    let next = shared.call(|backup, _, _| backup.next_tick());
    if next.is_none_or(|next| next > shared.clock.now()) {
        return shared.clock.remaining(next, LONGEST_WAIT);
    }
    let _committing = lock(&shared.committing);
    shared.step(|backup, now, actions| backup.handle_tick(now, actions));
    let next = shared.call(|backup, _, _| backup.next_tick());
    shared.clock.remaining(next, LONGEST_WAIT)
}

fn take_event(
    shared: &Shared,
    link: &std::sync::Arc<super::shared::Link>,
    event: Result<Event, romulus_transport::TransportError>,
    message: &MessageBuffer,
) {
    match event {
        Ok(Event::Message) => {
            shared.heard();
            let bytes = message.message();
            let outcome = shared.step(|backup, now, actions| backup.handle_message(bytes, now, actions));
            if let Err(refusal) = outcome {
                shared.disconnect(link, &refusal.text);
            }
        }
        Ok(Event::Fenced { marker }) => {
            shared.heard();
            if !is_part(marker) {
                shared.step(|backup, now, actions| backup.handle_fence(marker, now, actions));
            }
        }
        Ok(Event::Idle) => {}
        Ok(Event::Closed(reason)) => shared.disconnect(link, &reason.to_string()),
        Err(error) => shared.disconnect(link, &error.to_string()),
    }
}

/// An end that was asked for has come once nobody counts on this backup.
fn stop_when_ready(shared: &Shared, since: Instant) {
    let busy = shared.progress().0 == BackupState::TakingOver;
    // The machine closes the connection once the primary has consented.
    if !busy && (shared.link().is_none() || since.elapsed() > STOP_PATIENCE) {
        shared.finish(BackupOutcome::Stopped);
    }
}
