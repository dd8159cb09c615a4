//! The gate inside QEMU, for back ends without a kernel interface: two `filter-buffer` objects in a
//! row in front of a card's back end.
//!
//! What the guest sends waits in the first. At a mark the first is switched off and on, which moves
//! its packets to the second; at the ack the second is switched off and on, which lets them go. The
//! second holds all marks that are not acked, so it is emptied when the newest of them is; with one
//! epoch on its way at a time that is each ack.
//!
//! Everything is asked for here and carried out by the thread that has the guest, since a monitor
//! serves one client. A hold takes effect at the first mark after it, while the guest stands still:
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

/// The names of the two buffers of a back end.
pub fn objects_of(netdev: &str) -> [String; 2] {
    ["first", "second"].map(|which| format!("romulus-gate-{which}-{}", netdev.replace('#', ".")))
}

#[derive(Debug, Default)]
struct Asked {
    /// A predecessor's buffers are to go.
    clear: bool,
    /// Output is to be held from the next mark on.
    hold: bool,
    /// Everything may leave, and the buffers are to go.
    open: bool,
    mark: Option<GateMark>,
    through: Option<GateMark>,
}

#[derive(Debug, Default)]
struct State {
    asked: Asked,
    /// The buffers are there and hold.
    holding: bool,
    /// The newest mark whose packets the second buffers hold.
    in_second: Option<GateMark>,
    releases: u64,
}

/// The gate of the cards that QEMU itself has to hold. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct BufferGate {
    cards: Arc<[Card]>,
    /// All back ends that a predecessor may have left buffers in front of.
    netdevs: Arc<[String]>,
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
        let mut state = self.lock();
        if state.asked.clear {
            remove(client, self.netdevs.iter().flat_map(|netdev| objects_of(netdev)))?;
            state.asked.clear = false;
        }
        if self.cards.is_empty() {
            return Ok(());
        }
        if state.asked.open {
            self.remove(client)?;
            state.holding = false;
            state.in_second = None;
            state.asked = Asked { hold: state.asked.hold, ..Asked::default() };
        }
        let covered = state.in_second.zip(state.asked.through).is_some_and(|(held, through)| held <= through);
        if state.holding && covered {
            for card in self.cards.iter() {
                let [_, second] = objects_of(&card.netdev);
                off_and_on(client, &second)?;
            }
            state.in_second = None;
            state.releases += 1;
        }
        Ok(())
    }

    /// Carries out a mark, and a hold before it. The guest stands still.
    pub(crate) fn serve_mark(&self, client: &mut Client) -> Result<(), QemuError> {
        if self.cards.is_empty() {
            return Ok(());
        }
        self.serve(client)?;
        let mut state = self.lock();
        if state.asked.hold {
            if !state.holding {
                self.add(client)?;
            }
            state.holding = true;
            state.asked.hold = false;
        }
        let Some(mark) = state.asked.mark.take() else { return Ok(()) };
        if !state.holding {
            return Ok(());
        }
        for card in self.cards.iter() {
            let [first, _] = objects_of(&card.netdev);
            if let Err(error) = off_and_on(client, &first) {
                // Repeated by the next mark: what is in the second by now leaves later.
                state.in_second = Some(mark);
                return Err(error);
            }
        }
        state.in_second = Some(mark);
        Ok(())
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
        self.lock().asked.clear = true;
        Ok(())
    }

    /// Takes effect at the first mark.
    fn hold(&self) -> Result<(), GateError> {
        let mut state = self.lock();
        state.asked.hold = true;
        // A grant that was not made use of yet is void: nothing of it has left.
        if state.holding {
            state.asked.open = false;
        }
        Ok(())
    }

    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        self.lock().asked.mark = Some(mark);
        Ok(())
    }

    fn release(&self, token: &ReleaseToken) {
        let mut state = self.lock();
        if token.opens_gate() {
            state.asked.open = true;
            state.asked.hold = false;
        } else {
            let through = state.asked.through.max(Some(token.through()));
            state.asked.through = through;
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
