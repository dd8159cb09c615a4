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
    /// Begins it, and notes that this process has the domain. Refused where somebody else keeps one: a migration under way, or another protector.
    pub fn start(xen: &Arc<Xen>, domid: u32, claim: &Claim, frames: &FrameMap) -> Result<Self, XenError> {
        let bits = frames.runs().last().map_or(0, |run| run.end());
        let bitmap = Bitmap::new(&xen.control, bits)?;
        let before = claim.take(&xen.store)?;
        if let Owner::Alive(pid) = before {
            return Err(XenError::Refused(format!(
                "domain {domid} is protected by process {pid} already, or that is the guard of a protector that died \
                 and puts the domain right (25 s at most): wait for its end"
            )));
        }
        if let Err(error) = xen.control.log_dirty_on(domid) {
            if before == Owner::Nobody {
                claim.give_back(&xen.store)?;
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
        let gone = XenError::Gone { domid: self.domid };
        match self.xen.control.take_dirty(self.domid, &mut self.bitmap) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(gone),
            Err(error) => {
                let what = format!("reading which pages domain {} has written", self.domid);
                return Err(XenError::failed(what, error));
            }
        }
        // Behind the reading: a log that is on now was on when it was read.
        self.still_kept()?;
        frames.extents(self.bitmap.words(), into);
        Ok(())
    }

    /// Whether the log is still on. A log that is off reads as "nothing was written"; only beginning it
    /// again tells, which is refused at once where it is on. What was read is lost after a failure, so
    /// that each of them ends protection.
    fn still_kept(&self) -> Result<(), XenError> {
        let began = self.xen.control.log_dirty_on(self.domid);
        let dying = || Ok(self.xen.control.domain(self.domid)?.is_none_or(|info| info.dying));
        match judge(&began, dying) {
            Kept::On => Ok(()),
            Kept::Gone => Err(XenError::Gone { domid: self.domid }),
            Kept::Ended => {
                if let Err(error) = self.xen.control.log_dirty_off(self.domid) {
                    tracing::warn!(%error, domid = self.domid, "ending a log that was only begun to look");
                }
                Err(XenError::Refused(format!(
                    "somebody else has ended the log of domain {}'s writes (xl save -c, a migration that was given \
                     up?): protect it again",
                    self.domid
                )))
            }
            Kept::Unknown(why) => Err(XenError::Refused(format!(
                "whether the writes of domain {} are still logged cannot be told ({why}; is it being migrated or \
                 saved?): protect it again",
                self.domid
            ))),
        }
    }

    /// Ends it.
    pub fn stop(self) -> Result<(), XenError> {
        stop(&self.xen, self.domid)
    }
}

/// What beginning a log again says of it.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    On,
    Ended,
    Gone,
    Unknown(String),
}

/// The hypervisor lets every operation on a domain that is being destroyed succeed, and does nothing.
fn judge(began: &io::Result<()>, dying: impl FnOnce() -> Result<bool, XenError>) -> Kept {
    match began {
        Ok(()) => match dying() {
            Ok(true) => Kept::Gone,
            Ok(false) => Kept::Ended,
            Err(error) => Kept::Unknown(error.to_string()),
        },
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL) => Kept::On,
            Some(libc::ESRCH) => Kept::Gone,
            _ => Kept::Unknown(error.to_string()),
        },
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(began: io::Result<()>, dying: bool) -> Kept {
        judge(&began, || Ok(dying))
    }

    #[test]
    fn a_log_that_can_be_begun_again_was_ended() {
        let error = |code| Err(io::Error::from_raw_os_error(code));
        assert_eq!(kept(error(libc::EINVAL), false), Kept::On);
        assert_eq!(kept(Ok(()), false), Kept::Ended);
        assert_eq!(kept(Ok(()), true), Kept::Gone);
        assert_eq!(kept(error(libc::ESRCH), false), Kept::Gone);
        assert!(matches!(kept(error(libc::EBUSY), false), Kept::Unknown(_)));
        let blind = judge(&Ok(()), || Err(XenError::failed("looking", "no")));
        assert!(matches!(blind, Kept::Unknown(_)), "{blind:?}");
    }
}
