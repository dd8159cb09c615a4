//! A standby domain that was built and waits: its memory mapped, its parameters known.

use std::sync::Arc;

use romulus_checkpoint::extent::Extent;
use romulus_checkpoint::standby::CopyOnlyHomes;
use romulus_transport::Memory;

use super::config::StandbyConfig;
use super::stream::empty_domain;
use super::tool;
use crate::domain::Xen;
use crate::error::XenError;
use crate::layout::FrameMap;
use crate::library::{TscInfo, param};
use crate::machine::Machine;
use crate::records::{EpochState, HvmParam, read_params};

const PAGE_BYTES: usize = romulus_checkpoint::PAGE_BYTES as usize;

/// Parameters that name a frame which the host's own services share with the domain: they have
/// begun to use it when the standby is built, and a guest that wakes elsewhere finds it as it is.
const SHARED_FRAMES: [u32; 4] = [param::STORE_PFN, param::CONSOLE_PFN, param::IOREQ_PFN, param::BUFIOREQ_PFN];

/// A domain, paused.
pub(super) struct Ready {
    xen: Arc<Xen>,
    config: StandbyConfig,
    domid: u32,
    /// Its memory, one span a run of frames.
    memory: Vec<Memory>,
    kept: Vec<Extent>,
}

impl Ready {
    /// Builds a paused domain of the machine's kind with these frames, all zero.
    pub fn build(xen: Arc<Xen>, machine: &Machine, frames: &FrameMap) -> Result<Self, XenError> {
        let config = StandbyConfig::of_guest(&machine.config)
            .map_err(|why| XenError::Refused(format!("the guest's configuration: {why}")))?;
        let params = read_params(&machine.params)
            .ok_or_else(|| XenError::Refused("the guest's parameters are not as they must be".into()))?;
        let kept = kept(&params, frames);
        if let Some(domid) = xen.by_name(&config.name)? {
            // Of a backup that was killed: nobody else has one of this name.
            tracing::warn!(domid, name = config.name, "a standby of an earlier backup is destroyed");
            crate::domain::destroy(&xen.control, domid)?;
        }
        tool::restore_paused(&config.name, &empty_domain(&config.json, machine, frames))?;
        let domid = xen.by_name(&config.name)?.ok_or_else(|| {
            XenError::failed("building the standby", "xl has built it, and it is not there")
        })?;
        let mut ready = Self { xen, config, domid, memory: Vec::new(), kept };
        ready.map(frames)?;
        Ok(ready)
    }

    fn map(&mut self, frames: &FrameMap) -> Result<(), XenError> {
        for run in frames.runs() {
            let numbers: Vec<u64> = (run.first..run.end()).collect();
            self.memory.push(self.xen.memory.map(self.domid, &numbers, true)?.into_memory());
        }
        // Xen may hand out pages with a pattern in them.
        let (zeros, mut page) = ([0; PAGE_BYTES], 0);
        let homes = self.homes();
        for memory in &homes.regions {
            for offset in (0..memory.len_bytes()).step_by(PAGE_BYTES) {
                if !homes.keeps(romulus_checkpoint::PageIndex(page)) {
                    memory.write(offset, &zeros);
                }
                page += 1;
            }
        }
        Ok(())
    }

    /// Its memory, for copies.
    pub fn homes(&self) -> CopyOnlyHomes {
        CopyOnlyHomes { regions: self.memory.clone(), kept: self.kept.clone() }
    }

    /// Its number.
    pub fn domid(&self) -> u32 {
        self.domid
    }

    /// The guest's name, and its own until it runs.
    pub fn names(&self) -> &StandbyConfig {
        &self.config
    }

    /// Whether it still waits.
    pub fn check(&self) -> Result<(), XenError> {
        let info = self.xen.control.domain(self.domid)?.ok_or(XenError::Gone { domid: self.domid })?;
        if info.dying {
            return Err(XenError::Gone { domid: self.domid });
        }
        if !info.paused || info.shutdown.is_some() {
            let why = format!("domain {} ({}) is not paused any more", self.domid, self.config.name);
            return Err(XenError::failed("looking after the standby", why));
        }
        Ok(())
    }

    /// Loads processors, devices and parameters; the domain stays paused. May be done again.
    pub fn load(&self, state: &EpochState<'_>) -> Result<(), XenError> {
        let control = &self.xen.control;
        for index in SHARED_FRAMES {
            let (have, want) = (control.param(self.domid, index)?, state.param(index));
            if have != want {
                return Err(XenError::failed(
                    format!("comparing parameter {index} of the standby"),
                    format!("the guest says {want:#x}, the standby was built with {have:#x}"),
                ));
            }
        }
        for HvmParam { index, value } in &state.params {
            let Ok(index) = u32::try_from(*index) else { continue };
            if control.param(self.domid, index)? != *value {
                control.set_param(self.domid, index, *value)?;
            }
        }
        let tsc = state.tsc;
        control.set_tsc_info(
            self.domid,
            &TscInfo {
                mode: tsc.mode,
                khz: tsc.khz,
                elapsed_ns: tsc.elapsed_ns,
                incarnation: tsc.incarnation,
            },
        )?;
        control.set_context(self.domid, state.context)
    }

    /// Lets it run.
    pub fn run(&self) -> Result<(), XenError> {
        self.xen.control.unpause(self.domid)
    }

    /// Gives it the guest's name.
    pub fn take_name(&self) -> Result<(), XenError> {
        tool::rename(self.domid, &self.config.guest)
    }

    /// Destroys it.
    pub fn destroy(&mut self) -> Result<(), XenError> {
        self.memory.clear();
        crate::domain::destroy(&self.xen.control, self.domid)
    }
}

/// The pages of the frames that the host's services share with the domain.
fn kept(params: &[HvmParam], frames: &FrameMap) -> Vec<Extent> {
    let shared =
        params.iter().filter(|param| SHARED_FRAMES.iter().any(|index| u64::from(*index) == param.index));
    let mut pages: Vec<_> = shared.filter_map(|param| frames.page(param.value)).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.into_iter().map(|first| Extent { first, pages: 1 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::FrameRun;
    use romulus_checkpoint::PageIndex;

    #[test]
    fn the_rings_of_the_hosts_services_are_kept() {
        let frames =
            FrameMap::new(vec![FrameRun { first: 0, frames: 100 }, FrameRun { first: 0xfeff8, frames: 8 }]);
        let param = |index: u32, value| HvmParam { index: index.into(), value };
        let params = [
            param(param::CONSOLE_PFN, 0xfefff),
            param(param::STORE_PFN, 0xfeffc),
            param(param::IDENT_PT, 0xfeffe),
            // Not among the frames: nothing that could be overwritten.
            param(param::IOREQ_PFN, 0x9_0000),
        ];
        let pages: Vec<_> = kept(&params, &frames).iter().map(|extent| extent.first).collect();
        assert_eq!(pages, [PageIndex(104), PageIndex(107)]);
    }
}
