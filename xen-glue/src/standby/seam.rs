//! The standby as the backup's driver sees it.

use std::sync::{Arc, Mutex, PoisonError};

use romulus_checkpoint::GuestLayout;
use romulus_checkpoint::standby::{CopyOnlyHomes, ImageRegion, Standby, StandbyError};
use romulus_checkpoint::wire::message::MachineIdentity;

use super::config::StandbyAllowances;
use super::ready::Ready;
use crate::domain::Xen;
use crate::error::XenError;
use crate::layout::FrameMap;
use crate::machine::Machine;
use crate::records::EpochState;

/// What others may know of a standby while the driver has it.
#[derive(Clone, Debug, Default)]
pub struct XenStandbyInfo {
    domain: Arc<Mutex<Option<(u32, String)>>>,
}

impl XenStandbyInfo {
    /// Number and name of the standby's domain, if there is one.
    pub fn domain(&self) -> Option<(u32, String)> {
        self.domain.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, domain: Option<(u32, String)>) {
        *self.domain.lock().unwrap_or_else(PoisonError::into_inner) = domain;
    }
}

/// The standby. Ends its domain when it is dropped, unless that was activated.
pub struct XenStandby {
    xen: Arc<Xen>,
    may_have: StandbyAllowances,
    guest: Option<MachineIdentity>,
    ready: Option<Ready>,
    may_have_run: bool,
    info: XenStandbyInfo,
}

impl XenStandby {
    /// On this host's Xen.
    pub fn open(may_have: StandbyAllowances) -> Result<Self, XenError> {
        let xen = Arc::new(Xen::open()?);
        Ok(Self {
            xen,
            may_have,
            guest: None,
            ready: None,
            may_have_run: false,
            info: XenStandbyInfo::default(),
        })
    }

    /// Looks after the standby while a driver has it.
    pub fn info(&self) -> XenStandbyInfo {
        self.info.clone()
    }

    fn ready(&self) -> Result<&Ready, XenError> {
        self.ready.as_ref().ok_or_else(|| XenError::failed("the standby", "none is prepared"))
    }

    fn ready_mut(&mut self) -> Result<&mut Ready, XenError> {
        self.ready.as_mut().ok_or_else(|| XenError::failed("the standby", "none is prepared"))
    }

    fn build(&mut self, layout: &GuestLayout) -> Result<MachineIdentity, XenError> {
        let identity = self
            .guest
            .clone()
            .ok_or_else(|| XenError::failed("building the standby", "no guest has been described"))?;
        let machine = Machine::of_identity(&identity)?;
        let frames = FrameMap::of_layout(layout)
            .ok_or_else(|| XenError::Refused("the guest's memory is not that of a Xen domain".into()))?;
        if machine.xen != self.xen.version {
            // Nothing is built: the driver names the difference.
            return Ok(MachineIdentity { hypervisor: format!("Xen {}", self.xen.version), ..identity });
        }
        let ready = Ready::build(Arc::clone(&self.xen), &machine, &frames, self.may_have)?;
        self.info.set(Some((ready.domid(), ready.names().name.clone())));
        self.ready = Some(ready);
        Ok(identity)
    }

    fn run(&mut self, state: &[u8]) -> Result<(), XenError> {
        let state = EpochState::read(state)?;
        let began = std::time::Instant::now();
        self.ready_mut()?.load(&state)?;
        let loaded = began.elapsed();
        self.may_have_run = true;
        self.ready_mut()?.run()?;
        let ready = self.ready()?;
        tracing::info!(?loaded, ran = ?began.elapsed(), domid = ready.domid(), "the domain runs");
        let mut name = ready.names().guest.clone();
        if let Err(error) = ready.take_name() {
            tracing::warn!(%error, "the domain runs under its standby's name");
            name.clone_from(&ready.names().name);
        }
        self.info.set(Some((ready.domid(), name)));
        // It is not the standby's to end any more.
        self.ready = None;
        Ok(())
    }
}

impl Standby for XenStandby {
    fn meet(&mut self, guest: &MachineIdentity) -> Result<(), StandbyError> {
        Machine::of_identity(guest).map_err(|error| error.standby("reading the guest's description"))?;
        self.guest = Some(guest.clone());
        Ok(())
    }

    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError> {
        self.abandon();
        if !image.is_empty() {
            return Err(StandbyError {
                what: "building the standby".into(),
                why: "a Xen domain's memory cannot be lent: the primary must ask for copy-only homes".into(),
            });
        }
        self.may_have_run = false;
        self.build(layout).map_err(|error| {
            self.abandon();
            error.standby("building the standby")
        })
    }

    fn copy_only_homes(&self) -> Option<CopyOnlyHomes> {
        self.ready.as_ref().map(Ready::homes)
    }

    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        let mut load = || -> Result<(), XenError> {
            let state = EpochState::read(state)?;
            let ready = self.ready_mut()?;
            ready.check()?;
            ready.load(&state)?;
            ready.renew()
        };
        load().map_err(|error| error.standby("trial load"))
    }

    fn check(&mut self) -> Result<(), StandbyError> {
        self.ready_mut().and_then(Ready::check).map_err(|error| error.standby("looking after the standby"))
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        self.run(state).map_err(|error| error.standby("starting the domain"))
    }

    fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    fn abandon(&mut self) {
        self.info.set(None);
        if let Some(mut ready) = self.ready.take()
            && let Err(error) = ready.destroy()
        {
            tracing::warn!(%error, "the standby's domain could not be destroyed");
        }
    }
}

impl Drop for XenStandby {
    fn drop(&mut self) {
        self.abandon();
    }
}
