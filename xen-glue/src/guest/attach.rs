//! Attaching to a running domain: discovery, refusals, the mapped memory.

use std::sync::Arc;
use std::time::Instant;

use romulus_host::gate::can_redirect;
use romulus_transport::Memory;

use super::events::Events;
use super::options::XenOptions;
use super::state::params;
use super::suspend::Patience;
use super::{PauseDetail, XenGuest};
use crate::claim::Claim;
use crate::device_model::DeviceModel;
use crate::discover::config::Config;
use crate::discover::refusal::{Findings, reasons};
use crate::discover::vif::{self, Vif, VifGate};
use crate::domain::{self, Xen};
use crate::error::XenError;
use crate::layout::{FrameMap, FrameRun, RunFinder};
use crate::library::{DomainInfo, param};
use crate::machine::Machine;
use crate::records::params_body;

/// Frames asked for at once.
const BATCH: u64 = 1024;
/// Frames of a PVH domain's tables and rings, just below 4 GiB.
const HIGH: std::ops::Range<u64> = 0xfc000..0x10_0000;
/// Looks at the memory of a domain that changes it.
const MOST_TRIES: u32 = 3;

impl XenGuest {
    /// Attaches to a running domain. Nothing of it is changed before
    /// [`start_tracking`](romulus_checkpoint::guest::Guest::start_tracking). Refuses what cannot
    /// be protected, naming what and how to mend it.
    pub fn attach(options: XenOptions) -> Result<Self, XenError> {
        let xen = Arc::new(Xen::open()?);
        let info = xen.find(&options.domain)?;
        let domid = info.domid;
        let found = findings(&xen, &info)?;
        let reasons = reasons(&found, options.allowances);
        if !reasons.is_empty() {
            return Err(XenError::Refused(format!("domain {domid}: {}", reasons.join("; "))));
        }
        let gates = plan_gates(&xen, domid, &options)?;
        let (frames, memory, pages) = map_memory(&xen, domid)?;
        let policy = xen.control.cpu_policy(domid)?;
        let mut device_model = (found.config.kind == "hvm").then(|| DeviceModel::open(domid)).transpose()?;
        let machine = Machine {
            xen: xen.version.clone(),
            vcpus: info.vcpus,
            pages: frames.pages(),
            config: found.config.json.clone(),
            cpuid: policy.cpuid,
            msrs: policy.msrs,
            params: params_body(&params(&xen, domid)?),
            device_model: device_model.as_mut().map(DeviceModel::state_of_running).transpose()?,
        };
        let name = options.name.clone().unwrap_or_else(|| found.config.name.clone());
        Ok(Self {
            name,
            domid,
            uuid: info.uuid,
            layout: frames.layout(),
            machine: machine.identity()?,
            memory,
            pages,
            frames,
            gates,
            claim: Claim::new(domid),
            device_model,
            tracking: None,
            suspended: false,
            in_doubt: false,
            stays_paused: false,
            events: Events::default(),
            patience: Patience::default(),
            store_told: Instant::now(),
            detail: PauseDetail::default(),
            xen,
            options,
        })
    }
}

fn findings(xen: &Xen, info: &DomainInfo) -> Result<Findings, XenError> {
    let domid = info.domid;
    let text = domain::describe(domid)?;
    let config = Config::read(&text)
        .map_err(|why| XenError::failed(format!("reading what xl list -l says of domain {domid}"), why))?;
    let stub = xen.store.read(&format!("/local/domain/{domid}/image/device-model-domid"))?;
    let mut found = Findings {
        hvm: info.hvm,
        assisted_paging: info.assisted_paging,
        shared_pages: info.shared_pages,
        paged_pages: info.paged_pages,
        pci_devices: xen.store.list(&format!("{}/pci", devices(domid)))?.len(),
        stub_domain: stub.and_then(|text| text.parse().ok()).filter(|domain| *domain != 0),
        shutdown: info.shutdown.map(|reason| format!("{reason:?}")),
        dying: info.dying,
        config,
        ..Findings::default()
    };
    if info.hvm {
        found.has_drivers = xen.control.param(domid, param::CALLBACK_IRQ)? != 0;
    } else {
        found.pv_log_dirty = Some(match xen.control.log_dirty_on(domid) {
            Ok(()) => {
                xen.control
                    .log_dirty_off(domid)
                    .map_err(|error| XenError::failed(format!("ending the log of domain {domid}"), error))?;
                "possible".into()
            }
            Err(error) => error.to_string(),
        });
    }
    Ok(found)
}

