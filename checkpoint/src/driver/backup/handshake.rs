//! From a stranger's channel to an established connection.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use romulus_transport::{Channel, TransportError};

use super::arena::ArenaError;
use super::homes::Homes;
use super::shared::{Lent, Link, Shared};
use crate::backup::{Admission, BackupState, Refusal};
use crate::driver::arbitrate;
use crate::driver::signal::lock;
use crate::ids::Identity;
use crate::layout::ArenaShape;
use crate::metrics::Counter;
use crate::wire::message::{ErrorCode, Hello, MachineIdentity, Message, answerable, decode, encode};
use crate::wire::printable;

/// Lines of a difference that are named.
const LINES_NAMED: usize = 3;

/// Takes a channel through the handshake; refusals are answered and leave the present session as
/// it is.
pub(super) fn run(shared: &Arc<Shared>, mut channel: Box<dyn Channel>) {
    let peer = channel.peer();
    let (identity, hello) = match receive_hello(shared, &mut *channel) {
        Ok(received) => received,
        Err((Some(identity), refusal)) => return refuse(shared, &mut *channel, &identity, &refusal),
        Err((None, refusal)) => return turn_away(shared, &*channel, &refusal),
    };
    let _admitting = lock(&shared.admitting);
    if let Err(refusal) = admit(shared, &identity, &hello) {
        return refuse(shared, &mut *channel, &identity, &refusal);
    }
    let outcome = {
        // No action is carried out in here: a fence that waits for `exposing` holds up all others.
        let _exposing = lock(&shared.exposing);
        match welcome(shared, &mut *channel, &hello) {
            Ok((identity, message)) => {
                say(&mut *channel, &identity, &message).and_then(|()| establish(shared, channel, identity))
            }
            Err(refusal) => {
                refuse(shared, &mut *channel, &identity, &refusal);
                Err(refusal.text)
            }
        }
    };
    match outcome {
        Ok(()) => shared.note(&format!("connected to {peer}")),
        Err(why) => {
            shared.note(&format!("{peer} did not finish the handshake: {why}"));
            shared.call(|backup, now, actions| backup.handle_disconnected(&why, now, actions));
        }
    }
    shared.perform();
    shared.wake_committer.notify();
}

fn refusal(code: ErrorCode, text: impl Into<String>) -> Refusal {
    Refusal { code, text: text.into() }
}

/// Without a word: for whom there is no answer.
fn turn_away(shared: &Shared, channel: &dyn Channel, refusal: &Refusal) {
    shared.metrics.count(Counter::Refusals, 1);
    shared.note(&format!("refused {}: {refusal}", channel.peer()));
}

fn refuse(shared: &Shared, channel: &mut dyn Channel, identity: &Identity, refusal: &Refusal) {
    turn_away(shared, channel, refusal);
    let mut bytes = Vec::new();
    encode(identity, &Message::Error { code: refusal.code, text: refusal.text.clone() }, &mut bytes);
    // It may be gone already; there is nobody else to tell.
    let _ = channel.send(&bytes);
}

/// The Hello of a stranger; on `Err` also the identity to answer under, if there is anybody who would
/// understand an answer.
fn receive_hello(
    shared: &Shared,
    channel: &mut dyn Channel,
) -> Result<(Identity, Hello), (Option<Identity>, Refusal)> {
    let bytes = channel
        .receive(shared.options.handshake_timeout)
        .map_err(|error| (None, refusal(ErrorCode::Malformed, error.to_string())))?;
    match decode(&bytes) {
        Ok((identity, Message::Hello(hello))) => Ok((identity, hello)),
        Ok(_) => {
            let text = "the first message must be a Hello";
            Err((answerable(&bytes), refusal(ErrorCode::Violation, text)))
        }
        Err(error) => Err((answerable(&bytes), refusal(error.code(), error.to_string()))),
    }
}

