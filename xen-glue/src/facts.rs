//! What this machine has of Xen, for `romulus doctor`.

use romulus_host::facts::{Fact, Status};

use crate::domain::Xen;
use crate::error::XenError;
use crate::library::{BUILT_FOR, Library, check_here};

/// Name of the fact.
const NAME: &str = "xen";

/// Whether Xen domains can be protected here.
pub fn xen() -> Fact {
    let Err(absent) = check_here() else { return dom0() };
    // No shortcoming of this machine: QEMU guests need no Xen.
    let libraries = match Library::load() {
        Ok(_) => "its tools libraries are installed",
        Err(_) => "its tools libraries are not installed",
    };
    let detail = format!("{absent}; {libraries}; this build knows Xen {BUILT_FOR}");
    Fact { name: NAME, status: Status::Ok, detail, remedy: None }
}

fn dom0() -> Fact {
    match look() {
        Ok(detail) => Fact { name: NAME, status: Status::Ok, detail, remedy: None },
        Err(error) => Fact {
            name: NAME,
            status: Status::Missing,
            detail: "this is dom0, and Xen domains cannot be protected".into(),
            remedy: Some(error.to_string()),
        },
    }
}

fn look() -> Result<String, XenError> {
    let xen = Xen::open()?;
    let domains = xen.control.domains()?;
    let others = domains.iter().filter(|domain| domain.domid != 0);
    let able = others.clone().filter(|domain| domain.hvm && domain.assisted_paging).count();
    Ok(format!(
        "dom0 of Xen {} ({}), {} domains, {able} of them with hardware-assisted paging",
        xen.version,
        xen.control.kinds()?,
        others.count()
    ))
}