/// The gates of the domain's cards, whose back ends are looked for in this network namespace.
fn plan_gates(xen: &Xen, domid: u32, options: &XenOptions) -> Result<Vec<VifGate>, XenError> {
    let vifs = vifs(xen, domid)?;
    match &options.gates {
        Some(choices) => vif::plan(&vifs, choices, &can_redirect)
            .map_err(|why| XenError::Refused(format!("domain {domid}: {why}"))),
        None if vifs.is_empty() => Ok(Vec::new()),
        None => {
            Err(XenError::Refused(format!("domain {domid} has network cards, and nobody holds their output")))
        }
    }
}

/// The toolstack's own list of a domain's devices. What is below the domain's own `device` the guest
/// can write, and so hide a card whose output is to be held.
fn devices(domid: u32) -> String {
    format!("/libxl/{domid}/device")
}

/// Its cards.
pub(crate) fn vifs(xen: &Xen, domid: u32) -> Result<Vec<Vif>, XenError> {
    let folder = format!("{}/vif", devices(domid));
    let mut vifs = Vec::new();
    for name in xen.store.list(&folder)? {
        let Ok(devid) = name.parse::<u32>() else { continue };
        let node = |name: &str| xen.store.read(&format!("{folder}/{devid}/{name}"));
        let (mac, path) = (node("mac")?, node("backend")?);
        let backend = path.as_deref().and_then(vif::backend_domain).ok_or_else(|| {
            XenError::failed(
                format!("looking where the back end of card vif{devid} of domain {domid} runs"),
                format!("xenstore's {folder}/{devid}/backend says {path:?}"),
            )
        })?;
        let interface = match path {
            Some(path) if backend == 0 => xen.store.read(&format!("{path}/vifname"))?,
            _ => None,
        };
        vifs.push(Vif::read(domid, devid, backend, mac.as_deref(), interface.as_deref()));
    }
    vifs.sort_by_key(|vif| vif.devid);
    Ok(vifs)
}

/// Maps all of a domain's memory; also tells how many pages it has. A domain that gives up or gets
/// pages meanwhile (ballooning just after its start) is looked at again.
fn map_memory(xen: &Xen, domid: u32) -> Result<(FrameMap, Vec<Memory>, u64), XenError> {
    let pages = || xen.control.domain(domid)?.map(|info| info.pages).ok_or(XenError::Gone { domid });
    let mut tries = 0;
    loop {
        tries += 1;
        let before = pages()?;
        let frames = frame_map(xen, domid, before)?;
        let map = |run: &FrameRun| {
            let numbers: Vec<u64> = (run.first..run.end()).collect();
            Ok(xen.memory.map(domid, &numbers, false)?.into_memory())
        };
        let mapped: Result<Vec<Memory>, XenError> = frames.runs().iter().map(map).collect();
        match mapped {
            Ok(memory) if pages()? == before => return Ok((frames, memory, before)),
            Err(error) if tries == MOST_TRIES => return Err(error),
            _ if tries == MOST_TRIES => {
                return Err(XenError::Refused(format!(
                    "domain {domid} does not keep its memory (ballooning?): wait until it has settled, and set maxmem \
                     equal to memory"
                )));
            }
            Ok(_) => {}
            Err(error) => tracing::info!(domid, %error, "looking at the domain's memory again"),
        }
    }
}

/// Looks which frames have a page: first where the firmware's are, then from the lowest up, until as
/// many are found as the domain has and a batch without any follows. Most of the space below 4 GiB is
/// a hole, which takes longest.
fn frame_map(xen: &Xen, domid: u32, pages: u64) -> Result<FrameMap, XenError> {
    let end = xen.control.frames(domid)?;
    let high = HIGH.start.min(end)..HIGH.end.min(end);
    let rows = [high.clone(), 0..high.start, high.end..end];
    let mut finder = RunFinder::default();
    let mut there = Vec::with_capacity(BATCH as usize);
    let batches = rows.into_iter().flat_map(|row| {
        let end = row.end;
        row.step_by(BATCH as usize).map(move |first| first..end.min(first + BATCH))
    });
    let mut before = 0;
    for batch in batches {
        // A frame may be counted that is not the domain's own: only a gap is sure to be the end.
        if finder.pages() >= pages && finder.pages() == before {
            break;
        }
        before = finder.pages();
        let begin = batch.start;
        let mut frames: Vec<u64> = batch.collect();
        there.clear();
        xen.control.populated(domid, &mut frames, &mut there)?;
        finder.add(begin, there.iter().copied());
    }
    let map = finder.finish().map_err(|why| XenError::Refused(format!("domain {domid}: {why}")))?;
    if map.pages() == 0 {
        return Err(XenError::Refused(format!("domain {domid} has no memory")));
    }
    Ok(map)
}
