//! A domain as its guard sees it, when the process that protected it has died.

use std::time::{Duration, Instant};

use romulus_host::gate::NicSpec;

use crate::claim::{Claim, Owner};
use crate::device_model::DeviceModel;
use crate::discover::vif::Vif;
use crate::domain::{self, Xen};
use crate::error::XenError;
use crate::guest::{FREEZE_LIMIT, SuspendRequest};
use crate::library::{DomainInfo, Shutdown};

/// How long a suspension that was asked for before the protector's death is waited for before the
/// guest's output is let go; a later one is found by [`XenHandle::tidy`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);

/// The text from which [`XenHandle::open`] finds a domain again: a number can come to mean another.
pub(crate) fn access(domid: u32, uuid: &[u8; 16]) -> String {
    let uuid: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{domid} {uuid}")
}

fn read_access(text: &str) -> Option<(u32, [u8; 16])> {
    let (domid, hex) = text.split_once(' ')?;
    let mut uuid = [0; 16];
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some((domid.parse().ok()?, uuid))
}

/// Reaches a domain, and holds nothing of it.
pub struct XenHandle {
    xen: Xen,
    domid: u32,
    uuid: [u8; 16],
    request: SuspendRequest,
    /// No suspension that the protector asked for can happen any more. Only who died with the pause
    /// flag up can have left one in doubt, and then [`resume_if_paused`](Self::resume_if_paused) comes
    /// first.
    settled: bool,
}

impl XenHandle {
    /// The domain of [`XenGuest::access`](crate::XenGuest::access).
    pub fn open(access: &str) -> Result<Self, XenError> {
        let (domid, uuid) = read_access(access)
            .ok_or_else(|| XenError::failed("finding a domain", format!("`{access}` names none")))?;
        let request = SuspendRequest::new(domid);
        Ok(Self { xen: Xen::open()?, domid, uuid, request, settled: true })
    }

    /// A domain by its number or name.
    pub fn find(domain: &str) -> Result<Self, XenError> {
        let xen = Xen::open()?;
        let DomainInfo { domid, uuid, .. } = xen.find(domain)?;
        Ok(Self { xen, domid, uuid, request: SuspendRequest::new(domid), settled: true })
    }

    /// Its cards whose back ends are here, by the interfaces that gates are set up on.
    pub fn cards(&self) -> Result<Vec<NicSpec>, XenError> {
        let cards = crate::guest::vifs(&self.xen, self.domid)?;
        Ok(cards.iter().filter(|card| card.backend == 0).map(Vif::spec).collect())
    }

    /// Lets a domain run on that a protection which ended left suspended, and puts back what else is
    /// left of it; whether it was suspended. For who knows that no other host runs it, or will.
    pub fn release(&mut self) -> Result<bool, XenError> {
        let domid = self.domid;
        let info = self.info()?.ok_or(XenError::Gone { domid })?;
        let suspended = match info.shutdown {
            None => false,
            Some(Shutdown::Suspend) => true,
            Some(end) => {
                return Err(XenError::Refused(format!("domain {domid} has ended by itself ({end:?})")));
            }
        };
        match Claim::new(domid).owner(&self.xen.store)? {
            Owner::Alive(pid) => {
                return Err(XenError::Refused(format!(
                    "process {pid} protects domain {domid}, or is the guard of a protector that died: wait for its end, \
                     or say romulus stop"
                )));
            }
            // Nothing is left: what logs its writes now would be somebody else's.
            Owner::Nobody if !suspended => return self.run_device_model().map(|()| false),
            Owner::Nobody | Owner::Dead => {}
        }
        self.resume_if_paused()?;
        self.tidy()?;
        Ok(suspended)
    }

    /// The device model of a domain that has one, if it lives.
    fn device_model(&self) -> Result<Option<DeviceModel>, XenError> {
        let kind = self.xen.store.read(&format!("/libxl/{}/type", self.domid))?;
        if kind.as_deref() == Some("hvm") { DeviceModel::open_if_alive(self.domid) } else { Ok(None) }
    }

