//! Xen's tools libraries, opened at run time: one binary runs everywhere, and says what it found.
//!
//! libxenctrl and libxenguest change with every release of Xen, so this build asks for those whose
//! headers it was built with; libxenforeignmemory, libxenevtchn and libxenstore are stable.

mod buffer;
mod control;
mod events;
mod memory;
mod policy;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use buffer::Bitmap;
pub use control::{Control, DomainInfo, Shutdown, TscInfo, param};
pub use events::EventChannel;
pub use memory::{ForeignMemory, Mapping};
pub use policy::CpuPolicy;
pub use store::{Store, Transaction};

use crate::error::XenError;

/// The bindings, as bindgen makes them.
#[allow(
    missing_docs,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unused
)]
pub(crate) mod bindings {
    pub mod control {
        include!(concat!(env!("OUT_DIR"), "/control.rs"));
    }
    pub mod guest {
        include!(concat!(env!("OUT_DIR"), "/guest.rs"));
    }
    pub mod memory {
        include!(concat!(env!("OUT_DIR"), "/memory.rs"));
    }
    pub mod events {
        include!(concat!(env!("OUT_DIR"), "/events.rs"));
    }
    pub mod store {
        include!(concat!(env!("OUT_DIR"), "/store.rs"));
    }
}

/// The Xen whose headers this was built with: `4.17`.
pub const BUILT_FOR: &str = env!("ROMULUS_XEN_VERSION");

/// Where Xen tells a domain what it may do.
const CAPABILITIES: &str = "/proc/xen/capabilities";
/// Where libraries are looked for, to name a version that this build does not know.
const FOLDERS: [&str; 5] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/lib/x86_64-linux-gnu"];

/// The opened libraries.
pub struct Library {
    control: bindings::control::Control,
    guest: bindings::guest::Guest,
    memory: bindings::memory::ForeignMemory,
    events: bindings::events::Events,
    store: bindings::store::Store,
}

impl Library {
    /// Opens the libraries, if this is the control domain of a Xen that this build knows.
    pub fn open() -> Result<Arc<Self>, XenError> {
        check_here()?;
        Self::load()
    }

    /// Opens the libraries, whatever runs here.
    pub fn load() -> Result<Arc<Self>, XenError> {
        let versioned = |name: &str| format!("{name}.so.{BUILT_FOR}");
        let no = |name: &str| {
            let name = name.to_owned();
            move |error: libloading::Error| missing(&name, &error.to_string())
        };
        let control = versioned("libxenctrl");
        let guest = versioned("libxenguest");
        // SAFETY: opening runs the libraries' initializers, which have no preconditions; the bindings
        // were made from headers of this very version, or the interface is stable.
        unsafe {
            Ok(Arc::new(Self {
                control: bindings::control::Control::new(&control).map_err(no(&control))?,
                guest: bindings::guest::Guest::new(&guest).map_err(no(&guest))?,
                memory: bindings::memory::ForeignMemory::new("libxenforeignmemory.so.1")
                    .map_err(no("libxenforeignmemory.so.1"))?,
                events: bindings::events::Events::new("libxenevtchn.so.1")
                    .map_err(no("libxenevtchn.so.1"))?,
                store: bindings::store::Store::new("libxenstore.so.4").map_err(no("libxenstore.so.4"))?,
            }))
        }
    }
}

/// Whether this is the control domain of a Xen.
pub(crate) fn check_here() -> Result<(), XenError> {
    let capabilities = std::fs::read_to_string(CAPABILITIES).ok();
    check_privilege(capabilities.as_deref(), Path::new("/sys/hypervisor/type"))
}

/// The last error of a call into a library.
pub(crate) fn last_error(what: impl Into<String>) -> XenError {
    XenError::failed(what, std::io::Error::last_os_error())
}

/// Only the control domain may do what is done here.
fn check_privilege(capabilities: Option<&str>, hypervisor: &Path) -> Result<(), XenError> {
    if capabilities.is_some_and(|text| text.contains("control_d")) {
        return Ok(());
    }
    let is_xen = std::fs::read_to_string(hypervisor).is_ok_and(|text| text.trim() == "xen");
    Err(XenError::NoXen(match (is_xen, capabilities) {
        (true, Some(_)) => "this is a Xen guest and not the control domain: run romulus in dom0".into(),
        (true, None) => format!(
            "this kernel runs on Xen, but {CAPABILITIES} cannot be read: run as root in dom0, with xenfs mounted (mount \
             -t xenfs xenfs /proc/xen)"
        ),
        (false, _) => "no Xen runs on this machine (this kernel was not started by a Xen hypervisor)".into(),
    }))
}

fn missing(name: &str, why: &str) -> XenError {
    let mut found: Vec<String> = FOLDERS.iter().flat_map(|folder| libraries_in(Path::new(folder))).collect();
    found.sort();
    found.dedup();
    let found =
        if found.is_empty() { "none is installed".into() } else { format!("found: {}", found.join(", ")) };
    XenError::NoXen(format!(
        "library {name} cannot be opened ({why}); this build knows Xen {BUILT_FOR}, {found}. Install Xen {BUILT_FOR}'s \
         tools, or build Romulus on a machine with the headers of the Xen that runs here"
    ))
}

/// Names of libxenctrl's files in a folder.
fn libraries_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |path: PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    entries
        .filter_map(|entry| name(entry.path()))
        .filter(|name| name.starts_with("libxenctrl.so.4.") && name.matches('.').count() == 3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_control_domain_will_do() {
        let nothing = Path::new("/nonexistent");
        assert!(check_privilege(Some("control_d\n"), nothing).is_ok());
        let text = check_privilege(None, nothing).unwrap_err().to_string();
        assert!(text.contains("no Xen runs on this machine"), "{text}");
    }

    #[test]
    fn a_library_that_is_not_there_is_named_with_what_is_known() {
        let text = missing("libxenctrl.so.9.9", "not found").to_string();
        assert!(text.contains("libxenctrl.so.9.9") && text.contains(BUILT_FOR), "{text}");
    }

    #[test]
    fn the_libraries_of_the_headers_open_where_they_are_installed() {
        // Where only the headers are there, the error must say what is missing.
        if let Err(error) = Library::load() {
            assert!(error.to_string().contains("cannot be opened"), "{error}");
        }
    }
}
