//! The gate inside QEMU, for back ends without a kernel interface: two `filter-buffer` objects in a
//! row in front of a card's back end.
//!
//! What the guest sends waits in the first. At a mark the first is switched off and on, which moves
//! its packets to the second; at the ack the second is switched off and on, which lets them go. The
//! second holds all marks that are not acked, so it is emptied when the newest of them is; with one
//! epoch on its way at a time that is each ack.
//!
//! Everything is asked for here and carried out by the thread that has the guest, since a monitor
//! serves one client; whoever asks never waits for QEMU. A hold takes effect at the first mark after it, while the guest stands still:
//! what leaves before belongs to the epoch of that mark, from which on alone a takeover is possible.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use romulus_checkpoint::GateMark;
use romulus_checkpoint::arbiter::SoloGrant;
use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::release::ReleaseToken;
use romulus_host::gate::GateStatus;
use serde_json::json;

use super::Card;
use crate::error::QemuError;
use crate::qmp::{Client, QmpError};

/// Longest that QEMU holds by itself, in microseconds: about 71 minutes.
const LONGEST_US: u32 = u32::MAX;

/// The names of the two buffers of a back end. QEMU's own names begin with a `#`, which no object's may have.
pub fn objects_of(netdev: &str) -> [String; 2] {
    ["first", "second"].map(|which| format!("romulus-gate-{which}-{}", netdev.replace('#', ".")))
}

/// What was asked for, and what the thread that has the guest has made of it. Other threads write what
/// is asked, that thread alone the rest.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// A predecessor's buffers are to go.
    clear: bool,
    /// Output is to be held from the next mark on.
    hold: bool,
    /// Everything may leave, and the buffers are to go.
    open: bool,
    mark: Option<GateMark>,
    through: Option<GateMark>,
    /// The buffers are there and hold.
    holding: bool,
    /// The newest mark whose packets the second buffers hold.
    in_second: Option<GateMark>,
}

/// The gate of the cards that QEMU itself has to hold. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct BufferGate {
    cards: Arc<[Card]>,
    /// All back ends that a predecessor may have left buffers in front of.
    netdevs: Arc<[String]>,
    /// Never locked across a command to QEMU.
    state: Arc<Mutex<State>>,
}

impl BufferGate {
    /// A gate of these cards, with nothing done yet. `netdevs` are the back ends of all cards.
    pub(crate) fn new(cards: Vec<Card>, netdevs: Vec<String>) -> Self {
        Self { cards: cards.into(), netdevs: netdevs.into(), state: Arc::default() }
    }

