//! Which gate holds the output of each of a guest's network cards.

mod buffer;
mod cards;

use romulus_checkpoint::gate::GateError;
use romulus_host::gate::{GateChoice, NicSpec};

pub(crate) use buffer::remove as remove_buffers;
pub use buffer::{BufferGate, objects_of};
pub use cards::{Card, cards};
pub use romulus_host::gate::GateChoices;

use crate::error::QemuError;

/// The gate of one card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CardGate {
    /// By traffic control on its tap.
    Redirect(NicSpec),
    /// Inside QEMU, in front of its back end.
    Buffer(Card),
    /// None, by the operator's word.
    Free(Card),
}

/// Decides on the gate of each card. `can_redirect` says whether a tap's output can be redirected.
pub fn plan(
    cards: &[Card],
    choices: &GateChoices,
    can_redirect: &dyn Fn(&NicSpec) -> Result<(), GateError>,
) -> Result<Vec<CardGate>, QemuError> {
    if let Some(name) =
        choices.stranger(|name| cards.iter().any(|card| name == card.nic || name == card.netdev))
    {
        let known: Vec<String> = cards.iter().map(|card| format!("{} ({})", card.nic, card.netdev)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(QemuError::Refused(format!(
            "--gate {name}: the guest's cards with a back end are: {known}"
        )));
    }
    let mut gates = Vec::new();
    let mut reasons = Vec::new();
    for card in cards {
        match choices.of(&[&card.nic, &card.netdev]) {
            GateChoice::None => gates.push(CardGate::Free(card.clone())),
            GateChoice::Commit => match held(card, can_redirect) {
                Ok(gate) => gates.push(gate),
                Err(why) => reasons.push(why),
            },
        }
    }
    if reasons.is_empty() { Ok(gates) } else { Err(QemuError::Refused(reasons.join("; "))) }
}

fn held(card: &Card, can_redirect: &dyn Fn(&NicSpec) -> Result<(), GateError>) -> Result<CardGate, String> {
    let free = format!("or let its output go unheld: --gate {}=none", card.nic);
    let tap_trouble = match card.on_tap() {
        Some(spec) => match can_redirect(&spec) {
            Ok(()) => return Ok(CardGate::Redirect(spec)),
            Err(why) => Some(why.to_string()),
        },
        None => None,
    };
    let inside = if card.vhost {
        Err("it uses vhost, past which QEMU cannot hold packets".to_owned())
    } else if card.queues > 1 {
        Err("it has several queues, for which QEMU has no buffer".to_owned())
    } else {
        Ok(CardGate::Buffer(card.clone()))
    };
    match (inside, tap_trouble) {
        (Ok(gate), None) => Ok(gate),
        (Ok(gate), Some(why)) => {
            tracing::info!("{why}; so QEMU itself holds the packets of card {}", card.nic);
            Ok(gate)
        }
        (Err(inside), Some(why)) => Err(format!("{why}; and {inside}; {free}")),
        (Err(inside), None) => {
            Err(format!("card {}: no tap of its was found, and {inside}; {free}", card.nic))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(nic: &str, tap: Option<&str>) -> Card {
        Card {
            nic: nic.into(),
            netdev: format!("{nic}-back"),
            kind: "tap".into(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            tap: tap.map(str::to_owned),
            queues: 1,
            vhost: false,
        }
    }

    fn planned(cards: &[Card], choices: &[&str], bridged: bool) -> Result<Vec<CardGate>, String> {
        let choices = GateChoices::parse(choices.iter().copied())?;
        let can = |_: &NicSpec| if bridged { Ok(()) } else { Err(GateError("no bridge".into())) };
        plan(cards, &choices, &can).map_err(|error| error.to_string())
    }

    #[test]
    fn every_card_is_held_unless_said_otherwise() {
        let cards = [card("net0", Some("tap0")), card("net1", None)];
        let gates = planned(&cards, &[], true).unwrap();
        assert!(matches!(&gates[..], [CardGate::Redirect(spec), CardGate::Buffer(_)] if spec.tap == "tap0"));
        let gates = planned(&cards, &["all=none", "net1-back=commit"], true).unwrap();
        assert!(matches!(&gates[..], [CardGate::Free(_), CardGate::Buffer(_)]));
        let gates = planned(&cards, &["net0=none"], true).unwrap();
        assert!(matches!(&gates[..], [CardGate::Free(_), CardGate::Buffer(_)]));
    }

    #[test]
    fn what_cannot_be_held_is_refused_with_all_reasons() {
        let mut fast = card("net0", Some("tap0"));
        fast.vhost = true;
        let text = planned(&[fast], &[], false).unwrap_err();
        assert!(
            text.contains("no bridge") && text.contains("vhost") && text.contains("--gate net0=none"),
            "{text}"
        );
        let mut wide = card("net0", None);
        wide.queues = 4;
        assert!(planned(&[wide], &[], true).unwrap_err().contains("several queues"));
        assert!(matches!(planned(&[card("n", Some("t"))], &[], false).unwrap()[..], [CardGate::Buffer(_)]));
    }

    #[test]
    fn wrong_choices_name_what_is_possible() {
        assert!(planned(&[], &["net0"], true).unwrap_err().contains("NIC=commit"));
        assert!(planned(&[], &["=none"], true).unwrap_err().contains("NIC=commit"));
        let text = planned(&[card("net0", None)], &["net7=none"], true).unwrap_err();
        assert!(text.contains("net7") && text.contains("net0 (net0-back)"), "{text}");
    }
}
