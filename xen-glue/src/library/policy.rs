//! What a domain's processors can do: CPUID leaves and MSRs, as Xen's migration stream carries them.

use super::bindings::guest as raw;
use super::{Control, last_error};
use crate::error::XenError;

/// The bodies of the records `X86_CPUID_POLICY` and `X86_MSR_POLICY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuPolicy {
    /// CPUID leaves, 24 bytes each.
    pub cpuid: Vec<u8>,
    /// MSRs, 16 bytes each.
    pub msrs: Vec<u8>,
}

/// A policy object of the library's.
struct Policy<'a> {
    control: &'a Control,
    raw: *mut raw::xc_cpu_policy_t,
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `xc_cpu_policy_init`, destroyed once.
        unsafe { self.control.parts().0.guest.xc_cpu_policy_destroy(self.raw) };
    }
}

fn bytes_of<T>(values: &[T]) -> Vec<u8> {
    // SAFETY: the library's entries are integers without padding (24 and 16 bytes), each initialized.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), std::mem::size_of_val(values)) }
        .to_vec()
}

const _: () = assert!(size_of::<raw::xen_cpuid_leaf_t>() == 24 && size_of::<raw::xen_msr_entry_t>() == 16);

impl Control {
    /// The policy of a domain's processors; constant from its start.
    pub fn cpu_policy(&self, domid: u32) -> Result<CpuPolicy, XenError> {
        let (library, handle) = self.parts();
        let handle = handle.cast();
        let (mut leaves, mut msrs) = (0, 0);
        // SAFETY: two numbers are written.
        if unsafe { library.guest.xc_cpu_policy_get_size(handle, &raw mut leaves, &raw mut msrs) } < 0 {
            return Err(last_error("asking Xen for the size of a processor policy"));
        }
        // SAFETY: makes an object, or gives null.
        let policy = Policy { control: self, raw: unsafe { library.guest.xc_cpu_policy_init() } };
        if policy.raw.is_null() {
            return Err(last_error("making a processor policy"));
        }
        // SAFETY: the object is live.
        if unsafe { library.guest.xc_cpu_policy_get_domain(handle, domid, policy.raw) } < 0 {
            return Err(last_error(format!("asking for the processor policy of domain {domid}")));
        }
        let mut cpuid = vec![raw::xen_cpuid_leaf_t::default(); leaves as usize];
        let mut entries = vec![raw::xen_msr_entry_t::default(); msrs as usize];
        // SAFETY: room for as many entries as the numbers say; the numbers become what was written.
        let code = unsafe {
            library.guest.xc_cpu_policy_serialise(
                handle,
                policy.raw,
                cpuid.as_mut_ptr(),
                &raw mut leaves,
                entries.as_mut_ptr(),
                &raw mut msrs,
            )
        };
        if code < 0 {
            return Err(last_error(format!("writing down the processor policy of domain {domid}")));
        }
        cpuid.truncate(leaves as usize);
        entries.truncate(msrs as usize);
        Ok(CpuPolicy { cpuid: bytes_of(&cpuid), msrs: bytes_of(&entries) })
    }
}
