//! Why a domain cannot be protected.

use super::config::Config;

/// What would be refused otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    /// A writable disk, which is not replicated.
    pub unreplicated_disk: bool,
}

/// What is known of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Its configuration.
    pub config: Config,
    /// HVM or PVH, by the hypervisor's word.
    pub hvm: bool,
    /// What came of beginning to log a PV domain's writes, if that was tried.
    pub pv_log_dirty: Option<String>,
    /// Whether the processor translates its addresses.
    pub assisted_paging: bool,
    /// Pages of it that are shared with other domains.
    pub shared_pages: u64,
    /// Pages of it that are paged out.
    pub paged_pages: u64,
    /// PCI devices passed through, by xenstore's word.
    pub pci_devices: usize,
    /// The domain that emulates its devices, if it is not this one.
    pub stub_domain: Option<u32>,
    /// It stands still for good, and why.
    pub shutdown: Option<String>,
    /// It is about to vanish.
    pub dying: bool,
    /// The guest takes events of Xen: its drivers are up.
    pub has_drivers: bool,
}

/// All reasons, each with what to do; empty if there is none.
pub fn reasons(found: &Findings, allowed: Allowances) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut say = |text: String| reasons.push(text);
    if found.dying {
        say("it is being destroyed".into());
    }
    if let Some(reason) = &found.shutdown {
        let suspended = reason == "Suspend";
        let advice =
            "; where a protection that ended has left it so, and no other host runs it: romulus release";
        say(format!("it does not run ({reason}){}", if suspended { advice } else { "" }));
    }
    if !found.hvm {
        let outcome = found.pv_log_dirty.as_deref().unwrap_or("not tried");
        say(format!(
            "it is a PV domain: its writes can only be logged by a hypervisor with shadow paging (Debian's is built \
             without), and Romulus saves the state of PVH and HVM domains only; logging them here: {outcome}. Start it as a \
             PVH domain (type = \"pvh\")"
        ));
    } else if !found.has_drivers {
        say("its kernel has not set up its drivers for Xen yet, with which it takes part in each checkpoint: wait \
             until it is up"
            .into());
    }
    for reason in &found.config.hvm_reasons {
        say(reason.clone());
    }
    if found.hvm && !found.assisted_paging {
        say("its writes cannot be logged: it has no hardware-assisted paging".into());
    }
    if found.shared_pages > 0 {
        say(format!("it shares {} pages with other domains: turn memory sharing off", found.shared_pages));
    }
    if found.paged_pages > 0 {
        say(format!("{} of its pages are paged out: turn memory paging off", found.paged_pages));
    }
    if let Some(domain) = found.stub_domain {
        say(format!(
            "domain {domain} emulates its devices, and holds state of it: start it without a stub domain"
        ));
    }
    let listed = found.config.other_devices.iter().any(|device| device.contains("PCI"));
    if found.pci_devices > 0 && !listed {
        say(format!("it has {} passed-through PCI devices, whose state cannot be saved", found.pci_devices));
    }
    for device in &found.config.other_devices {
        say(format!(
            "it has {device}, which does not come back on another host: take it out of the configuration"
        ));
    }
    if !found.config.writable_disks.is_empty() && !allowed.unreplicated_disk {
        say(format!(
            "it has writable disks ({}), and disks are not replicated: after a takeover the disk would be ahead of \
             memory. Make them read-only (mode r), or take the risk: --allow-unreplicated-disk",
            found.config.writable_disks.join(", ")
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Findings {
        Findings {
            config: Config { kind: "pvh".into(), ..Config::default() },
            hvm: true,
            assisted_paging: true,
            has_drivers: true,
            ..Findings::default()
        }
    }

    fn why(change: impl FnOnce(&mut Findings)) -> String {
        let mut found = good();
        change(&mut found);
        reasons(&found, Allowances::default()).join("; ")
    }

    #[test]
    fn a_plain_pvh_domain_is_taken() {
        assert_eq!(reasons(&good(), Allowances::default()), Vec::<String>::new());
    }

    #[test]
    fn each_reason_says_what_to_do() {
        assert!(why(|found| found.dying = true).contains("destroyed"));
        assert!(why(|found| found.shutdown = Some("PowerOff".into())).contains("does not run (PowerOff)"));
        assert!(why(|found| found.shutdown = Some("Suspend".into())).contains("romulus release"));
        let pv = why(|found| {
            found.hvm = false;
            found.pv_log_dirty = Some("Operation not supported".into());
        });
        assert!(pv.contains("Operation not supported") && pv.contains("pvh"), "{pv}");
        let screen = "it has an emulated graphics card: vga = \"none\"";
        assert_eq!(why(|found| found.config.hvm_reasons = vec![screen.into()]), screen);
        assert_eq!(why(|found| found.config.kind = "hvm".into()), "", "a plain HVM domain is taken");
        assert!(why(|found| found.has_drivers = false).contains("wait until it is up"));
        assert!(why(|found| found.assisted_paging = false).contains("hardware-assisted"));
        assert!(why(|found| found.shared_pages = 3).contains("shares 3 pages"));
        assert!(why(|found| found.paged_pages = 4).contains("4 of its pages"));
        assert!(why(|found| found.stub_domain = Some(5)).contains("domain 5"));
        assert!(why(|found| found.pci_devices = 1).contains("PCI"));
        assert!(why(|found| found.config.other_devices = vec!["a TPM".into()]).contains("a TPM"));
    }

    #[test]
    fn a_writable_disk_needs_the_operators_word() {
        let mut found = good();
        found.config.writable_disks = vec!["xvda".into()];
        assert!(reasons(&found, Allowances::default())[0].contains("xvda"));
        assert!(reasons(&found, Allowances { unreplicated_disk: true }).is_empty());
    }
}
