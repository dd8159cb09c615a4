//! The `connector` thread: reaches the backup and shakes hands, again and again.

use std::sync::Arc;
use std::time::Duration;

use romulus_transport::{Channel, TransportError};

use super::link::Link;
use super::shared::Shared;
use crate::driver::signal::lock;
use crate::ids::Identity;
use crate::metrics::Counter;
use crate::primary::PrimaryState;
use crate::wire::message::{Message, encode};

/// Longest sleep without a look around.
const LOOK_AROUND: Duration = Duration::from_millis(200);

/// Works until the driver is over.
pub(super) fn run(shared: &Arc<Shared>) {
    let (shortest, longest) = shared.options.reconnect_after;
    let mut pause = shortest;
    let mut last_failure = String::new();
    let mut connected = None;
    while !shared.is_over() {
        let seen = shared.wake_control.seen();
        if shared.link().is_some() || matches!(shared.state(), PrimaryState::Ended | PrimaryState::Lost) {
            shared.wake_control.wait(seen, LOOK_AROUND);
            continue;
        }
        if let Some(at) = connected.take() {
            if shared.clock.now().since(at) >= longest {
                pause = shortest;
            } else {
                // A connection that did not last is as good as none.
                sleep(shared, pause);
                pause = (pause * 2).min(longest);
            }
        }
        match connect(shared) {
            Ok(()) => {
                last_failure.clear();
                lock(&shared.view).obstacle = None;
                connected = Some(shared.clock.now());
            }
            Err(why) => {
                if why != last_failure {
                    let text = format!("cannot connect to {}: {why}", shared.options.peer);
                    shared.note(&text);
                    lock(&shared.view).obstacle = Some(text);
                }
                last_failure = why;
                sleep(shared, pause);
                pause = (pause * 2).min(longest);
            }
        }
    }
}

fn sleep(shared: &Shared, pause: Duration) {
    let until = shared.clock.now().after(pause);
    loop {
        let seen = shared.wake_control.seen();
        let left = shared.clock.remaining(Some(until), LOOK_AROUND);
        if left.is_zero() || shared.is_over() {
            return;
        }
        shared.wake_control.wait(seen, left);
    }
}

fn connect(shared: &Arc<Shared>) -> Result<(), String> {
    let options = &shared.options;
    let text = |error: TransportError| error.to_string();
    let mut channel = shared.fabric.connect(options.peer, options.connect_timeout).map_err(text)?;
    let offer = channel.offer().map_err(text)?;
    let hello = shared.call(|primary, now, _| primary.hello(offer, now));
    let identity = hello.identity;
    let outcome = shake_hands(shared, channel, &identity, Message::Hello(hello));
    if let Err(why) = &outcome {
        shared.step(|primary, now, actions| primary.handle_disconnected(why, now, actions));
    }
    outcome
}

fn shake_hands(
    shared: &Arc<Shared>,
    mut channel: Box<dyn Channel>,
    identity: &Identity,
    hello: Message,
) -> Result<(), String> {
    let options = &shared.options;
    let text = |error: TransportError| error.to_string();
    let mut bytes = Vec::new();
    encode(identity, &hello, &mut bytes);
    channel.send(&bytes).map_err(text)?;
    let answer = channel.receive(options.handshake_timeout).map_err(text)?;
    let answer = shared.step(|primary, now, actions| primary.handle_answer(&answer, now, actions));
    let answer = answer.map_err(|fault| fault.to_string())?;
    let endpoint = channel.establish(Some(&answer), options.connect_timeout).map_err(text)?;
    let identity = shared.call(|primary, _, _| primary.identity());
    let link = Link::new(identity, endpoint, shared).map_err(text)?;
    let link = Arc::new(link);
    let is_taken = {
        // At once: nobody hears or says anything on it before the machine knows it.
        let mut current = lock(&shared.link);
        let is_taken = shared.call(|primary, now, actions| primary.handle_connected(now, actions));
        if is_taken {
            *current = Some(Arc::clone(&link));
        }
        is_taken
    };
    if !is_taken {
        link.endpoint.close();
        return Err("the connection was given up meanwhile".into());
    }
    {
        let mut view = lock(&shared.view);
        if view.connections > 0 {
            shared.metrics.count(Counter::Reconnects, 1);
        }
        view.connections += 1;
    }
    shared.note(&format!("connected to {}", options.peer));
    shared.perform();
    shared.wake_capture.notify();
    shared.wake_control.notify();
    Ok(())
}
