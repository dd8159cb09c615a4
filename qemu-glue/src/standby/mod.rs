//! A second QEMU that stands ready over the shadow image.

mod incoming;
mod info;
mod options;
mod process;
mod stale;
mod template;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use romulus_checkpoint::GuestLayout;
use romulus_checkpoint::standby::{ImageRegion, Standby, StandbyError};
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_host::gate::{GuardedRedirect, NicSpec};
use romulus_host::guard::GateHandle;
use romulus_transport::Memory;
use serde_json::json;

pub use info::StandbyInfo;
pub use options::StandbyOptions;

use crate::discover::{Inventory, identity, ram};
use crate::error::QemuError;
use crate::gates::{Card, cards};
use crate::qmp::{Client, QmpError};
use crate::stream::{ROM_REGION, RomRecord, open_state};
use incoming::Incoming;
use process::QemuChild;
use template::Places;

/// A guest that a standby has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveGuest {
    /// QEMU's process id.
    pub pid: i32,
    /// Its QMP socket, to which nobody is connected.
    pub qmp: PathBuf,
    /// How long loading the state took.
    pub load: Duration,
    /// How long `cont` took.
    pub resume: Duration,
}

/// The image that a machine was prepared over.
struct Image {
    regions: Vec<(String, String)>,
    rom: Memory,
    layout: GuestLayout,
}

/// Keeps a QEMU ready to become the guest.
pub struct QemuStandby {
    options: StandbyOptions,
    image: Option<Image>,
    prepared: Option<Incoming>,
    active: Option<(QemuChild, ActiveGuest)>,
    /// The last activation failed when the machine may have run.
    may_have_run: bool,
    started: u64,
    info: StandbyInfo,
}

impl QemuStandby {
    /// A standby that is not prepared yet. Clears away what killed predecessors left.
    pub fn new(options: StandbyOptions) -> Self {
        stale::remove(&options.run_dir);
        Self {
            options,
            image: None,
            prepared: None,
            active: None,
            may_have_run: false,
            started: 0,
            info: StandbyInfo::default(),
        }
    }

    /// Tells which QEMU this is at any time, also when this value belongs to a driver.
    pub fn info(&self) -> StandbyInfo {
        self.info.clone()
    }

    /// The guest, once the standby was activated.
    pub fn active(&self) -> Option<&ActiveGuest> {
        self.active.as_ref().map(|(_, guest)| guest)
    }

    /// Starts a QEMU over the image, arms it, and says what it is.
    fn start(&mut self, image: &Image, trial: bool) -> Result<(Incoming, MachineIdentity), QemuError> {
        self.started += 1;
        let kind = if trial { "trial" } else { "standby" };
        let directory = self.options.run_dir.join(format!("{kind}-{}-{}", std::process::id(), self.started));
        let qmp = QemuChild::qmp_in(&directory);
        let places = Places { images: &image.regions, qmp: &qmp, run: &directory };
        let command = match (trial, &self.options.trial_command) {
            (true, Some(command)) => template::expand(command, &places)?,
            (true, None) => template::expand(&template::for_trial(&self.options.command), &places)?,
            (false, _) => template::expand(&self.options.command, &places)?,
        };
        QemuChild::make_directory(&directory)?;
        let (child, client) = QemuChild::start(&command, &directory, self.options.start_timeout)?;
        // Before all questions, of which there are many: from here on it ends with this process.
        let mut incoming = Incoming::arm(child, client)?;
        let inventory = Inventory::take(&mut incoming.client)?;
        check_memory(&inventory, image, &incoming.child, trial)?;
        let machine = identity::identity(&inventory);
        let cards = cards(&inventory, &incoming.child.process().interfaces(), false);
        incoming.taps = cards.iter().filter_map(Card::on_tap).collect();
        Ok((incoming, machine))
    }

    fn load(&self, incoming: &mut Incoming, state: &[u8]) -> Result<(), QemuError> {
        let image = self.image.as_ref().ok_or_else(|| QemuError::failed("loading", "nothing is prepared"))?;
        let prefix = RomRecord::load(&image.rom)?;
        incoming.load(&prefix, open_state(state)?, self.options.load_timeout)
    }

    fn try_activate(&mut self, state: &[u8]) -> Result<(), QemuError> {
        let mut incoming =
            self.prepared.take().ok_or_else(|| QemuError::failed("activating", "no standby is prepared"))?;
        self.may_have_run = false;
        let start = Instant::now();
        self.load(&mut incoming, state)?;
        let load = start.elapsed();
        let start = Instant::now();
        clear_former_gates(&incoming.taps);
        if let Err(error) = run(&mut incoming.client) {
            self.may_have_run = !matches!(error, QmpError::Refused { .. });
            // Going out of scope `incoming` ends QEMU and waits for its end.
            return Err(incoming.child.failed("cont", error));
        }
        let resume = start.elapsed();
        announce(&mut incoming.client);
        let Incoming { mut child, .. } = incoming;
        child.keep();
        let guest = ActiveGuest { pid: child.process().pid(), qmp: child.qmp(), load, resume };
        tracing::info!(pid = guest.pid, qmp = %guest.qmp.display(), ?load, ?resume, "the standby is the guest now");
        self.active = Some((child, guest));
        Ok(())
    }
}

