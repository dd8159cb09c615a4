//! Which frames a domain has written: Xen's log-dirty mode.

use std::io;
use std::sync::Arc;

use romulus_checkpoint::Extent;

use crate::claim::{Claim, Owner};
use crate::domain::Xen;
use crate::error::XenError;
use crate::layout::FrameMap;
use crate::library::Bitmap;

/// A log that is kept.
pub(super) struct DirtyLog {
    xen: Arc<Xen>,
    domid: u32,
    bitmap: Bitmap,
}

impl DirtyLog {
    /// Begins it. Refused where somebody else keeps one: a migration under way, or another protector.
    pub fn start(xen: &Arc<Xen>, domid: u32, claim: &Claim, frames: &FrameMap) -> Result<Self, XenError> {
        let bits = frames.runs().last().map_or(0, |run| run.end());
        let bitmap = Bitmap::new(&xen.control, bits)?;
        let owner = claim.owner(&xen.store)?;
        if let Owner::Alive(pid) = owner
            && pid != std::process::id()
        {
            return Err(XenError::Refused(format!("domain {domid} is protected by process {pid} already")));
        }
        if let Err(error) = xen.control.log_dirty_on(domid) {
            if owner == Owner::Nobody {
                return Err(refused(domid, &error));
            }
            // A protector that died has left it on.
            tracing::info!(domid, "taking over the log of a protector that died");
            let again = xen.control.log_dirty_off(domid).and_then(|()| xen.control.log_dirty_on(domid));
            again.map_err(|error| refused(domid, &error))?;
        }
        Ok(Self { xen: Arc::clone(xen), domid, bitmap })
    }

    /// Appends what was written since the last call, and begins anew.
    pub fn collect(&mut self, frames: &FrameMap, into: &mut Vec<Extent>) -> Result<(), XenError> {
        let what = || format!("reading which pages domain {} has written", self.domid);
        match self.xen.control.take_dirty(self.domid, &mut self.bitmap) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(XenError::Gone { domid: self.domid });
            }
            // Not logged any more: somebody has turned it off, and pages are lost.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(XenError::Refused(format!(
                    "{}: {error}; somebody else has ended the log (a migration of this domain?): protect it again",
                    what()
                )));
            }
            Err(error) => return Err(XenError::failed(what(), error)),
        }
        frames.extents(self.bitmap.words(), into);
        Ok(())
    }

    /// Ends it.
    pub fn stop(self) -> Result<(), XenError> {
        stop(&self.xen, self.domid)
    }
}

/// Ends the log of a domain; ok if none is kept.
pub(crate) fn stop(xen: &Xen, domid: u32) -> Result<(), XenError> {
    match xen.control.log_dirty_off(domid) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ESRCH)) => {
            Err(XenError::failed(format!("ending the log of written pages of domain {domid}"), error))
        }
        _ => Ok(()),
    }
}

fn refused(domid: u32, error: &io::Error) -> XenError {
    let why = match error.raw_os_error() {
        Some(libc::EINVAL | libc::EEXIST | libc::EBUSY) => {
            "it is being migrated or saved, or somebody else logs its writes: wait for the end of that"
        }
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
            "this hypervisor cannot do that for this kind of domain (no shadow paging): start it as PVH"
        }
        Some(libc::ENOMEM) => "the hypervisor has no memory for the log: leave more memory free",
        Some(libc::EPERM) => "this is not allowed: run as root in dom0",
        _ => "see xl dmesg",
    };
    XenError::Refused(format!("the writes of domain {domid} cannot be logged ({error}): {why}"))
}