/// Up to a prepared arena and a dead old connection. On `Err` the present session goes on, unless
/// the machine had admitted a new one.
fn admit(shared: &Shared, identity: &Identity, hello: &Hello) -> Result<(), Refusal> {
    if shared.is_over() {
        return Err(refusal(ErrorCode::Busy, "this backup is ending"));
    }
    let mut admission = shared.call(|backup, now, _| backup.admit(identity, hello, now))?;
    if admission == Admission::NeedsRecord {
        let record = arbitrate::read(&*shared.arbiter, &hello.guest);
        admission = shared.call(|backup, now, _| backup.admit_with_record(identity, hello, record, now))?;
    }
    // From here on the old connection is history: its events are not handled any more.
    let _committing = lock(&shared.committing);
    if let Some(link) = shared.link() {
        shared.disconnect(&link, "the primary has connected anew");
    }
    // Whatever the old connection still asked for has been carried out after this.
    shared.perform();
    shared.quiesce_homing();
    let prepared = match admission {
        Admission::Prepare(shape) => prepare(shared, hello, &shape),
        Admission::Resume | Admission::NeedsRecord => Ok(()),
    };
    if let Err(refusal) = &prepared {
        let why = refusal.text.clone();
        shared.step(|backup, now, actions| backup.handle_disconnected(&why, now, actions));
    }
    prepared
}

/// A new arena and a standby over it.
fn prepare(shared: &Shared, hello: &Hello, shape: &ArenaShape) -> Result<(), Refusal> {
    let mut standby = lock(&shared.standby);
    standby.abandon();
    shared.forget_lent();
    hello.guest.clone_into(&mut lock(&shared.view).guest);
    let memory = lock(&shared.arenas).allocate(&hello.layout, shape).and_then(|memory| {
        memory.check(&hello.layout, shape)?;
        Ok(memory)
    });
    let memory = memory.map_err(|error| match error {
        ArenaError::NoRoom(text) => refusal(ErrorCode::NoRoom, text),
        ArenaError::Failed(text) => refusal(ErrorCode::StandbyFailed, text),
    })?;
    let machine = standby
        .meet(&hello.machine)
        .and_then(|()| standby.prepare(&hello.layout, &memory.regions))
        .map_err(|error| refusal(ErrorCode::StandbyFailed, error.to_string()))?;
    if let Some(text) = difference(&hello.machine, &machine) {
        standby.abandon();
        return Err(refusal(ErrorCode::MachineMismatch, text));
    }
    let homes = Homes::new(&hello.layout, shape, &memory, standby.copy_only_homes()).map_err(|text| {
        standby.abandon();
        refusal(ErrorCode::StandbyFailed, text)
    })?;
    let arena = memory.arena();
    let (shape, layout) = (*shape, hello.layout.clone());
    let spoiled = AtomicBool::new(false);
    *lock(&shared.lent) = Some(Arc::new(Lent { shape, layout, machine, memory, arena, homes, spoiled }));
    Ok(())
}

/// Exposes the arena; what the machine says to that.
fn welcome(
    shared: &Shared,
    channel: &mut dyn Channel,
    hello: &Hello,
) -> Result<(Identity, Message), Refusal> {
    if matches!(shared.progress().0, BackupState::TakingOver | BackupState::Active) {
        return Err(refusal(ErrorCode::NotGranted, "a takeover has begun"));
    }
    let lent = shared.lent().ok_or_else(|| refusal(ErrorCode::StandbyFailed, "there is no arena"))?;
    let answer = channel.answer(&hello.fabric_offer, lent.arena.clone()).map_err(not_answered)?;
    Ok(shared.call(|backup, now, actions| backup.welcome(hello, answer, now, actions)))
}

/// Sends it; `Err` also when it is no Welcome.
fn say(channel: &mut dyn Channel, identity: &Identity, message: &Message) -> Result<(), String> {
    let mut bytes = Vec::new();
    encode(identity, message, &mut bytes);
    channel.send(&bytes).map_err(|error| error.to_string())?;
    if matches!(message, Message::Welcome(_)) { Ok(()) } else { Err("not welcome".into()) }
}

/// The fabric has no answer to the primary's offer: for what is wrong with that, or for a reason of this
/// host's own, which may pass or not.
fn not_answered(error: TransportError) -> Refusal {
    let code = match &error {
        TransportError::Handshake(_) => ErrorCode::Malformed,
        TransportError::Registration(_) | TransportError::Invalid(_) => ErrorCode::StandbyFailed,
        _ => ErrorCode::Busy,
    };
    refusal(code, error.to_string())
}

