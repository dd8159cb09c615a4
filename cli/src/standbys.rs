//! Standbys of either hypervisor, as `romulus backup` has them.

use std::path::PathBuf;

use romulus_checkpoint::standby::Standby;
use romulus_qemu::{QemuStandby, StandbyInfo, StandbyOptions};

use crate::control::runtime_dir;
use crate::exit::{Code, Failure};
use crate::settings::backup::BackupOptions;

/// What is known of a standby while the driver has it.
#[derive(Clone)]
pub enum Info {
    /// A QEMU process.
    Qemu(StandbyInfo),
    /// A Xen domain.
    #[cfg(feature = "xen")]
    Xen(romulus_xen::XenStandbyInfo),
}

/// What a status says of it.
#[derive(Default, serde::Serialize)]
pub struct Seen {
    standby_pid: Option<i32>,
    standby_qmp: Option<PathBuf>,
    /// Number and name of the standby's Xen domain.
    standby_domain: Option<(u32, String)>,
}

impl Info {
    /// As it is now.
    pub fn seen(&self) -> Seen {
        match self {
            Self::Qemu(info) => Seen { standby_pid: info.pid(), standby_qmp: info.qmp(), ..Seen::default() },
            #[cfg(feature = "xen")]
            Self::Xen(info) => Seen { standby_domain: info.domain(), ..Seen::default() },
        }
    }

    /// How the guest is named to `romulus protect --guest` once it runs here.
    pub fn guest(&self) -> String {
        match self {
            Self::Qemu(info) => format!("qemu:{}", info.qmp().unwrap_or_default().display()),
            #[cfg(feature = "xen")]
            Self::Xen(info) => {
                let domain = info.domain().map(|(domid, _)| domid.to_string());
                format!("xen:{}", domain.unwrap_or_default())
            }
        }
    }
}

/// The standby that the options ask for.
pub fn open(options: &BackupOptions) -> Result<(Box<dyn Standby>, Info), Failure> {
    let how = options.standby.as_deref().ok_or_else(|| {
        Failure::usage(
            "how is the standby started? --standby FILE names the guest's own QEMU command line, one argument a \
             line, with {image} for the path of its RAM file; --standby xen builds a domain of this host's Xen"
                .into(),
        )
    })?;
    if how.as_os_str() == "xen" {
        return open_xen(options);
    }
    let text = std::fs::read_to_string(how)
        .map_err(|e| Failure::usage(format!("--standby {}: {e}", how.display())))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let folder = options.run_dir.clone().unwrap_or_else(runtime_dir);
    let command = StandbyOptions::new(lines.map(str::to_owned).collect(), folder);
    command.check().map_err(|error| Failure::usage(format!("--standby {}: {error}", how.display())))?;
    let standby = QemuStandby::new(command);
    let info = Info::Qemu(standby.info());
    Ok((Box::new(standby), info))
}

#[cfg(feature = "xen")]
fn open_xen(options: &BackupOptions) -> Result<(Box<dyn Standby>, Info), Failure> {
    let may_have = romulus_xen::StandbyAllowances { disks: options.allow_standby_disks == Some(true) };
    let standby = romulus_xen::XenStandby::open(may_have).map_err(|error| {
        let code = match &error {
            romulus_xen::XenError::NoXen(_) => Code::Machine,
            _ => Code::Failed,
        };
        Failure::new(code, format!("--standby xen: {error}"))
    })?;
    let info = Info::Xen(standby.info());
    Ok((Box::new(standby), info))
}

#[cfg(not(feature = "xen"))]
fn open_xen(_options: &BackupOptions) -> Result<(Box<dyn Standby>, Info), Failure> {
    Err(Failure::new(
        Code::Machine,
        "--standby xen: this romulus was built without Xen; build it with the feature `xen`",
    ))
}
