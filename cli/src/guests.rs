//! Which guest is meant, and attaching to it, whatever runs it.

use std::path::PathBuf;

use romulus_checkpoint::guest::Guest;
use romulus_host::gate::{GateChoices, RedirectOptions};
use romulus_host::tracking::TrackingOptions;
use romulus_qemu::{GuestOptions, QemuError, QemuGuest};

use crate::exit::{Code, Failure};
use crate::gates::Gates;

/// A guest, as `--guest` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestName {
    /// By the path of QEMU's QMP socket.
    Qemu(PathBuf),
    /// A Xen domain, by its name or number.
    Xen(String),
}

impl GuestName {
    /// Reads `qemu:PATH` and `xen:DOMAIN`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        match text.split_once(':') {
            Some(("qemu", path)) if !path.is_empty() => Ok(Self::Qemu(PathBuf::from(path))),
            Some(("xen", domain)) if !domain.is_empty() => Ok(Self::Xen(domain.to_owned())),
            _ => Err(Failure::usage(format!(
                "--guest {text}: qemu:PATH is possible, with the path of QEMU's QMP socket, and xen:DOMAIN, with the \
                 name or number of a Xen domain"
            ))),
        }
    }
}

/// How to attach.
pub struct AttachOptions {
    /// The guest's name for its record.
    pub name: Option<String>,
    /// A writable disk is let through.
    pub unreplicated_disk: bool,
    /// Which cards' output is held.
    pub gates: GateChoices,
    /// How the gates are made.
    pub gate_options: RedirectOptions,
    /// Greatest length of the state.
    pub state_bytes: u64,
    /// Threads that look for dirty pages.
    pub tracking: TrackingOptions,
}

/// A guest that was attached to, and its gates.
pub struct Attached {
    /// The guest.
    pub guest: Box<dyn Guest>,
    /// The gates of its cards.
    pub gates: Gates,
    /// What is told of it.
    pub about: About,
}

/// What is told of a guest.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// `qemu` or `xen`.
    pub kind: &'static str,
    /// Its process, if it is one.
    pub pid: Option<i32>,
    /// Its number, if it is a domain.
    pub domid: Option<u32>,
    /// How state is saved.
    pub save_by: &'static str,
    /// How dirty pages are found.
    pub track_by: &'static str,
    /// How its guard reaches it.
    pub access: String,
    /// It may be read by no NIC, and its standby written by none.
    pub copy_only: bool,
}

/// Attaches to a guest. Nothing of it is changed yet.
pub fn attach(name: &GuestName, options: AttachOptions) -> Result<Attached, Failure> {
    match name {
        GuestName::Qemu(qmp) => attach_qemu(qmp.clone(), options),
        GuestName::Xen(domain) => attach_xen(domain, options),
    }
}

fn attach_qemu(qmp: PathBuf, options: AttachOptions) -> Result<Attached, Failure> {
    let mut guest = GuestOptions::new(&qmp);
    guest.name = options.name;
    guest.allowances.unreplicated_disk = options.unreplicated_disk;
    guest.gates = Some(options.gates);
    guest.state_max_bytes = options.state_bytes;
    guest.tracking = options.tracking;
    let guest = QemuGuest::attach(guest).map_err(|error| {
        let code = if matches!(error, QemuError::Refused(_)) { Code::Refused } else { Code::Failed };
        Failure::new(code, format!("guest qemu:{}: {error}", qmp.display()))
    })?;
    let (save_by, track_by) = guest.methods();
    let about = About {
        kind: "qemu",
        pid: Some(guest.pid()),
        save_by,
        track_by,
        access: format!("qemu:{}", qmp.to_string_lossy()),
        ..About::default()
    };
    let gates = Gates::of_qemu(&guest, &options.gate_options)?;
    Ok(Attached { guest: Box::new(guest), gates, about })
}

#[cfg(feature = "xen")]
fn attach_xen(domain: &str, options: AttachOptions) -> Result<Attached, Failure> {
    use romulus_xen::{XenError, XenGuest, XenOptions};

    let mut guest = XenOptions::new(domain);
    guest.name = options.name;
    guest.allowances.unreplicated_disk = options.unreplicated_disk;
    guest.gates = Some(options.gates);
    guest.state_max_bytes = options.state_bytes;
    let guest = XenGuest::attach(guest).map_err(|error| {
        let code = match &error {
            XenError::Refused(_) => Code::Refused,
            XenError::NoXen(_) => Code::Machine,
            _ => Code::Failed,
        };
        Failure::new(code, format!("guest xen:{domain}: {error}"))
    })?;
    let about = About {
        kind: "xen",
        domid: Some(guest.domid()),
        save_by: "hvm-context",
        track_by: "log-dirty",
        access: format!("xen:{}", guest.access()),
        copy_only: true,
        ..About::default()
    };
    let gates = Gates::of_xen(guest.gates(), &options.gate_options)?;
    Ok(Attached { guest: Box::new(guest), gates, about })
}

#[cfg(not(feature = "xen"))]
fn attach_xen(domain: &str, _options: AttachOptions) -> Result<Attached, Failure> {
    Err(Failure::new(
        Code::Machine,
        format!(
            "guest xen:{domain}: this romulus was built without Xen; build it with the feature `xen` (which needs \
             libxen-dev)"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_named_by_kind() {
        assert_eq!(GuestName::parse("qemu:/a:b").unwrap(), GuestName::Qemu("/a:b".into()));
        assert_eq!(GuestName::parse("xen:web").unwrap(), GuestName::Xen("web".into()));
        for text in ["", "web", "xen:", "qemu:", "kvm:1"] {
            let failure = GuestName::parse(text).unwrap_err();
            assert!(
                failure.message.contains("qemu:PATH") && failure.message.contains("xen:DOMAIN"),
                "{failure}"
            );
        }
    }
}
