//! What the hypervisor does for its control domain.

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

use super::bindings::control as raw;
use super::{Bitmap, Library, last_error};
use crate::error::XenError;

/// Numbers of HVM parameters.
pub mod param {
    use super::raw;

    /// Frame of the ring to xenstore.
    pub const STORE_PFN: u32 = raw::HVM_PARAM_STORE_PFN;
    /// The guest's event channel to xenstore.
    pub const STORE_EVTCHN: u32 = raw::HVM_PARAM_STORE_EVTCHN;
    /// Frame of the console's ring.
    pub const CONSOLE_PFN: u32 = raw::HVM_PARAM_CONSOLE_PFN;
    /// The guest's event channel to its console.
    pub const CONSOLE_EVTCHN: u32 = raw::HVM_PARAM_CONSOLE_EVTCHN;
    /// Frame of the ring to the device model.
    pub const IOREQ_PFN: u32 = raw::HVM_PARAM_IOREQ_PFN;
    /// Frame of the ring of buffered requests to the device model.
    pub const BUFIOREQ_PFN: u32 = raw::HVM_PARAM_BUFIOREQ_PFN;
    /// Frame of the identity page tables.
    pub const IDENT_PT: u32 = raw::HVM_PARAM_IDENT_PT;
    /// How the guest takes events; 0 in a guest without drivers for Xen.
    pub const CALLBACK_IRQ: u32 = raw::HVM_PARAM_CALLBACK_IRQ;
    /// What Xen's migration stream carries.
    pub const MIGRATED: [u32; 16] = [
        raw::HVM_PARAM_STORE_PFN,
        raw::HVM_PARAM_IOREQ_PFN,
        raw::HVM_PARAM_BUFIOREQ_PFN,
        raw::HVM_PARAM_PAGING_RING_PFN,
        raw::HVM_PARAM_MONITOR_RING_PFN,
        raw::HVM_PARAM_SHARING_RING_PFN,
        raw::HVM_PARAM_VM86_TSS_SIZED,
        raw::HVM_PARAM_CONSOLE_PFN,
        raw::HVM_PARAM_ACPI_IOPORTS_LOCATION,
        raw::HVM_PARAM_VIRIDIAN,
        raw::HVM_PARAM_IDENT_PT,
        raw::HVM_PARAM_VM_GENERATION_ID_ADDR,
        raw::HVM_PARAM_IOREQ_SERVER_PFN,
        raw::HVM_PARAM_NR_IOREQ_SERVER_PAGES,
        raw::HVM_PARAM_X87_FIP_WIDTH,
        raw::HVM_PARAM_MCA_CAP,
    ];
}

/// Why a domain has shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It powered off.
    PowerOff,
    /// It asks for a new start.
    Reboot,
    /// It suspended itself.
    Suspend,
    /// Its kernel crashed, or its watchdog fired.
    Crash,
    /// Another code.
    Other(u32),
}

impl Shutdown {
    fn from_code(code: u32) -> Self {
        match code {
            raw::SHUTDOWN_poweroff => Self::PowerOff,
            raw::SHUTDOWN_reboot | raw::SHUTDOWN_soft_reset => Self::Reboot,
            raw::SHUTDOWN_suspend => Self::Suspend,
            raw::SHUTDOWN_crash | raw::SHUTDOWN_watchdog => Self::Crash,
            other => Self::Other(other),
        }
    }
}

/// What Xen knows of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub domid: u32,
    /// Its name that stays the same when it moves.
    pub uuid: [u8; 16],
    /// Pages that it has.
    pub pages: u64,
    /// Pages of it that are shared with other domains.
    pub shared_pages: u64,
    /// Pages of it that are paged out.
    pub paged_pages: u64,
    /// Whether it is HVM or PVH, and not PV.
    pub hvm: bool,
    /// Whether the processor translates its addresses.
    pub assisted_paging: bool,
    /// Whether it is about to vanish.
    pub dying: bool,
    /// Whether the control domain has paused it.
    pub paused: bool,
    /// Why it stands still for good, if it does.
    pub shutdown: Option<Shutdown>,
    /// Its virtual processors.
    pub vcpus: u32,
}

#[cfg(test)]
impl DomainInfo {
    /// A PVH domain of one page that runs, for tests.
    pub(crate) fn running() -> Self {
        DomainInfo {
            domid: 3,
            uuid: [0; 16],
            pages: 1,
            shared_pages: 0,
            paged_pages: 0,
            hvm: true,
            assisted_paging: true,
            dying: false,
            paused: false,
            shutdown: None,
            vcpus: 1,
        }
    }
}