    /// Lets its device model run on, if it has one; ok if it runs already.
    fn run_device_model(&self) -> Result<(), XenError> {
        self.device_model()?.map_or(Ok(()), |mut model| model.run_on())
    }

    /// Whether its device model runs; `None`: it has none.
    pub fn device_model_runs(&self) -> Result<Option<bool>, XenError> {
        self.device_model()?.map(|mut model| Ok(model.status()? == "running")).transpose()
    }

    fn info(&self) -> Result<Option<DomainInfo>, XenError> {
        let info = self.xen.control.domain(self.domid)?;
        Ok(info.filter(|info| info.uuid == self.uuid && !info.dying))
    }

    /// Whether it lives; an end by itself (power-off) counts as none.
    pub fn alive(&mut self) -> bool {
        match self.info() {
            Ok(info) => info.is_some_and(|info| matches!(info.shutdown, None | Some(Shutdown::Suspend))),
            // A domain that cannot be looked at is not known to be dead.
            Err(_) => true,
        }
    }

    /// Whether this process has the domain now. A protector that lives and has it already saw it run
    /// when it began: what it finds suspended it suspended itself.
    fn take(&mut self) -> Result<bool, XenError> {
        if self.info()?.is_none() {
            return Err(XenError::Gone { domid: self.domid });
        }
        let before = Claim::new(self.domid).take(&self.xen.store)?;
        if let Owner::Alive(pid) = before {
            tracing::info!(domid = self.domid, pid, "another process protects the domain: it is left alone");
            self.settled = true;
            return Ok(false);
        }
        Ok(true)
    }

    /// Lets it run on if it is suspended; ok if it runs already. The domain is this process's until
    /// [`tidy`](Self::tidy), so that no protector's suspension is taken for the one that died.
    pub fn resume_if_paused(&mut self) -> Result<(), XenError> {
        if !self.take()? {
            return Ok(());
        }
        self.settled = self.request.take_back(&self.xen.store)?;
        self.watch(FIRST_WAIT)
    }

    /// Resumes it when it suspends itself within `limit`.
    fn watch(&mut self, limit: Duration) -> Result<(), XenError> {
        let deadline = Instant::now() + limit;
        loop {
            let Some(info) = self.info()? else { return Err(XenError::Gone { domid: self.domid }) };
            if info.shutdown == Some(Shutdown::Suspend) {
                let model = self.run_device_model();
                self.xen.control.resume_fast(self.domid)?;
                self.settled = true;
                model?;
            }
            if self.settled || Instant::now() >= deadline {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the log of its writes, and what else a protector that died has left in the domain, unless
    /// another one has it by now. The next is refused until no suspension is in doubt.
    pub fn tidy(&mut self) -> Result<(), XenError> {
        if !self.take()? {
            return Ok(());
        }
        // It may be stopped under a domain that runs, where an earlier attempt could not reach it.
        let model = self.run_device_model().and_then(|()| match self.device_model()? {
            Some(mut model) => model.tell_writes(false),
            None => Ok(()),
        });
        let logged = crate::guest::end_log(&self.xen, self.domid).and(model);
        let told = self.xen.control.tell_suspension(self.domid, 0);
        if !self.settled {
            // Its kernel may have agreed to a suspension, and be long about it.
            self.watch(FREEZE_LIMIT)?;
            self.settled = true;
        }
        if let Err(error) = self.xen.store.resumed(self.domid) {
            tracing::warn!(%error, "the domain's own end may go unnoticed by its toolstack");
        }
        logged.and(told)?;
        Claim::new(self.domid).give_back(&self.xen.store)
    }

    /// Destroys it; ok if it is gone already.
    pub fn destroy(&mut self) -> Result<(), XenError> {
        match self.info()? {
            Some(_) => domain::destroy(&self.xen.control, self.domid),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_domain_is_read_again() {
        let uuid = *b"0123456789abcdef";
        assert_eq!(read_access(&access(12, &uuid)), Some((12, uuid)));
        for text in
            ["", "12", "12 30", "x 30313233343536373839616263646566", "1 3031323334353637383961626364656g"]
        {
            assert_eq!(read_access(text), None, "{text}");
        }
    }
}