    /// The cards.
    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// How each card stands. QEMU does not tell how much it holds.
    pub fn status(&self) -> Vec<GateStatus> {
        let holding = self.lock().holding;
        let status = |card: &Card| GateStatus {
            nic: card.nic.clone(),
            kind: "filter-buffer".into(),
            interface: card.netdev.clone(),
            holding,
            ..GateStatus::default()
        };
        self.cards.iter().map(status).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what needs no standing guest. What fails is tried again the next time.
    pub(crate) fn serve(&self, client: &mut Client) -> Result<(), QemuError> {
        let asked = *self.lock();
        if asked.clear {
            remove(client, self.netdevs.iter().flat_map(|netdev| objects_of(netdev)))?;
            self.lock().clear = false;
        }
        if self.cards.is_empty() {
            return Ok(());
        }
        if asked.open {
            let removed = self.remove(client);
            let mut state = self.lock();
            // Also after failure: nobody knows what holds still.
            (state.holding, state.in_second) = (false, None);
            removed?;
            state.open = false;
        } else if asked.holding && asked.in_second.zip(asked.through).is_some_and(|(held, to)| held <= to) {
            for card in self.cards.iter() {
                let [_, second] = objects_of(&card.netdev);
                off_and_on(client, &second)?;
            }
            self.lock().in_second = None;
        }
        Ok(())
    }

    /// Carries out a mark, and a hold before it. The guest stands still.
    pub(crate) fn serve_mark(&self, client: &mut Client) -> Result<(), QemuError> {
        if self.cards.is_empty() {
            return Ok(());
        }
        self.serve(client)?;
        let asked = *self.lock();
        if asked.hold && !asked.holding {
            self.add(client)?;
            self.lock().holding = true;
        }
        let mut state = self.lock();
        let (holding, mark) = (state.holding, state.mark.take());
        // One that was taken back meanwhile has left its order to open.
        state.hold &= !asked.hold;
        drop(state);
        let Some(mark) = mark.filter(|_| holding) else { return Ok(()) };
        let moved = self.cards.iter().try_for_each(|card| {
            let [first, _] = objects_of(&card.netdev);
            off_and_on(client, &first)
        });
        // Also after failure, to be repeated by the next mark: what is in the second by now leaves later.
        self.lock().in_second = Some(mark);
        moved
    }

    fn add(&self, client: &mut Client) -> Result<(), QemuError> {
        for card in self.cards.iter() {
            // The one added last is the first that a packet of the guest comes to.
            let [first, second] = objects_of(&card.netdev);
            for id in [second, first] {
                let object = json!({
                    "qom-type": "filter-buffer", "id": id, "netdev": card.netdev, "queue": "rx",
                    "interval": LONGEST_US, "status": "on",
                });
                if let Err(error) = client.execute("object-add", object) {
                    let removed = self.remove(client);
                    tracing::debug!(?removed, "after a buffer that QEMU refused");
                    return Err(QemuError::failed(
                        format!("card {}: letting QEMU hold its packets", card.nic),
                        format!("{error}; --gate {}=none would let them leave unheld", card.nic),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Lets everything go and takes the buffers away; ok if there are none.
    fn remove(&self, client: &mut Client) -> Result<(), QemuError> {
        remove(client, self.cards.iter().flat_map(|card| objects_of(&card.netdev)))
    }
}

/// Removes buffers in this order; each lets go what it holds. Ok for those that do not exist.
pub(crate) fn remove(client: &mut Client, ids: impl IntoIterator<Item = String>) -> Result<(), QemuError> {
    for id in ids {
        match client.execute("object-del", json!({"id": id})) {
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn off_and_on(client: &mut Client, id: &str) -> Result<(), QemuError> {
    let path = format!("/objects/{id}");
    for status in ["off", "on"] {
        client.execute("qom-set", json!({"path": path, "property": "status", "value": status}))?;
    }
    Ok(())
}

impl OutputGate for BufferGate {
    fn claimed(&self, _grant: &SoloGrant) -> Result<(), GateError> {
        self.lock().clear = true;
        Ok(())
    }

    /// Takes effect at the first mark.
    fn hold(&self) -> Result<(), GateError> {
        let mut state = self.lock();
        // A grant that was not made use of yet is void: nothing of it has left.
        (state.hold, state.open) = (true, false);
        Ok(())
    }

    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        self.lock().mark = Some(mark);
        Ok(())
    }

    fn release(&self, token: &ReleaseToken) {
        let mut state = self.lock();
        if token.opens_gate() {
            (state.open, state.hold) = (true, false);
        } else {
            state.through = state.through.max(Some(token.through()));
        }
    }

    fn level(&self) -> GateLevel {
        GateLevel::default()
    }

    fn bound_bytes(&self) -> u64 {
        u64::MAX
    }

    /// The buffers go with the end of tracking, if their packets may leave.
    fn detach(&self) -> Result<(), GateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::time::Duration;

    use romulus_checkpoint::Generation;
    use romulus_checkpoint::arbiter::{Ownership, Record, solo_grant};

    use super::*;

    /// Answers each command, after it was looked at.
    fn be_qemu(link: UnixStream, look: impl Fn(&str)) {
        let mut answers = link.try_clone().unwrap();
        writeln!(answers, r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#).unwrap();
        for line in BufReader::new(link).lines().map_while(Result::ok) {
            look(&line);
            let command: serde_json::Value = serde_json::from_str(&line).unwrap();
            writeln!(answers, r#"{{"return": {{}}, "id": {}}}"#, command["id"]).unwrap();
        }
    }

    #[test]
    fn who_asks_never_waits_for_qemu() {
        let ownership = Ownership::Solo { primary: "here".into() };
        let record = Record { ownership, generation: Generation(1), nonce: 1 };
        let opens = ReleaseToken::solo(&solo_grant(&record, "here").unwrap());
        let card = Card {
            nic: "net0".into(),
            netdev: "n0".into(),
            kind: "user".into(),
            mac: None,
            tap: None,
            queues: 1,
            vhost: false,
        };
        let gate = BufferGate::new(vec![card], vec!["n0".into()]);
        let (here, there) = UnixStream::pair().unwrap();
        let asking = gate.clone();
        // It asks while the command is under way; the answer waits for it.
        let qemu = std::thread::spawn(move || {
            be_qemu(there, |command| {
                if command.contains("object-add") {
                    asking.release(&opens);
                    asking.hold().unwrap();
                    assert_eq!(asking.status().len(), 1);
                }
            });
        });
        let mut client = Client::over(here, Path::new("test"), Duration::from_secs(2)).unwrap();
        gate.hold().unwrap();
        gate.mark(GateMark(1)).unwrap();
        gate.serve_mark(&mut client).unwrap();
        assert!(gate.status()[0].holding, "the later hold has the last word");
        gate.serve(&mut client).unwrap();
        assert!(gate.status()[0].holding);
        drop(client);
        qemu.join().unwrap();
    }
}
