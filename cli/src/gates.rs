//! The output gates of a guest's network cards.

use std::sync::Arc;

use romulus_checkpoint::arbiter::SoloGrant;
use romulus_checkpoint::gate::OutputGate;
use romulus_host::gate::{GateSet, GateStatus, GuardedRedirect, NicSpec, RedirectGate, RedirectOptions};
use romulus_host::guard::GateHandle;
use romulus_qemu::gates::{BufferGate, CardGate};
use romulus_qemu::{QemuGuest, QemuHandle};

use crate::exit::{Code, Failure};

/// What a guard must know of the gates, as the text in its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct GuardedGates {
    redirect: Vec<NicSpec>,
    /// Ids of back ends whose packets QEMU holds.
    buffers: Vec<String>,
}

/// The gates of all cards.
#[derive(Clone)]
pub struct Gates {
    redirect: Option<Arc<RedirectGate>>,
    /// Of cards that QEMU itself holds.
    buffers: Option<BufferGate>,
    /// Taps that may have had a gate before.
    former: Vec<NicSpec>,
    guarded: GuardedGates,
    free: Vec<GateStatus>,
}

impl Gates {
    /// Makes what a QEMU guest's cards need. Its packets are not touched yet.
    pub fn of_qemu(guest: &QemuGuest, options: &RedirectOptions) -> Result<Self, Failure> {
        let mut specs = Vec::new();
        let (mut free, mut former) = (Vec::new(), Vec::new());
        for gate in guest.gates() {
            match gate {
                CardGate::Redirect(spec) => specs.push(spec.clone()),
                // The guest has the gate of all these.
                CardGate::Buffer(card) => former.extend(card.on_tap()),
                CardGate::Free(card) => {
                    former.extend(card.on_tap());
                    free.push(GateStatus {
                        nic: card.nic.clone(),
                        kind: "none".into(),
                        interface: card.tap.clone().unwrap_or_else(|| card.netdev.clone()),
                        ..GateStatus::default()
                    });
                }
            }
        }
        let redirect = redirect(&specs, options)?;
        let buffers = guest.buffers();
        let netdevs = buffers.cards().iter().map(|card| card.netdev.clone()).collect();
        let guarded = GuardedGates { redirect: specs, buffers: netdevs };
        Ok(Self { redirect, buffers: Some(buffers), former, guarded, free })
    }

    /// Makes what a Xen domain's cards need. Its packets are not touched yet.
    #[cfg(feature = "xen")]
    pub fn of_xen(
        gates: &[romulus_xen::discover::vif::VifGate],
        options: &RedirectOptions,
    ) -> Result<Self, Failure> {
        use romulus_xen::discover::vif::VifGate;

        let (mut specs, mut former) = (Vec::new(), Vec::new());
        for gate in gates {
            match gate {
                VifGate::Redirect(spec) => specs.push(spec.clone()),
                VifGate::Free(spec) => former.push(spec.clone()),
            }
        }
        let free = former.iter().map(|spec| GateStatus {
            nic: spec.nic.clone(),
            kind: "none".into(),
            interface: spec.tap.clone(),
            ..GateStatus::default()
        });
        let free = free.collect();
        let redirect = redirect(&specs, options)?;
        let guarded = GuardedGates { redirect: specs, buffers: Vec::new() };
        Ok(Self { redirect, buffers: None, former, guarded, free })
    }

    /// Whether QEMU itself holds packets: it can for one epoch on its way.
    pub fn hold_in_qemu(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| !buffers.cards().is_empty())
    }

    /// As the driver needs them.
    pub fn gate(&self) -> Arc<dyn OutputGate> {
        let mut gates: Vec<Arc<dyn OutputGate>> = Vec::new();
        if let Some(gate) = &self.redirect {
            gates.push(gate.clone());
        }
        // Also where it holds nothing: it clears what a predecessor left in QEMU.
        if let Some(buffers) = &self.buffers {
            gates.push(Arc::new(buffers.clone()));
        }
        gates.push(Arc::new(GuardedRedirect::new(self.former.clone())));
        Arc::new(GateSet::new(gates))
    }

    /// How each card's gate stands.
    pub fn status(&self) -> Vec<GateStatus> {
        let mut all = self.redirect.as_ref().map_or_else(Vec::new, |gate| gate.status());
        all.extend(self.buffers.iter().flat_map(BufferGate::status));
        all.extend(self.free.iter().cloned());
        all
    }

    /// What the guard has to know.
    pub fn for_guard(&self) -> Option<String> {
        if self.guarded == GuardedGates::default() {
            return None;
        }
        serde_json::to_string(&self.guarded).ok()
    }
}

/// The gate of cards on kernel interfaces.
fn redirect(specs: &[NicSpec], options: &RedirectOptions) -> Result<Option<Arc<RedirectGate>>, Failure> {
    if specs.is_empty() {
        return Ok(None);
    }
    let gate =
        RedirectGate::new(specs, options).map_err(|error| Failure::new(Code::Refused, error.to_string()))?;
    Ok(Some(Arc::new(gate)))
}

/// The guard's hold of the gates, from the text of [`Gates::for_guard`]. `qemu` reaches the guest.
pub fn guarded(text: &str, qemu: Option<QemuHandle>) -> Result<Box<dyn GateHandle>, String> {
    let gates: GuardedGates = serde_json::from_str(text).map_err(|e| format!("the gate's settings: {e}"))?;
    Ok(Box::new(Guarded { redirect: GuardedRedirect::new(gates.redirect), qemu, buffers: gates.buffers }))
}

struct Guarded {
    redirect: GuardedRedirect,
    qemu: Option<QemuHandle>,
    buffers: Vec<String>,
}

impl GateHandle for Guarded {
    fn open(&mut self, grant: &SoloGrant) -> Result<(), String> {
        self.redirect.open(grant)?;
        match &mut self.qemu {
            Some(qemu) if !self.buffers.is_empty() => {
                qemu.open_buffers(&self.buffers).map_err(|e| e.to_string())
            }
            _ if self.buffers.is_empty() => Ok(()),
            _ => Err("QEMU holds packets, and its process is not known".into()),
        }
    }

    /// What QEMU held goes with it.
    fn clear(&mut self) -> Result<(), String> {
        self.redirect.clear()
    }
}
