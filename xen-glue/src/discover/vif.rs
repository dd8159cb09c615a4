//! A domain's network cards: what xenstore says of their back ends.

use romulus_checkpoint::gate::GateError;
use romulus_host::gate::{GateChoice, GateChoices, Mac, NicSpec};

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    /// Its number in the domain.
    pub devid: u32,
    /// Its address, if xenstore has one that can be read.
    pub mac: Option<Mac>,
    /// The kernel interface of its back end.
    pub interface: String,
    /// The domain in which its back end runs.
    pub backend: u32,
}

impl Vif {
    /// From what xenstore has below `/libxl/DOMID/device/vif/DEVID` and below its back end.
    pub fn read(domid: u32, devid: u32, backend: u32, mac: Option<&str>, interface: Option<&str>) -> Self {
        let interface = interface.filter(|name| !name.is_empty());
        Self {
            devid,
            mac: mac.and_then(parse_mac),
            interface: interface.map_or_else(|| format!("vif{domid}.{devid}"), str::to_owned),
            backend,
        }
    }

    /// As the gates know it.
    pub fn spec(&self) -> NicSpec {
        NicSpec { nic: self.name(), tap: self.interface.clone(), mac: self.mac.unwrap_or_default() }
    }

    /// What people call it.
    pub fn name(&self) -> String {
        format!("vif{}", self.devid)
    }
}

/// The gate of one card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VifGate {
    /// By traffic control on its back end's interface.
    Redirect(NicSpec),
    /// None, by the operator's word.
    Free(NicSpec),
}

/// Decides on the gate of each card; an error names all that stand in the way. `can_redirect` says
/// whether an interface's packets can be redirected.
pub fn plan(
    vifs: &[Vif],
    choices: &GateChoices,
    can_redirect: &dyn Fn(&NicSpec) -> Result<(), GateError>,
) -> Result<Vec<VifGate>, String> {
    let named = |vif: &Vif, name: &str| name == vif.name() || name == vif.interface;
    if let Some(name) = choices.stranger(|name| vifs.iter().any(|vif| named(vif, name))) {
        let known: Vec<String> =
            vifs.iter().map(|vif| format!("{} ({})", vif.name(), vif.interface)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(format!("--gate {name}: the domain's cards are: {known}"));
    }
    let mut gates = Vec::new();
    let mut reasons = Vec::new();
    for vif in vifs {
        let spec = vif.spec();
        if choices.of(&[&vif.name(), &vif.interface]) == GateChoice::None {
            gates.push(VifGate::Free(spec));
            continue;
        }
        let trouble = match (vif.backend, vif.mac) {
            (0, Some(_)) => can_redirect(&spec).err().map(|error| error.to_string()),
            (0, None) => Some(format!("card {}: xenstore has no address of it", spec.nic)),
            (domain, _) => {
                Some(format!("card {}: its back end runs in domain {domain} and not here", spec.nic))
            }
        };
        match trouble {
            None => gates.push(VifGate::Redirect(spec)),
            Some(why) => {
                reasons.push(format!("{why}; or let its output go unheld: --gate {}=none", spec.nic))
            }
        }
    }
    if reasons.is_empty() { Ok(gates) } else { Err(reasons.join("; ")) }
}

/// The domain in which a back end runs, by its path in xenstore: `/local/domain/0/backend/vif/3/0`.
pub fn backend_domain(path: &str) -> Option<u32> {
    let (domain, rest) = path.strip_prefix("/local/domain/")?.split_once('/')?;
    rest.starts_with("backend/").then(|| domain.parse().ok())?
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut parts = text.trim().split(':');
    let mut mac = Mac::default();
    for byte in &mut mac {
        *byte =
            parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(vifs: &[Vif], choices: &[&str], bridged: bool) -> Result<Vec<VifGate>, String> {
        let choices = GateChoices::parse(choices.iter().copied())?;
        let can = |_: &NicSpec| if bridged { Ok(()) } else { Err(GateError("no bridge".into())) };
        plan(vifs, &choices, &can)
    }

    #[test]
    fn a_back_ends_domain_is_in_its_path() {
        assert_eq!(backend_domain("/local/domain/0/backend/vif/3/0"), Some(0));
        assert_eq!(backend_domain("/local/domain/12/backend/vif/3/0"), Some(12));
        for path in ["", "/local/domain/0", "/local/domain/x/backend/vif/3/0", "/local/domain/0/device/vif/0"]
        {
            assert_eq!(backend_domain(path), None, "{path}");
        }
    }

    #[test]
    fn every_card_is_held_unless_said_otherwise() {
        let vifs = [
            Vif::read(3, 0, 0, Some("00:16:3e:01:02:03"), None),
            Vif::read(3, 1, 0, Some("00:16:3e:01:02:04"), Some("inner")),
        ];
        let gates = planned(&vifs, &[], true).unwrap();
        assert!(
            matches!(&gates[..], [VifGate::Redirect(a), VifGate::Redirect(b)] if a.tap == "vif3.0" && b.tap == "inner")
        );
        let gates = planned(&vifs, &["all=none", "vif3.0=commit"], true).unwrap();
        assert!(matches!(&gates[..], [VifGate::Redirect(_), VifGate::Free(_)]));
        assert!(matches!(
            planned(&vifs, &["vif0=none", "inner=none"], false).unwrap()[..],
            [VifGate::Free(_), _]
        ));
        assert!(planned(&vifs, &["vif9=none"], true).unwrap_err().contains("vif0 (vif3.0), vif1 (inner)"));
    }

    #[test]
    fn what_cannot_be_held_is_refused_with_all_reasons() {
        let elsewhere = Vif::read(3, 0, 7, Some("00:16:3e:01:02:03"), None);
        let nameless = Vif::read(3, 1, 0, Some("nonsense"), None);
        let text = planned(&[elsewhere, nameless], &[], true).unwrap_err();
        assert!(
            text.contains("domain 7") && text.contains("no address") && text.contains("--gate vif1=none"),
            "{text}"
        );
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_mac("00:16:3e:00:00:ff"), Some([0, 0x16, 0x3e, 0, 0, 0xff]));
        for wrong in ["", "00:16", "00:16:3e:00:00:ff:00", "xx:00:00:00:00:00", "0:0:0:0:0:0"] {
            assert_eq!(parse_mac(wrong), None);
        }
    }
}