/// Finishes the channel and makes it the connection.
fn establish(shared: &Shared, channel: Box<dyn Channel>, identity: Identity) -> Result<(), String> {
    let peer = channel.peer();
    let usual = shared.options.handshake_timeout;
    let patience = shared.call(|backup, _, _| backup.handshake_patience(usual));
    let endpoint = channel.establish(None, patience).map_err(|error| error.to_string())?;
    let is_taken = {
        // At once: nobody hears or says anything on it before the machine knows it.
        let mut link = lock(&shared.link);
        let is_taken = shared.call(|backup, now, actions| backup.handle_connected(now, actions));
        if is_taken {
            let endpoint = Arc::clone(&endpoint);
            *link = Some(Arc::new(Link { identity, endpoint, peer }));
        }
        is_taken
    };
    if !is_taken {
        endpoint.close();
        return Err("it was given up meanwhile".into());
    }
    shared.heard();
    lock(&shared.view).connections += 1;
    Ok(())
}

/// What differs between guest and standby, in words; `None` when nothing does.
pub(super) fn difference(guest: &MachineIdentity, standby: &MachineIdentity) -> Option<String> {
    if guest == standby {
        return None;
    }
    let mut parts = Vec::new();
    if guest.hypervisor != standby.hypervisor {
        parts.push(format!("the guest runs on {}, the standby on {}", guest.hypervisor, standby.hypervisor));
    }
    let only = |of: &MachineIdentity, not_in: &MachineIdentity| -> Vec<String> {
        of.configuration.iter().filter(|line| !not_in.configuration.contains(line)).cloned().collect()
    };
    for (who, lines) in [("guest", only(guest, standby)), ("standby", only(standby, guest))] {
        if !lines.is_empty() {
            let named = lines.iter().take(LINES_NAMED).map(|line| format!("`{}`", printable(line)));
            let named = named.collect::<Vec<_>>();
            let more = lines.len().saturating_sub(LINES_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            parts.push(format!("only the {who} has {}{more}", named.join(", ")));
        }
    }
    if parts.is_empty() {
        parts.push("the same configuration lines in another order or number".into());
    }
    Some(format!("guest and standby differ: {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(hypervisor: &str, lines: &[&str]) -> MachineIdentity {
        let configuration = lines.iter().map(|line| (*line).to_owned()).collect();
        MachineIdentity { hypervisor: hypervisor.into(), configuration }
    }

    #[test]
    fn what_fails_on_this_host_is_not_blamed_on_the_primary() {
        let offer = not_answered(TransportError::Handshake("version 9".into()));
        assert_eq!(offer.code, ErrorCode::Malformed);
        let own = not_answered(TransportError::Registration("the limit of locked memory".into()));
        assert_eq!(own.code, ErrorCode::StandbyFailed);
        assert!(own.text.contains("locked memory"), "{own}");
        let passing = not_answered(TransportError::NoDevice("its port is down".into()));
        assert_eq!(passing.code, ErrorCode::Busy, "a primary tries again");
    }

    #[test]
    fn a_difference_is_named_line_by_line() {
        let guest = machine("QEMU 7.2.17", &["machine q35", "cpu max", "netdev tap"]);
        assert_eq!(difference(&guest, &guest.clone()), None);
        let text = difference(&guest, &machine("QEMU 7.2.17", &["machine pc", "cpu max", "netdev tap"]));
        assert_eq!(
            text.as_deref(),
            Some(
                "guest and standby differ: only the guest has `machine q35`; only the standby has `machine pc`"
            )
        );
        let text = difference(&guest, &machine("QEMU 8.0", &["machine q35", "cpu max", "netdev tap"]));
        assert!(text.is_some_and(|text| text.contains("QEMU 7.2.17") && text.contains("QEMU 8.0")));
        let text = difference(&guest, &machine("QEMU 7.2.17", &["cpu \x1b[2Jmax\n"])).unwrap_or_default();
        assert!(text.contains("`cpu  [2Jmax `") && !text.contains(char::is_control), "{text:?}");
        let swapped = machine("QEMU 7.2.17", &["cpu max", "machine q35", "netdev tap"]);
        assert!(difference(&guest, &swapped).is_some());
    }
}