/// A tap may outlive a guest, its protector and its guard, and keep the filter of their gate: what the
/// guest sends would go nowhere. This host owns the guest now, so such a filter is nobody's any more.
fn clear_former_gates(taps: &[NicSpec]) {
    if taps.is_empty() {
        return;
    }
    if let Err(error) = GuardedRedirect::new(taps.to_vec()).clear() {
        tracing::error!(%error, "the filter of a former output gate stays: the guest's packets go nowhere");
    }
}

/// Tells switches and neighbours where the guest is now, at once and again and again. Loading the
/// state has begun that already; this goes on for longer, from the moment at which the guest runs.
fn announce(client: &mut Client) {
    let plan = json!({"initial": 20, "max": 1000, "rounds": 12, "step": 80});
    if let Err(error) = client.execute("announce-self", plan) {
        tracing::warn!(%error, "QEMU does not announce the guest on its networks again");
    }
}

/// Runs the machine. Where `cont` is not answered its run state decides.
fn run(client: &mut Client) -> Result<(), QmpError> {
    let Err(error) = client.execute("cont", json!({})) else { return Ok(()) };
    if matches!(error, QmpError::Refused { .. }) {
        return Err(error);
    }
    match client.execute("query-status", json!({})) {
        Ok(status) if status["status"].as_str() == Some("running") => Ok(()),
        _ => Err(error),
    }
}

/// The machine must have its RAM in the image, block for block.
fn check_memory(
    inventory: &Inventory,
    image: &Image,
    child: &QemuChild,
    trial: bool,
) -> Result<(), QemuError> {
    let refused = |why: String| Err(QemuError::Refused(format!("standby command: {why}")));
    let blocks = &inventory.blocks;
    for region in image.layout.regions.iter().filter(|region| region.name != ROM_REGION) {
        let Some(block) = blocks.iter().find(|block| block.name == region.name) else {
            return refused(format!("its machine has no RAM block {}, the guest has one", region.name));
        };
        let bytes = region.pages * romulus_checkpoint::PAGE_BYTES;
        if block.total_bytes != bytes {
            return refused(format!(
                "RAM block {} has {} bytes here and {bytes} in the guest",
                region.name, block.total_bytes
            ));
        }
    }
    if trial {
        return match inventory.backends.iter().find(|backend| backend.share) {
            Some(backend) => refused(format!(
                "a trial load would write into the guest's image: memory backend {} is not private there",
                backend.id
            )),
            None => Ok(()),
        };
    }
    let regions = ram::regions(inventory)?;
    let mappings = ram::locate(&regions, &child.process().shared_mappings()?, inventory.address_of_zero)?;
    for (region, mapping) in regions.iter().zip(mappings) {
        let Some((_, path)) = image.regions.iter().find(|(name, _)| *name == region.name) else {
            return refused(format!("its machine has a RAM block {} that the guest has not", region.name));
        };
        let inode = std::fs::metadata(path).map_err(|error| QemuError::failed(path.clone(), error))?.ino();
        if !mapping.file.ends_with(&format!(":{inode}")) {
            return refused(format!("RAM block {} is not in the image {path}", region.name));
        }
    }
    Ok(())
}

impl Standby for QemuStandby {
    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError> {
        self.abandon();
        let rom = image.iter().find(|region| region.name == ROM_REGION);
        let Some(rom) = rom.map(|region| region.memory.clone()) else {
            return Err(StandbyError {
                what: "preparing".into(),
                why: format!("the guest has no region {ROM_REGION}: it is no QEMU guest"),
            });
        };
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let regions = image.iter().filter(|region| region.name != ROM_REGION);
        let regions = regions.map(|region| (region.name.clone(), path(&region.path))).collect();
        let image = Image { regions, rom, layout: layout.clone() };
        let started = self.start(&image, false);
        self.image = Some(image);
        let (incoming, machine) = started.map_err(|error| error.standby("preparing"))?;
        self.info.set(Some((incoming.child.process().pid(), incoming.child.qmp())));
        self.prepared = Some(incoming);
        Ok(machine)
    }

    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        let Some(image) = self.image.take() else {
            return Err(StandbyError { what: "trial load".into(), why: "nothing is prepared".into() });
        };
        let started = self.start(&image, true);
        self.image = Some(image);
        let outcome = started.and_then(|(mut incoming, _)| self.load(&mut incoming, state));
        outcome.map_err(|error| error.standby("trial load"))
    }

    fn check(&mut self) -> Result<(), StandbyError> {
        let Some(incoming) = &mut self.prepared else {
            return Err(StandbyError { what: "check".into(), why: "no standby is prepared".into() });
        };
        let outcome = incoming.check();
        if outcome.is_err() {
            self.abandon();
        }
        outcome.map_err(|error| error.standby("check"))
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        let outcome = self.try_activate(state);
        if outcome.is_err() {
            self.info.set(None);
        }
        outcome.map_err(|error| error.standby("activating"))
    }

    fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    fn abandon(&mut self) {
        if self.prepared.take().is_some() {
            self.info.set(None);
        }
    }
}
