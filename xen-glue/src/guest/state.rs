//! Saving the state of a suspended domain.

use romulus_transport::Memory;

use crate::device_model::{DeviceModel, MAX_STATE_BYTES};
use crate::domain::Xen;
use crate::error::XenError;
use crate::library::param;
use crate::records::{BesideContext, HvmParam, Tsc, write_epoch_state};

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
    /// The device model's part, before it is put into the records.
    model: Vec<u8>,
    /// Set when the domain is built, and constant from then on.
    params: Vec<HvmParam>,
}

impl StateSaver {
    /// For a domain; its context never becomes longer.
    pub fn new(xen: &Xen, domid: u32, has_device_model: bool) -> Result<Self, XenError> {
        let context = xen.control.context_bytes(domid)? as usize;
        let params = params(xen, domid)?;
        let model = if has_device_model { vec![0; MAX_STATE_BYTES] } else { Vec::new() };
        Ok(Self { scratch: vec![0; context + model.len() + AROUND_BYTES], model, params })
    }

    /// Saves into `into`; returns the length. `device_model` has written down its state.
    pub fn save(
        &mut self,
        xen: &Xen,
        domid: u32,
        device_model: Option<&DeviceModel>,
        into: &Memory,
    ) -> Result<u64, XenError> {
        let tsc = xen.control.tsc_info(domid)?;
        let tsc =
            Tsc { mode: tsc.mode, khz: tsc.khz, elapsed_ns: tsc.elapsed_ns, incarnation: tsc.incarnation };
        let model_bytes = device_model.map(|model| model.read_state(&mut self.model)).transpose()?;
        let device_model = model_bytes.map(|bytes| &self.model[..bytes]);
        let rest = BesideContext { tsc, params: &self.params, device_model };
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
