//! What happens to a domain by itself, from what the hypervisor says of it.

use std::collections::VecDeque;

use romulus_checkpoint::guest::GuestEvent;

use crate::library::{DomainInfo, Shutdown};

/// Sorts looks at the domain into news.
#[derive(Debug, Default)]
pub(super) struct Events {
    over: bool,
    paused_by_others: bool,
    queue: VecDeque<GuestEvent>,
}

impl Events {
    /// Takes a look: `None` if there is no such domain any more. `ours`: it is suspended by our will.
    /// A domain that has ended stays to be seen as long as its memory is mapped here, so that no end
    /// is missed.
    pub fn look(&mut self, domid: u32, info: Option<&DomainInfo>, ours: bool) {
        if self.over {
            return;
        }
        let shutdown = info.and_then(|info| info.shutdown);
        match shutdown {
            Some(Shutdown::PowerOff) => return self.end(GuestEvent::Ended),
            Some(reason @ (Shutdown::Reboot | Shutdown::Crash | Shutdown::Other(_))) => {
                // What comes next is the toolstack's (on_reboot, on_crash), in a new domain.
                tracing::warn!(domid, ?reason, "the domain has ended, and is not protected any more");
                return self.end(GuestEvent::Ended);
            }
            Some(Shutdown::Suspend) | None => {}
        }
        let Some(info) = info.filter(|info| !info.dying) else {
            return self.end(GuestEvent::Died(format!("domain {domid} was destroyed")));
        };
        let paused = info.paused || (shutdown.is_some() && !ours);
        if paused != self.paused_by_others {
            self.paused_by_others = paused;
            self.queue.push_back(GuestEvent::PausedByOthers(paused));
        }
    }

    fn end(&mut self, event: GuestEvent) {
        self.over = true;
        self.queue.push_back(event);
    }

    /// It was destroyed by our will: no news.
    pub fn silence(&mut self) {
        self.over = true;
    }

    /// Whether it has come to an end.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The oldest news.
    pub fn next(&mut self) -> Option<GuestEvent> {
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> DomainInfo {
        DomainInfo::running()
    }

    fn news(looks: &[(Option<DomainInfo>, bool)]) -> Vec<GuestEvent> {
        let mut events = Events::default();
        for (info, ours) in looks {
            events.look(3, info.as_ref(), *ours);
        }
        std::iter::from_fn(|| events.next()).collect()
    }

    #[test]
    fn our_own_suspension_is_no_news() {
        let suspended = DomainInfo { shutdown: Some(Shutdown::Suspend), ..info() };
        assert!(news(&[(Some(info()), false), (Some(suspended), true), (Some(info()), false)]).is_empty());
    }

    #[test]
    fn others_pauses_are_told_once_each() {
        let paused = DomainInfo { paused: true, ..info() };
        let suspended = DomainInfo { shutdown: Some(Shutdown::Suspend), ..info() };
        let looks = [
            (Some(paused.clone()), false),
            (Some(paused), false),
            (Some(suspended), false),
            (Some(info()), false),
        ];
        assert_eq!(news(&looks), [GuestEvent::PausedByOthers(true), GuestEvent::PausedByOthers(false)]);
    }

    #[test]
    fn a_power_off_is_an_end_also_when_the_domain_is_destroyed_behind_it() {
        let off = DomainInfo { shutdown: Some(Shutdown::PowerOff), dying: true, ..info() };
        assert_eq!(news(&[(Some(off), false), (None, false)]), [GuestEvent::Ended]);
        let reboot = DomainInfo { shutdown: Some(Shutdown::Reboot), ..info() };
        assert_eq!(news(&[(Some(reboot), false)]), [GuestEvent::Ended]);
    }

    #[test]
    fn a_domain_that_vanishes_has_died() {
        assert!(matches!(news(&[(None, false), (None, false)])[..], [GuestEvent::Died(_)]));
        let dying = DomainInfo { dying: true, ..info() };
        assert!(matches!(news(&[(Some(dying), false)])[..], [GuestEvent::Died(_)]));
    }
}
