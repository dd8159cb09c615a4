//! Which domain: by number or by name.

use std::process::Command;
use std::sync::Arc;

use crate::error::XenError;
use crate::library::{BUILT_FOR, Control, DomainInfo, ForeignMemory, Library, Store};

/// Everything that is opened to work with domains.
pub(crate) struct Xen {
    pub library: Arc<Library>,
    pub control: Arc<Control>,
    pub memory: Arc<ForeignMemory>,
    pub store: Store,
    /// Version of the hypervisor: `4.17`.
    pub version: String,
}

impl Xen {
    /// Opens all; an error says what this machine lacks.
    pub fn open() -> Result<Self, XenError> {
        let library = Library::open()?;
        let control = Control::open(&library)?;
        let (major, minor) = control.version()?;
        let version = format!("{major}.{minor}");
        if version != BUILT_FOR {
            return Err(XenError::NoXen(format!(
                "Xen {version} runs here, and this build knows {BUILT_FOR}: build Romulus with the headers of the Xen \
                 that runs"
            )));
        }
        let memory = ForeignMemory::open(&library)?;
        let store = Store::open(&library)?;
        Ok(Self { library, control, memory, store, version })
    }

    /// Finds a domain by its number or name.
    pub fn find(&self, domain: &str) -> Result<DomainInfo, XenError> {
        let domid = match domain.parse::<u32>() {
            Ok(domid) => Some(domid),
            Err(_) => self.by_name(domain)?,
        };
        let info = match domid {
            Some(0) => return Err(XenError::Refused("domain 0 is this host itself".into())),
            Some(domid) => self.control.domain(domid)?,
            None => None,
        };
        if let Some(info) = info {
            return Ok(info);
        }
        let mut known = Vec::new();
        for domid in self.domids()? {
            known.push(format!("{} ({domid})", self.name(domid)?.unwrap_or_default()));
        }
        let known = if known.is_empty() {
            "there is none".into()
        } else {
            format!("there are: {}", known.join(", "))
        };
        Err(XenError::Refused(format!("no domain {domain} runs here; {known}")))
    }

    /// Numbers of the domains that xenstore knows, without this one.
    fn domids(&self) -> Result<Vec<u32>, XenError> {
        let names = self.store.list("/local/domain")?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).filter(|domid| *domid != 0).collect())
    }

    /// The name that xenstore has of a domain.
    pub fn name(&self, domid: u32) -> Result<Option<String>, XenError> {
        self.store.read(&format!("/local/domain/{domid}/name"))
    }

    /// The domain that has this name.
    pub fn by_name(&self, name: &str) -> Result<Option<u32>, XenError> {
        for domid in self.domids()? {
            if self.name(domid)?.as_deref() == Some(name) {
                return Ok(Some(domid));
            }
        }
        Ok(None)
    }
}

/// What `xl list -l` says of a domain.
pub(crate) fn describe(domid: u32) -> Result<String, XenError> {
    let what = || format!("asking for the configuration of domain {domid} (xl list -l {domid})");
    let output = Command::new("xl")
        .args(["list", "-l", &domid.to_string()])
        .output()
        .map_err(|error| XenError::failed(what(), format!("{error}; is xen-utils installed?")))?;
    if !output.status.success() {
        return Err(XenError::failed(what(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Destroys a domain for good, with what the toolstack keeps of it.
pub(crate) fn destroy(control: &Control, domid: u32) -> Result<(), XenError> {
    match control.pause(domid) {
        Err(XenError::Gone { .. }) => return Ok(()),
        outcome => outcome?,
    }
    // It runs no more. The toolstack takes the devices away too.
    let output = Command::new("xl").args(["destroy", &domid.to_string()]).output();
    match &output {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            tracing::warn!(domid, "xl destroy: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Err(error) => tracing::warn!(domid, %error, "xl destroy cannot be run"),
    }
    match control.domain(domid)? {
        Some(info) if !info.dying => control.destroy(domid),
        _ => Ok(()),
    }
}
