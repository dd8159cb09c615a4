//! A running domain as a guest.

mod attach;
mod dirty;
mod events;
mod options;
mod seam;
mod state;
mod suspend;

use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::GuestLayout;
use romulus_checkpoint::pause_detail::PauseDetail;
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_transport::Memory;

pub(crate) use attach::vifs;
pub(crate) use dirty::stop as end_log;
pub use options::{HVM_PATIENCE, XenOptions};
pub(crate) use suspend::{FREEZE_LIMIT, SuspendRequest};

use crate::claim::Claim;
use crate::device_model::DeviceModel;
use crate::discover::vif::VifGate;
use crate::domain::Xen;
use crate::error::XenError;
use crate::layout::FrameMap;
use dirty::DirtyLog;
use events::Events;
use state::StateSaver;
use suspend::{Patience, Suspender};

/// How often xenstored is told that the domain runs: it may have taken a suspension for an end when
/// another domain ended meanwhile, and would not tell of the domain's own end then.
const TELL_STORE_EVERY: Duration = Duration::from_secs(1);

/// A PVH or HVM domain that somebody else started.
///
/// Each run of its frames is a region; see [`crate::layout`]. All of its memory is mapped once,
/// readable only, for as long as this value lives.
pub struct XenGuest {
    name: String,
    domid: u32,
    uuid: [u8; 16],
    xen: Arc<Xen>,
    layout: GuestLayout,
    machine: MachineIdentity,
    memory: Vec<Memory>,
    frames: FrameMap,
    /// Pages that it had when its memory was mapped.
    pages: u64,
    gates: Vec<VifGate>,
    claim: Claim,
    /// What emulates an HVM domain's devices.
    device_model: Option<DeviceModel>,
    tracking: Option<Tracking>,
    /// Between a successful pause and resume.
    suspended: bool,
    /// A suspension was asked for and may yet happen.
    in_doubt: bool,
    /// Another host may come to run it: it stays paused when this value goes.
    stays_paused: bool,
    events: Events,
    patience: Patience,
    /// When xenstored was last told that it runs.
    store_told: Instant,
    detail: PauseDetail,
    options: XenOptions,
}

/// What there is between start and end of tracking.
struct Tracking {
    suspender: Suspender,
    log: DirtyLog,
    saver: StateSaver,
}

impl XenGuest {
    /// Its number.
    pub fn domid(&self) -> u32 {
        self.domid
    }

    /// Names it for [`crate::XenHandle`].
    pub fn access(&self) -> String {
        crate::handle::access(self.domid, &self.uuid)
    }

    /// The gates that its cards are to have.
    pub fn gates(&self) -> &[VifGate] {
        &self.gates
    }

    /// How it is suspended, for reports.
    pub fn suspends_by(&self) -> &'static str {
        self.tracking.as_ref().map_or("", |tracking| tracking.suspender.method())
    }

    /// Whether it is known to be gone; then nothing of it can be put back, and need not be.
    fn is_gone(&self) -> bool {
        match self.xen.control.domain(self.domid) {
            Ok(info) => info.is_none_or(|info| info.dying || info.uuid != self.uuid),
            Err(_) => false,
        }
    }

    /// Undoes a suspension, whether it happened or is in doubt.
    fn run_on(&mut self) -> Result<(), XenError> {
        if self.in_doubt {
            let Some(tracking) = &self.tracking else { return Ok(()) };
            self.suspended |= tracking.suspender.take_back()?;
            self.in_doubt = false;
        }
        if self.suspended {
            // It answers its guest from the first instruction on.
            let model = self.device_model.as_mut().map_or(Ok(()), DeviceModel::run_on);
            self.xen.control.resume_fast(self.domid)?;
            self.suspended = false;
            if let Err(error) = model {
                // The next pause meets it again, and ends protection in order.
                tracing::error!(%error, domid = self.domid, "the domain runs, and its device model does not");
            }
            if self.store_told.elapsed() >= TELL_STORE_EVERY {
                self.tell_store();
            }
        }
        self.stays_paused = false;
        Ok(())
    }

    /// Puts back everything that was changed in the domain.
    fn let_go(&mut self) -> Result<(), XenError> {
        let Some(tracking) = self.tracking.take() else { return Ok(()) };
        if self.is_gone() {
            return Ok(());
        }
        let model = self.device_model.as_mut().map_or(Ok(()), |model| {
            // An earlier attempt may not have reached it.
            if !self.stays_paused {
                model.run_on()?;
            }
            model.tell_writes(false)
        });
        let (logged, told) = (tracking.log.stop(), tracking.suspender.stop());
        self.tell_store();
        self.put_back(logged.and(model), told)
    }

    /// The domain is nobody's, if nothing of its protection is left in it; else the next protector has
    /// to know of it.
    fn put_back(&self, logged: Result<(), XenError>, told: Result<(), XenError>) -> Result<(), XenError> {
        logged.and(told)?;
        self.claim.give_back(&self.xen.store)
    }

    /// See [`Store::resumed`](crate::library::Store::resumed).
    fn tell_store(&mut self) {
        self.store_told = Instant::now();
        if let Err(error) = self.xen.store.resumed(self.domid) {
            tracing::warn!(%error, "the domain's own end may go unnoticed by its toolstack");
        }
    }
}

impl Drop for XenGuest {
    fn drop(&mut self) {
        if (self.suspended || self.in_doubt)
            && !self.stays_paused
            && !self.is_gone()
            && let Err(error) = self.run_on()
        {
            tracing::error!(%error, domid = self.domid, "domain left suspended");
        }
        if let Err(error) = self.let_go() {
            tracing::warn!(%error, domid = self.domid, "detaching from the domain");
        }
    }
}