/// Time stamp counter settings, as Xen's migration stream carries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscInfo {
    /// How the counter is emulated.
    pub mode: u32,
    /// Its frequency.
    pub khz: u32,
    /// Guest time in nanoseconds.
    pub elapsed_ns: u64,
    /// Counts moves.
    pub incarnation: u32,
}

/// Takes the libraries' messages: what fails is told by `errno`.
struct Silence(raw::xentoollog_logger);

extern "C" fn swallow(
    _logger: *mut raw::xentoollog_logger,
    _level: raw::xentoollog_level,
    _errno: c_int,
    _context: *const std::ffi::c_char,
    _format: *const std::ffi::c_char,
    _arguments: *mut raw::__va_list_tag,
) {
}

/// An open way to the hypervisor.
pub struct Control {
    library: Arc<Library>,
    handle: *mut raw::xc_interface_core,
    _silence: Box<Silence>,
}

// SAFETY: libxenctrl's handle is a file descriptor, a logger that does nothing, and a cache of buffers
// behind a lock of its own.
unsafe impl Send for Control {}
// SAFETY: as for `Send`.
unsafe impl Sync for Control {}

impl Control {
    /// Opens the way. Needs root in the control domain.
    pub fn open(library: &Arc<Library>) -> Result<Arc<Self>, XenError> {
        let mut silence = Box::new(Silence(raw::xentoollog_logger {
            vmessage: Some(swallow),
            progress: None,
            destroy: None,
        }));
        // SAFETY: the logger is boxed and lives as long as the handle.
        let handle = unsafe { library.control.xc_interface_open(&raw mut silence.0, &raw mut silence.0, 0) };
        if handle.is_null() {
            return Err(last_error("opening the way to the hypervisor (are you root in dom0?)"));
        }
        Ok(Arc::new(Self { library: Arc::clone(library), handle, _silence: silence }))
    }

    pub(super) fn parts(&self) -> (&Arc<Library>, *mut raw::xc_interface_core) {
        (&self.library, self.handle)
    }

    /// The libraries.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// Version of the running hypervisor: major, minor.
    pub fn version(&self) -> Result<(u32, u32), XenError> {
        // SAFETY: this command takes no argument.
        let code = unsafe {
            self.library.control.xc_version(self.handle, raw::XENVER_version as c_int, std::ptr::null_mut())
        };
        match u32::try_from(code) {
            Ok(code) => Ok((code >> 16, code & 0xffff)),
            Err(_) => Err(last_error("asking Xen for its version")),
        }
    }

    /// What kinds of domains the hypervisor runs: `xen-3.0-x86_64 hvm-3.0-x86_32 ...`.
    pub fn kinds(&self) -> Result<String, XenError> {
        let mut text = [0u8; 1025];
        // SAFETY: this command writes at most 1024 bytes of text.
        let code = unsafe {
            self.library.control.xc_version(
                self.handle,
                raw::XENVER_capabilities as c_int,
                text.as_mut_ptr().cast::<c_void>(),
            )
        };
        if code < 0 {
            return Err(last_error("asking Xen for its capabilities"));
        }
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        Ok(text.to_string_lossy().trim().to_owned())
    }

    /// Pages that belong to nobody.
    pub fn free_pages(&self) -> Result<u64, XenError> {
        let mut info = raw::xc_physinfo_t::default();
        // SAFETY: one description is written.
        match unsafe { self.library.control.xc_physinfo(self.handle, &raw mut info) } {
            0 => Ok(info.free_pages),
            _ => Err(last_error("asking Xen for its free memory")),
        }
    }

    /// What Xen knows of a domain; `None` if there is no such domain.
    pub fn domain(&self, domid: u32) -> Result<Option<DomainInfo>, XenError> {
        let mut info = [raw::xc_domaininfo_t::default()];
        Ok(self
            .domain_list(domid, &mut info)?
            .first()
            .filter(|info| u32::from(info.domain) == domid)
            .map(read_info))
    }

    /// All domains.
    pub fn domains(&self) -> Result<Vec<DomainInfo>, XenError> {
        let mut all = Vec::new();
        let mut info = vec![raw::xc_domaininfo_t::default(); 64];
        let mut next = 0;
        loop {
            let found = self.domain_list(next, &mut info)?;
            let Some(last) = found.last() else { return Ok(all) };
            next = u32::from(last.domain) + 1;
            all.extend(found.iter().map(read_info));
        }
    }

