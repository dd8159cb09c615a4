//! The seam that the checkpoint engine sees.

use std::time::{Duration, Instant};

use romulus_checkpoint::guest::{Guest, GuestError, GuestEvent};
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_checkpoint::{Extent, GuestLayout};
use romulus_transport::Memory;

use super::dirty::DirtyLog;
use super::options::HVM_PATIENCE;
use super::state::StateSaver;
use super::suspend::{Patience, Suspender, Waited};
use super::{Tracking, XenGuest};
use crate::domain::{self, Xen};
use crate::error::XenError;

fn not_now(what: &str, why: &str) -> GuestError {
    GuestError::Failed { what: what.into(), why: why.into() }
}

impl Guest for XenGuest {
    fn name(&self) -> &str {
        &self.name
    }

    fn layout(&self) -> &GuestLayout {
        &self.layout
    }

    fn machine(&self) -> &MachineIdentity {
        &self.machine
    }

    fn memory(&self) -> &[Memory] {
        &self.memory
    }

    /// A NIC cannot be given another domain's pages.
    fn memory_registrable(&self) -> bool {
        false
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        if self.tracking.is_some() {
            return Ok(());
        }
        let outcome = self.start();
        outcome.map_err(|error| error.guest("starting to log the domain's writes"))
    }

    fn stop_tracking(&mut self) -> Result<(), GuestError> {
        self.let_go().map_err(|error| error.guest("ending the log of the domain's writes"))
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.detail.clear();
        let Some(tracking) = &self.tracking else {
            return Err(not_now("pausing the domain", "tracking is not started"));
        };
        let start = Instant::now();
        tracking.suspender.ask().map_err(|error| error.guest("pausing the domain"))?;
        self.in_doubt = true;
        self.detail.note("xen_ask", start);
        let start = Instant::now();
        let patience = if self.device_model.is_some() { HVM_PATIENCE } else { 1 };
        let limit = self.options.suspend_timeout * patience;
        let ended = tracking.suspender.wait(limit);
        self.detail.note("xen_suspend", start);
        match ended {
            Ok(Waited::Suspended) => {
                self.in_doubt = false;
                self.suspended = true;
                self.patience = Patience::default();
                self.stop_device_model()
            }
            Ok(Waited::Otherwise(info)) => {
                self.in_doubt = false;
                self.events.look(self.domid, Some(&info), false);
                Err(not_now("pausing the domain", "it has come to an end by itself"))
            }
            Ok(Waited::TooLong { paused }) => {
                Err(self.patience.too_long(self.domid, limit, paused).guest("pausing the domain"))
            }
            Err(error) => Err(error.guest("pausing the domain")),
        }
    }

    fn save_state(&mut self, into: &Memory) -> Result<u64, GuestError> {
        if !self.suspended {
            return Err(not_now("saving state", "the domain is not paused"));
        }
        let Some(tracking) = &mut self.tracking else {
            return Err(not_now("saving state", "tracking is not started"));
        };
        let start = Instant::now();
        let outcome = tracking.saver.save(&self.xen, self.domid, self.device_model.as_ref(), into);
        self.detail.note("xen_context", start);
        outcome.map_err(|error| error.guest("saving the domain's state"))
    }

    fn collect(&mut self, dirty: &mut Vec<Extent>) -> Result<(), GuestError> {
        let Some(tracking) = &mut self.tracking else {
            return Err(not_now("collecting dirty pages", "nothing is tracked"));
        };
        let start = Instant::now();
        // Looked at first: what is read from the log is lost when a look behind it fails.
        let steady = if self.suspended { check_memory(&self.xen, self.domid, self.pages) } else { Ok(()) };
        let outcome = steady.and_then(|()| tracking.log.collect(&self.frames, dirty));
        if self.suspended {
            self.detail.note("xen_log", start);
        }
        outcome.map_err(|error| error.guest("collecting dirty pages"))
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        let start = Instant::now();
        if (self.suspended || self.in_doubt) && (self.events.is_over() || self.is_gone()) {
            // Nobody is there to run on; what came of it is told by `poll_event`.
            (self.suspended, self.in_doubt) = (false, false);
            return Ok(());
        }
        let outcome = self.run_on();
        self.detail.note("xen_resume", start);
        outcome.map_err(|error| error.guest("resuming the domain"))
    }

    fn leave_paused(&mut self) {
        self.stays_paused = self.suspended;
    }

    fn poll_event(&mut self) -> Option<GuestEvent> {
        if let Some(event) = self.events.next() {
            return Some(event);
        }
        match self.xen.control.domain(self.domid) {
            Ok(info) => {
                let info = info.filter(|info| info.uuid == self.uuid);
                let ours = self.suspended || self.in_doubt;
                self.events.look(self.domid, info.as_ref(), ours);
            }
            Err(error) => tracing::warn!(%error, "looking at the domain"),
        }
        self.events.next()
    }

    fn destroy(&mut self) -> Result<(), GuestError> {
        self.events.silence();
        // Never to run here again, destroyed or not.
        self.stays_paused = true;
        if self.is_gone() {
            return Ok(());
        }
        domain::destroy(&self.xen.control, self.domid).map_err(|error| error.guest("destroying the domain"))
    }

    fn last_pause_detail(&self) -> &[(&'static str, Duration)] {
        self.detail.steps()
    }
}

impl XenGuest {
    /// Of a domain that is suspended, so that nothing asks the device model any more.
    fn stop_device_model(&mut self) -> Result<(), GuestError> {
        let Some(model) = &mut self.device_model else { return Ok(()) };
        let start = Instant::now();
        let outcome = model.stop_and_save();
        self.detail.note("xen_device_model", start);
        outcome.map_err(|error| error.guest("stopping the domain's device model"))
    }

    fn start(&mut self) -> Result<(), XenError> {
        let log = DirtyLog::start(&self.xen, self.domid, &self.claim, &self.frames)?;
        // Behind the hypervisor's: what is told of is put into that log.
        let told = self.device_model.as_mut().map_or(Ok(()), |model| model.tell_writes(true));
        let rest = told
            .and_then(|()| StateSaver::new(&self.xen, self.domid, self.device_model.is_some()))
            .and_then(|saver| Ok((saver, Suspender::start(&self.xen, self.domid, &self.claim)?)));
        match rest {
            Ok((saver, suspender)) => {
                self.tracking = Some(Tracking { suspender, log, saver });
                Ok(())
            }
            Err(error) => {
                let model = self.device_model.as_mut().map_or(Ok(()), |model| model.tell_writes(false));
                let logged = log.stop().and(model);
                let undone = self.put_back(logged, self.xen.control.tell_suspension(self.domid, 0));
                if let Err(error) = undone {
                    tracing::warn!(%error, "taking back a failed start of tracking");
                }
                Err(error)
            }
        }
    }
}

/// The pages that are mapped must be the ones that it has.
fn check_memory(xen: &Xen, domid: u32, mapped: u64) -> Result<(), XenError> {
    let pages = xen.control.domain(domid)?.ok_or(XenError::Gone { domid })?.pages;
    if pages == mapped {
        return Ok(());
    }
    Err(XenError::Refused(format!(
        "domain {domid} had {mapped} pages when its protection began and has {pages} now (ballooning?): protect it \
         again, and leave its memory as it is (maxmem equal to memory)"
    )))
}
