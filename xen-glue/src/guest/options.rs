//! How to attach to a domain.

use std::time::Duration;

use romulus_host::gate::GateChoices;

use crate::discover::refusal::Allowances;

/// Settings of a [`XenGuest`](super::XenGuest).
#[derive(Clone, Debug)]
pub struct XenOptions {
    /// The domain's number or name.
    pub domain: String,
    /// The guest's name; default: the domain's.
    pub name: Option<String>,
    /// What would be refused otherwise.
    pub allowances: Allowances,
    /// Which cards' output is held; the caller installs the gates that
    /// [`XenGuest::gates`](super::XenGuest::gates) then asks for. Default `None`: the caller has no
    /// gates, and a domain with a network card is refused.
    pub gates: Option<GateChoices>,
    /// Greatest length of the state of CPU and devices, in bytes. Default 4 MiB.
    pub state_max_bytes: u64,
    /// How long the guest may take to suspend itself. Default 10 s; its kernel may need long under load.
    /// An HVM domain gets [`HVM_PATIENCE`] times that.
    pub suspend_timeout: Duration,
}

/// Its kernel puts emulated devices to sleep and wakes them, by accesses that the device model answers
/// one by one.
pub const HVM_PATIENCE: u32 = 3;

impl XenOptions {
    /// The defaults for a domain.
    pub fn new(domain: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            name: None,
            allowances: Allowances::default(),
            gates: None,
            state_max_bytes: 4 * 1024 * 1024,
            suspend_timeout: Duration::from_secs(10),
        }
    }
}