    fn domain_list<'a>(
        &self,
        first: u32,
        into: &'a mut [raw::xc_domaininfo_t],
    ) -> Result<&'a [raw::xc_domaininfo_t], XenError> {
        let most = u32::try_from(into.len()).unwrap_or(u32::MAX);
        // SAFETY: room for that many.
        let found = unsafe {
            self.library.control.xc_domain_getinfolist(self.handle, first, most, into.as_mut_ptr())
        };
        match usize::try_from(found) {
            Ok(found) => Ok(&into[..found.min(into.len())]),
            Err(_) => Err(last_error("asking Xen for its domains")),
        }
    }

    /// Stops a domain's virtual processors; counts.
    pub fn pause(&self, domid: u32) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers.
        self.check(domid, "pausing", unsafe { self.library.control.xc_domain_pause(self.handle, domid) })
    }

    /// Takes back one [`pause`](Self::pause).
    pub fn unpause(&self, domid: u32) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers.
        self.check(domid, "unpausing", unsafe { self.library.control.xc_domain_unpause(self.handle, domid) })
    }

    /// Destroys a domain: it never runs again.
    pub fn destroy(&self, domid: u32) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers.
        self.check(domid, "destroying", unsafe { self.library.control.xc_domain_destroy(self.handle, domid) })
    }

    /// Lets a suspended domain run on as if it had not been suspended.
    pub fn resume_fast(&self, domid: u32) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers; both libraries know the handle by the same type.
        let code = unsafe { self.library.guest.xc_domain_resume(self.handle.cast(), domid, 1) };
        self.check(domid, "resuming", code)
    }

    /// Length in bytes of a domain's context: processors and emulated devices.
    pub fn context_bytes(&self, domid: u32) -> Result<u32, XenError> {
        // SAFETY: without a buffer the call only says the length.
        let code = unsafe {
            self.library.control.xc_domain_hvm_getcontext(self.handle, domid, std::ptr::null_mut(), 0)
        };
        u32::try_from(code)
            .map_err(|_| last_error(format!("asking for the length of domain {domid}'s context")))
    }

    /// Writes a domain's context to `into`; returns its length.
    pub fn context(&self, domid: u32, into: &mut [u8]) -> Result<usize, XenError> {
        let room = u32::try_from(into.len()).unwrap_or(u32::MAX);
        // SAFETY: room for that many bytes.
        let code = unsafe {
            self.library.control.xc_domain_hvm_getcontext(self.handle, domid, into.as_mut_ptr(), room)
        };
        usize::try_from(code).map_err(|_| last_error(format!("saving the context of domain {domid}")))
    }

    /// Gives a domain a context.
    pub fn set_context(&self, domid: u32, context: &[u8]) -> Result<(), XenError> {
        let bytes = u32::try_from(context.len()).unwrap_or(u32::MAX);
        // SAFETY: the call reads that many bytes and writes none, whatever its signature says.
        let code = unsafe {
            self.library.control.xc_domain_hvm_setcontext(
                self.handle,
                domid,
                context.as_ptr().cast_mut(),
                bytes,
            )
        };
        self.check(domid, "loading the context of", code)
    }

    /// An HVM parameter.
    pub fn param(&self, domid: u32, index: u32) -> Result<u64, XenError> {
        let mut value = 0;
        // SAFETY: one value is written.
        let code =
            unsafe { self.library.control.xc_hvm_param_get(self.handle, domid, index, &raw mut value) };
        self.check(domid, "reading a parameter of", code).map(|()| value)
    }

    /// Sets an HVM parameter.
    pub fn set_param(&self, domid: u32, index: u32, value: u64) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers.
        let code = unsafe { self.library.control.xc_hvm_param_set(self.handle, domid, index, value) };
        self.check(domid, "setting a parameter of", code)
    }

    /// Time stamp counter settings.
    pub fn tsc_info(&self, domid: u32) -> Result<TscInfo, XenError> {
        let mut info = TscInfo::default();
        // SAFETY: four values are written.
        let code = unsafe {
            self.library.control.xc_domain_get_tsc_info(
                self.handle,
                domid,
                &raw mut info.mode,
                &raw mut info.elapsed_ns,
                &raw mut info.khz,
                &raw mut info.incarnation,
            )
        };
        self.check(domid, "reading the time stamp counter of", code).map(|()| info)
    }

    /// Sets the time stamp counter.
    pub fn set_tsc_info(&self, domid: u32, info: &TscInfo) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers.
        let code = unsafe {
            self.library.control.xc_domain_set_tsc_info(
                self.handle,
                domid,
                info.mode,
                info.elapsed_ns,
                info.khz,
                info.incarnation,
            )
        };
        self.check(domid, "setting the time stamp counter of", code)
    }

    /// One more than the highest frame that the domain ever had.
    pub fn frames(&self, domid: u32) -> Result<u64, XenError> {
        let mut frames = 0;
        // SAFETY: one value is written.
        let code = unsafe { self.library.control.xc_domain_nr_gpfns(self.handle, domid, &raw mut frames) };
        self.check(domid, "asking for the frames of", code).map(|()| frames)
    }

    /// Replaces frame numbers (1024 at most) by whether a page is there.
    pub fn populated(&self, domid: u32, frames: &mut [u64], there: &mut Vec<bool>) -> Result<(), XenError> {
        const NOT_THERE: u64 = raw::ROMULUS_PAGE_NOT_THERE as u64;
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        // SAFETY: that many numbers are read and replaced.
        let code = unsafe {
            self.library.control.xc_get_pfn_type_batch(self.handle, domid, count, frames.as_mut_ptr())
        };
        self.check(domid, "asking for the pages of", code)?;
        there.extend(frames.iter().map(|kind| kind & NOT_THERE != NOT_THERE));
        Ok(())
    }

    /// Begins to log which frames are written. `EINVAL`: it is logged already, or cannot be; told before
    /// anything is done to the domain.
    pub fn log_dirty_on(&self, domid: u32) -> std::io::Result<()> {
        self.shadow(domid, raw::XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY)
    }

    /// Ends the log.
    pub fn log_dirty_off(&self, domid: u32) -> std::io::Result<()> {
        self.shadow(domid, raw::XEN_DOMCTL_SHADOW_OP_OFF)
    }

    fn shadow(&self, domid: u32, operation: u32) -> std::io::Result<()> {
        // SAFETY: these operations take no further arguments.
        let code = unsafe {
            self.library.control.xc_shadow_control(self.handle, domid, operation, std::ptr::null_mut(), 0)
        };
        if code < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Fills the bitmap with what was written since the last call, and begins anew. Where nothing is
    /// logged it is filled with zeros, and that is no error.
    pub fn take_dirty(&self, domid: u32, bitmap: &mut Bitmap) -> std::io::Result<u64> {
        let bits = bitmap.bits();
        // SAFETY: the bitmap is a hypercall buffer with room for that many bits.
        let covered = unsafe {
            self.library.control.xc_logdirty_control(
                self.handle,
                domid,
                raw::XEN_DOMCTL_SHADOW_OP_CLEAN,
                bitmap.raw(),
                bits,
                0,
                std::ptr::null_mut(),
            )
        };
        u64::try_from(covered).map_err(|_| std::io::Error::last_os_error())
    }

    /// Makes an event channel in a domain that this domain may bind; returns its port there.
    pub fn offer_channel(&self, domid: u32) -> Result<u32, XenError> {
        // SAFETY: an open handle and numbers; the peer is domain 0, which this is.
        let port = unsafe { self.library.control.xc_evtchn_alloc_unbound(self.handle, domid, 0) };
        u32::try_from(port).map_err(|_| last_error(format!("making an event channel in domain {domid}")))
    }

    /// Has Xen send an event through the domain's port when the domain has suspended itself; 0 ends it.
    pub fn tell_suspension(&self, domid: u32, port: u32) -> Result<(), XenError> {
        // SAFETY: an open handle and numbers.
        let code = unsafe { self.library.control.xc_domain_subscribe_for_suspend(self.handle, domid, port) };
        self.check(domid, "asking to be told the suspension of", code)
    }

    fn check(&self, domid: u32, what: &str, code: c_int) -> Result<(), XenError> {
        if code >= 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ESRCH) => Err(XenError::Gone { domid }),
            _ => Err(XenError::failed(format!("{what} domain {domid}"), error)),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { self.library.control.xc_interface_close(self.handle) };
    }
}

fn read_info(info: &raw::xc_domaininfo_t) -> DomainInfo {
    let has = |flag: u32| info.flags & flag != 0;
    let code = (info.flags >> raw::XEN_DOMINF_shutdownshift) & raw::XEN_DOMINF_shutdownmask;
    DomainInfo {
        domid: u32::from(info.domain),
        uuid: info.handle,
        pages: info.tot_pages,
        shared_pages: info.shr_pages,
        paged_pages: info.paged_pages,
        hvm: has(raw::XEN_DOMINF_hvm_guest),
        assisted_paging: has(raw::XEN_DOMINF_hap),
        dying: has(raw::XEN_DOMINF_dying),
        paused: has(raw::XEN_DOMINF_paused),
        shutdown: has(raw::XEN_DOMINF_shutdown).then(|| Shutdown::from_code(code)),
        // A domain without any says the greatest number.
        vcpus: info.max_vcpu_id.checked_add(1).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_without_processors_is_read() {
        let info = |max_vcpu_id| read_info(&raw::xc_domaininfo_t { max_vcpu_id, ..Default::default() });
        assert_eq!(info(u32::MAX).vcpus, 0);
        assert_eq!(info(3).vcpus, 4);
    }
}
