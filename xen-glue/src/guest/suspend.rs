//! Suspending a domain with its own help, so that its drivers know to reconnect when it wakes
//! elsewhere.
//!
//! The guest is asked through the event channel that it offers (`device/suspend/event-channel`), or
//! else through `control/shutdown` in xenstore. That it has suspended itself is told by the hypervisor
//! through an event channel that is subscribed for that: at once, without xenstored or `@releaseDomain`
//! in between, and without waking the toolstack's own watchers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::claim::Claim;
use crate::domain::Xen;
use crate::error::XenError;
use crate::library::{DomainInfo, EventChannel, Shutdown, Store};

/// How long a guest's kernel tries to freeze its processes before it gives up a suspension that it has
/// agreed to: 20 s in Linux.
pub(crate) const FREEZE_LIMIT: Duration = Duration::from_secs(25);
/// The event tells a suspension and no other end: how often those are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long another request in xenstore may wait for the guest.
const OTHERS_LIMIT: Duration = Duration::from_secs(1);
const OTHERS_POLL: Duration = Duration::from_millis(5);
const SUSPEND: &str = "suspend";
/// Suspensions in a row that take too long before protection ends.
const MOST_TOO_LONG: u32 = 2;

/// A request in xenstore.
pub(crate) struct SuspendRequest {
    path: String,
}

impl SuspendRequest {
    pub fn new(domid: u32) -> Self {
        Self { path: format!("/local/domain/{domid}/control/shutdown") }
    }

    /// Makes it. `Some`: another request that the guest has not taken yet stands there.
    fn make(&self, store: &Store) -> Result<Option<String>, XenError> {
        loop {
            let transaction = store.transaction()?;
            match transaction.read(&self.path)?.as_deref() {
                Some("") => transaction.write(&self.path, SUSPEND)?,
                // Our own of a suspension that is in doubt.
                Some(SUSPEND) => return Ok(None),
                Some(other) => return Ok(Some(other.to_owned())),
                None => {
                    return Err(XenError::failed(
                        "asking the guest to suspend itself",
                        format!("xenstore has no {}", self.path),
                    ));
                }
            }
            if transaction.commit()? {
                return Ok(None);
            }
        }
    }

    /// Takes it back, if the guest has not taken it; whether it was still there.
    pub fn take_back(&self, store: &Store) -> Result<bool, XenError> {
        loop {
            let transaction = store.transaction()?;
            if transaction.read(&self.path)?.as_deref() != Some(SUSPEND) {
                return Ok(false);
            }
            transaction.write(&self.path, "")?;
            if transaction.commit()? {
                return Ok(true);
            }
        }
    }
}

/// Suspends one domain, again and again.
pub(super) struct Suspender {
    xen: Arc<Xen>,
    domid: u32,
    channel: EventChannel,
    /// `None`: the guest is asked through the channel.
    request: Option<SuspendRequest>,
}

/// What came of a wait.
pub(super) enum Waited {
    /// It has suspended itself.
    Suspended,
    /// It has come to another end.
    Otherwise(DomainInfo),
    /// Neither in time; whether somebody else has paused it, so that it cannot.
    TooLong { paused: bool },
}

/// How often in a row a guest did not suspend itself in time. Its output is held meanwhile, and for the
/// time in which each such suspension is undone.
#[derive(Debug, Default)]
pub(super) struct Patience {
    in_a_row: u32,
}

impl Patience {
    /// Once more. Once may be a slow host; the second time it is the guest, and protection has to end.
    pub fn too_long(&mut self, domid: u32, limit: Duration, paused: bool) -> XenError {
        let advice = "is its kernel alive, does it support suspension (control/feature-suspend)?";
        if paused {
            let why = "somebody has paused it, so that it cannot suspend itself (xl unpause)";
            return XenError::failed(format!("suspending domain {domid}"), why);
        }
        self.in_a_row += 1;
        if self.in_a_row < MOST_TOO_LONG {
            let why = format!("the guest does not suspend itself within {limit:?}; {advice}");
            return XenError::failed(format!("suspending domain {domid}"), why);
        }
        XenError::Refused(format!(
            "domain {domid} does not suspend itself ({} times in a row not within {limit:?}), and cannot be protected: \
             {advice}",
            self.in_a_row
        ))
    }
}

