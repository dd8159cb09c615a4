//! The output gates of a guest's network cards.

use std::sync::Arc;

use romulus_checkpoint::arbiter::SoloGrant;
use romulus_checkpoint::gate::OutputGate;
use romulus_host::gate::{
    GateSet, GateStatus, GuardedRedirect, NicSpec, RedirectGate, RedirectOptions, can_make_taps,
};
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
    buffers: BufferGate,
    /// Taps that may have had a gate before.
    former: Vec<NicSpec>,
    guarded: GuardedGates,
    free: Vec<GateStatus>,
}

impl Gates {
    /// Makes what the guest's cards need. Its packets are not touched yet.
    pub fn open(guest: &QemuGuest, options: &RedirectOptions) -> Result<Self, Failure> {
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
        let failed = |e: romulus_checkpoint::gate::GateError| Failure::new(Code::Refused, e.to_string());
        let redirect = match specs.is_empty() {
            true => None,
            false => {
                can_make_taps().map_err(|why| Failure::new(Code::Machine, why))?;
                Some(Arc::new(RedirectGate::new(&specs, options).map_err(failed)?))
            }
        };
        let buffers = guest.buffers();
        let netdevs = buffers.cards().iter().map(|card| card.netdev.clone()).collect();
        let guarded = GuardedGates { redirect: specs, buffers: netdevs };
        Ok(Self { redirect, buffers, former, guarded, free })
    }

    /// Whether QEMU itself holds packets: it can for one epoch on its way.
    pub fn hold_in_qemu(&self) -> bool {
        !self.buffers.cards().is_empty()
    }

    /// As the driver needs them.
    pub fn gate(&self) -> Arc<dyn OutputGate> {
        let mut gates: Vec<Arc<dyn OutputGate>> = Vec::new();
        if let Some(gate) = &self.redirect {
            gates.push(gate.clone());
        }
        // Also where it holds nothing: it clears what a predecessor left in QEMU.
        gates.push(Arc::new(self.buffers.clone()));
        gates.push(Arc::new(GuardedRedirect::new(self.former.clone())));
        Arc::new(GateSet::new(gates))
    }

    /// How each card's gate stands.
    pub fn status(&self) -> Vec<GateStatus> {
        let mut all = self.redirect.as_ref().map_or_else(Vec::new, |gate| gate.status());
        all.extend(self.buffers.status());
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
