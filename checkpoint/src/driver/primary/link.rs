//! One established connection to the backup.

use std::sync::Arc;

use romulus_transport::{Endpoint, RegionId, TransportError};

use super::shared::Shared;
use crate::ids::Identity;

/// An endpoint and what is registered with it.
pub(super) struct Link {
    /// The session's identity on this connection.
    pub identity: Identity,
    /// The connection.
    pub endpoint: Arc<dyn Endpoint>,
    /// The guest's regions; empty where its memory cannot be registered.
    pub guest: Vec<RegionId>,
    /// Staging memory.
    pub staging: RegionId,
    /// Heads of slots.
    pub heads: RegionId,
    /// States.
    pub states: RegionId,
}

impl Link {
    /// Registers all memory that is sent from.
    pub fn new(
        identity: Identity,
        endpoint: Arc<dyn Endpoint>,
        shared: &Shared,
    ) -> Result<Self, TransportError> {
        let registrable = if shared.registrable { &shared.guest_memory[..] } else { &[] };
        let guest =
            registrable.iter().map(|memory| endpoint.register(memory.clone())).collect::<Result<_, _>>()?;
        Ok(Self {
            identity,
            guest,
            staging: endpoint.register(shared.staging.memory().clone())?,
            heads: endpoint.register(shared.slots.heads.clone())?,
            states: endpoint.register(shared.slots.states.clone())?,
            endpoint,
        })
    }

    /// Whether what is placed under `identity` may be sent on this connection.
    pub fn carries(&self, identity: &Identity) -> bool {
        self.identity.connection == identity.connection && self.identity.session == identity.session
    }
}