impl Suspender {
    /// Prepares it.
    pub fn start(xen: &Arc<Xen>, domid: u32, claim: &Claim) -> Result<Self, XenError> {
        let offered = xen.store.read(&format!("/local/domain/{domid}/device/suspend/event-channel"))?;
        let offered = offered.and_then(|text| text.parse::<u32>().ok());
        let (channel, port) = match offered {
            Some(port) => (EventChannel::bind(&xen.library, domid, port)?, port),
            None => own_channel(xen, domid, claim)?,
        };
        xen.control.tell_suspension(domid, port)?;
        // Binding sends an event.
        channel.clear()?;
        let request = offered.is_none().then(|| SuspendRequest::new(domid));
        Ok(Self { xen: Arc::clone(xen), domid, channel, request })
    }

    /// How the guest is asked.
    pub fn method(&self) -> &'static str {
        if self.request.is_some() { "xenstore" } else { "event-channel" }
    }

    /// Asks the guest. After failure nothing is asked.
    pub fn ask(&self) -> Result<(), XenError> {
        self.channel.clear()?;
        let Some(request) = &self.request else { return self.channel.notify() };
        let deadline = Instant::now() + OTHERS_LIMIT;
        while let Some(other) = request.make(&self.xen.store)? {
            if Instant::now() >= deadline {
                return Err(XenError::failed(
                    "asking the guest to suspend itself",
                    format!("it has not taken the request `{other}` of somebody else"),
                ));
            }
            // Rare, and the guest's kernel empties the node at once.
            std::thread::sleep(OTHERS_POLL);
        }
        Ok(())
    }

    /// Waits until the guest, which was asked, has suspended itself.
    pub fn wait(&self, timeout: Duration) -> Result<Waited, XenError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.channel.wait(left.min(LOOK_EVERY))?;
            let Some(info) = self.xen.control.domain(self.domid)? else {
                return Err(XenError::Gone { domid: self.domid });
            };
            match info.shutdown {
                Some(Shutdown::Suspend) if !info.dying => return Ok(Waited::Suspended),
                Some(_) => return Ok(Waited::Otherwise(info)),
                None if info.dying => return Err(XenError::Gone { domid: self.domid }),
                None if left.is_zero() => return Ok(Waited::TooLong { paused: info.paused }),
                None => {}
            }
        }
    }

    /// Undoes an [`ask`](Self::ask) whose [`wait`](Self::wait) failed; whether the domain is suspended
    /// now. A guest that has taken the request may suspend itself late: it is waited for, as long as
    /// its kernel can take to give up by itself.
    pub fn take_back(&self) -> Result<bool, XenError> {
        if let Some(request) = &self.request
            && request.take_back(&self.xen.store)?
        {
            return Ok(false);
        }
        Ok(matches!(self.wait(FREEZE_LIMIT)?, Waited::Suspended))
    }

    /// Ends it.
    pub fn stop(self) -> Result<(), XenError> {
        self.xen.control.tell_suspension(self.domid, 0)
    }
}

/// A channel of our own in the domain, of which the guest knows nothing: the one that an earlier
/// protector made, or a new one.
fn own_channel(xen: &Xen, domid: u32, claim: &Claim) -> Result<(EventChannel, u32), XenError> {
    if let Some(port) = claim.port(&xen.store)?
        && let Ok(channel) = EventChannel::bind(&xen.library, domid, port)
    {
        return Ok((channel, port));
    }
    let port = xen.control.offer_channel(domid)?;
    claim.keep_port(&xen.store, port)?;
    Ok((EventChannel::bind(&xen.library, domid, port)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_never_suspends_itself_ends_protection_the_second_time() {
        let limit = Duration::from_secs(10);
        let mut patience = Patience::default();
        assert!(matches!(patience.too_long(3, limit, false), XenError::Failed { .. }));
        // Not its doing.
        assert!(matches!(patience.too_long(3, limit, true), XenError::Failed { .. }));
        let last = patience.too_long(3, limit, false);
        assert!(matches!(&last, XenError::Refused(text) if text.contains("2 times")), "{last}");
        patience = Patience::default();
        assert!(matches!(patience.too_long(3, limit, false), XenError::Failed { .. }));
    }
}
