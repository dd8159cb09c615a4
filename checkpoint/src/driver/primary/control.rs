//! The `control` thread: takes what the backup says to the machine, and the passing of time.

use std::sync::Arc;
use std::time::Duration;

use romulus_transport::{Event, MessageBuffer};

use super::link::Link;
use super::shared::Shared;
use crate::driver::signal::lock;

/// Longest wait without a look at the machine's clock.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// Works until the driver is over.
pub(super) fn run(shared: &Shared) {
    let mut message = MessageBuffer::default();
    while !shared.is_over() {
        let seen = shared.wake_control.seen();
        let timeout = tick(shared);
        match shared.link() {
            Some(link) => take_event(shared, &link, &mut message, timeout),
            None => {
                shared.wake_control.wait(seen, timeout);
            }
        }
    }
    // What the machine asked for last (a Bye, say) still leaves.
    shared.perform();
    if let Some(link) = lock(&shared.link).take() {
        link.endpoint.close();
    }
}

/// Lets the machine know the time if it is due; returns how long to wait at most.
fn tick(shared: &Shared) -> Duration {
    let (due, next) = shared.call(|primary, now, _| {
        let next = primary.next_tick();
        (next.is_some_and(|next| next <= now), next)
    });
    if !due {
        return shared.clock.remaining(next, LONGEST_WAIT);
    }
    shared.step(|primary, now, actions| primary.handle_tick(now, actions));
    let next = shared.call(|primary, _, _| primary.next_tick());
    shared.clock.remaining(next, LONGEST_WAIT)
}

fn take_event(shared: &Shared, link: &Arc<Link>, message: &mut MessageBuffer, timeout: Duration) {
    match link.endpoint.next_event(message, timeout) {
        Ok(Event::Message) => {
            let bytes = message.message();
            let outcome = shared.step(|primary, now, actions| primary.handle_message(bytes, now, actions));
            if let Err(fault) = outcome {
                disconnect(shared, link, &fault.to_string());
            }
        }
        Ok(Event::Fenced { .. }) => disconnect(shared, link, "the backup sent a marker"),
        Ok(Event::Idle) => {}
        Ok(Event::Closed(reason)) => disconnect(shared, link, &reason.to_string()),
        Err(error) => disconnect(shared, link, &error.to_string()),
    }
}

/// The connection is gone: makes sure of it, then tells the machine. While it is in `link` the
/// `connector` makes no other, which the machine would take this end for.
fn disconnect(shared: &Shared, link: &Arc<Link>, why: &str) {
    link.endpoint.close();
    shared.note(&format!("connection lost: {why}"));
    shared.step(|primary, now, actions| primary.handle_disconnected(why, now, actions));
    lock(&shared.view).bytes_of_closed_links += link.endpoint.bytes_written();
    *lock(&shared.link) = None;
    shared.wake_control.notify();
}
