//! Saving the state of a suspended domain.

use romulus_transport::Memory;

use crate::domain::Xen;
use crate::error::XenError;
use crate::library::param;
use crate::records::{HvmParam, Tsc, TscAndParams, write_epoch_state};

/// Room beside the context: other records, their headers, padding.
const AROUND_BYTES: usize = 1024;

/// The parameters of a domain that Xen's migration stream carries, those that are not 0.
pub(super) fn params(xen: &Xen, domid: u32) -> Result<Vec<HvmParam>, XenError> {
    let mut params = Vec::new();
    for index in param::MIGRATED {
        let value = xen.control.param(domid, index)?;
        if value != 0 {
            params.push(HvmParam { index: index.into(), value });
        }
    }
    Ok(params)
}

/// Writes the records of each epoch.
pub(super) struct StateSaver {
    scratch: Vec<u8>,
    /// Set when the domain is built, and constant from then on.
    params: Vec<HvmParam>,
}

impl StateSaver {
    /// For a domain; its context never becomes longer.
    pub fn new(xen: &Xen, domid: u32) -> Result<Self, XenError> {
        let context = xen.control.context_bytes(domid)? as usize;
        let params = params(xen, domid)?;
        Ok(Self { scratch: vec![0; context + AROUND_BYTES], params })
    }

    /// Saves into `into`; returns the length.
    pub fn save(&mut self, xen: &Xen, domid: u32, into: &Memory) -> Result<u64, XenError> {
        let tsc = xen.control.tsc_info(domid)?;
        let tsc =
            Tsc { mode: tsc.mode, khz: tsc.khz, elapsed_ns: tsc.elapsed_ns, incarnation: tsc.incarnation };
        let rest = TscAndParams { tsc, params: &self.params };
        let length = write_epoch_state(&mut self.scratch, rest, |place| xen.control.context(domid, place))?;
        if length > into.len_bytes() {
            return Err(XenError::Refused(format!(
                "the state of domain {domid} has {length} bytes, and there is room for {}: raise --state-kib",
                into.len_bytes()
            )));
        }
        into.write(0, &self.scratch[..length]);
        Ok(length as u64)
    }
}
