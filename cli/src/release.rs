//! `romulus release`: lets a Xen domain run on that a protection which ended left suspended. A QEMU
//! guest's own monitor does that; xl 4.17 has no command for it.

use std::process::ExitCode;

use crate::exit::{Code, Failure};
use crate::guests::GuestName;

/// Options of `romulus release`.
#[derive(Debug, clap::Args)]
pub struct ReleaseOptions {
    /// The domain: `xen:DOMAIN` with its name or number
    #[arg(long, value_name = "GUEST")]
    guest: String,

    /// No other host runs the guest, or will: its backup is stopped or has not taken over. If that is
    /// wrong, two copies of the guest run
    #[arg(long)]
    force: bool,
}

/// Releases it.
pub fn run(options: &ReleaseOptions) -> Result<ExitCode, Failure> {
    let domain = match GuestName::parse(&options.guest)? {
        GuestName::Xen(domain) => domain,
        GuestName::Qemu(_) => {
            return Err(Failure::usage(format!(
                "--guest {}: a QEMU guest is let go by `cont` in its monitor, or by QMP",
                options.guest
            )));
        }
    };
    if !options.force {
        return Err(Failure::new(
            Code::Refused,
            format!(
                "guest xen:{domain}: its backup may run it, or may yet: stop the backup (romulus stop there), see that \
                 the guest does not run there, and say --force"
            ),
        ));
    }
    release(&domain)
}

#[cfg(feature = "xen")]
fn release(domain: &str) -> Result<ExitCode, Failure> {
    use romulus_host::gate::GuardedRedirect;
    use romulus_host::guard::GateHandle;
    use romulus_xen::{XenError, XenHandle};

    let failure = |error: XenError| {
        let code = match &error {
            XenError::Refused(_) => Code::Refused,
            XenError::NoXen(_) => Code::Machine,
            _ => Code::Failed,
        };
        Failure::new(code, format!("guest xen:{domain}: {error}"))
    };
    let mut handle = XenHandle::find(domain).map_err(failure)?;
    let cards = handle.cards().map_err(failure)?;
    let was_suspended = handle.release().map_err(failure)?;
    GuardedRedirect::new(cards).clear().map_err(|why| {
        Failure::failed(format!(
            "guest xen:{domain}: it runs, and an output gate of its protection is left in place: {why}"
        ))
    })?;
    let before = if was_suspended { "was suspended, and runs now" } else { "runs, and was not suspended" };
    println!("guest xen:{domain} {before}; nothing of its protection is left");
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "xen"))]
fn release(domain: &str) -> Result<ExitCode, Failure> {
    Err(Failure::new(
        Code::Machine,
        format!("guest xen:{domain}: this romulus was built without Xen; build it with the feature `xen`"),
    ))
}
