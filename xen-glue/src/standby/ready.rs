//! A standby domain that was built and waits: its memory mapped, its parameters known.

use std::sync::Arc;

use romulus_checkpoint::extent::Extent;
use romulus_checkpoint::standby::CopyOnlyHomes;
use romulus_transport::Memory;

use super::config::{StandbyAllowances, StandbyConfig};
use super::emulator::Emulator;
use super::stream::empty_domain;
use super::tool;
use crate::claim::{Claim, Owner};
use crate::domain::Xen;
use crate::error::XenError;
use crate::layout::FrameMap;
use crate::library::{DomainInfo, TscInfo, param};
use crate::machine::Machine;
use crate::records::{EpochState, HvmParam, RecordError, read_params};

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
    /// What emulates an HVM domain's devices; waits for a state.
    emulator: Option<Emulator>,
}

impl Ready {
    /// Builds a paused domain of the machine's kind with these frames, all zero.
    pub fn build(
        xen: Arc<Xen>,
        machine: &Machine,
        frames: &FrameMap,
        may_have: StandbyAllowances,
    ) -> Result<Self, XenError> {
        let config = StandbyConfig::of_guest(&machine.config, may_have)
            .map_err(|why| XenError::Refused(format!("the guest's configuration: {why}")))?;
        let params = read_params(&machine.params)
            .ok_or_else(|| XenError::Refused("the guest's parameters are not as they must be".into()))?;
        if config.has_device_model != machine.device_model.is_some() {
            let why = "its configuration and its state do not agree on whether it has a device model";
            return Err(XenError::Refused(format!("the guest's description: {why}")));
        }
        let kept = kept(&params, frames);
        if let Some(domid) = xen.by_name(&config.name)?
            && let Some(info) = xen.control.domain(domid)?
        {
            may_replace(&config.name, &info, Claim::new(domid).owner(&xen.store)?)
                .map_err(XenError::Refused)?;
            tracing::warn!(domid, name = config.name, "a standby of an earlier backup is destroyed");
            crate::domain::destroy(&xen.control, domid)?;
        }
        has_room(frames.pages(), xen.control.free_pages()?).map_err(XenError::Refused)?;
        tool::restore_paused(&config.name, &empty_domain(&config.json, machine, frames))?;
        let domid = xen.by_name(&config.name)?.ok_or_else(|| {
            XenError::failed("building the standby", "xl has built it, and it is not there")
        })?;
        let mut ready = Self { xen, config, domid, memory: Vec::new(), kept, emulator: None };
        let rest = Claim::new(domid)
            .take(&ready.xen.store)
            .and_then(|_| ready.replace_device_model())
            .and_then(|()| ready.map(frames));
        if let Err(error) = rest {
            if let Err(error) = ready.destroy() {
                tracing::warn!(domid, %error, "the standby that was half built is left behind");
            }
            return Err(error);
        }
        Ok(ready)
    }

    fn replace_device_model(&mut self) -> Result<(), XenError> {
        if self.config.has_device_model {
            self.emulator = Some(Emulator::of_domain(&self.xen, self.domid)?);
        }
        Ok(())
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

    /// Whether it still waits. Where nobody can tell, it does: the image is in its memory.
    pub fn check(&mut self) -> Result<(), XenError> {
        let info = match self.xen.control.domain(self.domid) {
            Ok(info) => info.ok_or(XenError::Gone { domid: self.domid })?,
            Err(error) => {
                tracing::warn!(%error, "looking after the standby");
                return Ok(());
            }
        };
        if info.dying {
            return Err(XenError::Gone { domid: self.domid });
        }
        if !info.paused || info.shutdown.is_some() {
            let why = format!("domain {} ({}) is not paused any more", self.domid, self.config.name);
            return Err(XenError::failed("looking after the standby", why));
        }
        self.emulator.as_mut().map_or(Ok(()), Emulator::check)
    }

    /// Loads processors, devices and parameters; the domain stays paused. May be done again, behind a
    /// [`renew`](Self::renew).
    pub fn load(&mut self, state: &EpochState<'_>) -> Result<(), XenError> {
        match (&mut self.emulator, state.device_model) {
            (Some(emulator), Some(bytes)) => emulator.take_state(&self.xen, bytes)?,
            (None, None) => {}
            (Some(_), None) => return Err(RecordError::Count("of the device model").into()),
            (None, Some(_)) => {
                return Err(XenError::failed("loading a state", "the standby has no device model for it"));
            }
        }
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

    /// Makes it ready for another [`load`](Self::load).
    pub fn renew(&mut self) -> Result<(), XenError> {
        self.emulator.as_mut().map_or(Ok(()), |emulator| emulator.renew(&self.xen))
    }

    /// Lets it run.
    pub fn run(&mut self) -> Result<(), XenError> {
        self.emulator.as_mut().map_or(Ok(()), Emulator::run_on)?;
        self.xen.control.unpause(self.domid)
    }

    /// Gives it the guest's name, and leaves it to whoever protects it next.
    pub fn take_name(&self) -> Result<(), XenError> {
        let given = Claim::new(self.domid).give_back(&self.xen.store);
        tool::rename(self.domid, &self.config.guest).and(given)
    }

    /// Destroys it.
    pub fn destroy(&mut self) -> Result<(), XenError> {
        self.memory.clear();
        let destroyed = crate::domain::destroy(&self.xen.control, self.domid);
        if let Some(mut emulator) = self.emulator.take() {
            emulator.bury();
        }
        destroyed
    }
}

/// Whether a domain that has the standby's name is the standby of a backup that was killed.
fn may_replace(name: &str, info: &DomainInfo, owner: Owner) -> Result<(), String> {
    let domid = info.domid;
    if let Owner::Alive(pid) = owner {
        return Err(format!(
            "domain {domid} ({name}) is the standby of process {pid}: a host can have one for each name of a domain"
        ));
    }
    if !info.dying && (!info.paused || info.shutdown.is_some()) {
        return Err(format!(
            "domain {domid} runs under the name {name}: it may be the guest, taken over earlier. Give it its name (xl \
             rename) if it is, or destroy it (xl destroy)"
        ));
    }
    Ok(())
}

/// Whether a domain of so many pages can be built.
fn has_room(pages: u64, free: u64) -> Result<(), String> {
    if pages <= free {
        return Ok(());
    }
    let mib = |pages: u64| pages.saturating_mul(PAGE_BYTES as u64) >> 20;
    Err(format!(
        "the guest has {} MiB of memory, and this host's Xen has {} MiB free (xl info): free some, by a smaller dom0 \
         (xl mem-set 0, or dom0_mem= for Xen) or fewer domains",
        mib(pages),
        mib(free)
    ))
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
    use crate::library::Shutdown;
    use romulus_checkpoint::PageIndex;

    #[test]
    fn only_a_paused_domain_of_nobody_makes_way_for_a_standby() {
        let info = |paused, shutdown| DomainInfo { paused, shutdown, ..DomainInfo::running() };
        for owner in [Owner::Nobody, Owner::Dead] {
            assert!(may_replace("vm--standby", &info(true, None), owner).is_ok());
            for running in [info(false, None), info(true, Some(Shutdown::Crash))] {
                let why = may_replace("vm--standby", &running, owner).unwrap_err();
                assert!(why.contains("domain 3 runs") && why.contains("xl rename"), "{why}");
            }
        }
        assert!(
            may_replace("vm--standby", &DomainInfo { dying: true, ..info(false, None) }, Owner::Dead).is_ok()
        );
        let why = may_replace("vm--standby", &info(true, None), Owner::Alive(42)).unwrap_err();
        assert!(why.contains("process 42"), "{why}");
    }

    #[test]
    fn more_memory_than_there_is_is_refused_with_both_figures() {
        assert!(has_room(256, 256).is_ok());
        let why = has_room(1 << 18, 1 << 17).unwrap_err();
        assert!(why.contains("1024 MiB") && why.contains("512 MiB"), "{why}");
        assert!(has_room(u64::MAX, 1).is_err());
    }

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
