//! Attaching to a running QEMU: discovery, refusals, the mapped memory.

use romulus_checkpoint::PAGE_BYTES;
use romulus_checkpoint::Region;
use romulus_checkpoint::gate::GateError;
use romulus_host::gate::can_redirect;
use romulus_host::tracking::{self, DirtyRange, TrackingError};

use super::options::GuestOptions;
use super::ram_file::RamFile;
use super::run_state::RunState;
use super::{PauseDetail, QemuGuest};
use crate::discover::{Inventory, identity, ram, refusal};
use crate::error::QemuError;
use crate::gates::{self, BufferGate, Card, CardGate, GateChoices, cards};
use crate::process::Process;
use crate::qmp::{Client, Prepared, QmpError};
use crate::stream::{ROM_REGION, RomRecord};

/// Connects to the monitor of a guest. A monitor that gives no greeting serves somebody else.
pub(crate) fn connect(options: &GuestOptions) -> Result<Client, QemuError> {
    let path = options.qmp.display();
    match Client::connect(&options.qmp, options.command_timeout) {
        Ok(client) => Ok(client),
        Err(QmpError::Timeout { what, waited }) if what == "the greeting" => {
            Err(QemuError::Refused(format!(
                "QMP socket {path} accepts but does not greet within {waited:?}: another program (another romulus?) is \
                 connected to it; disconnect that, or give QEMU a second -qmp socket for Romulus"
            )))
        }
        Err(QmpError::Io(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(QemuError::Machine(format!(
                "connecting to QMP socket {path}: {error}; run romulus as root or as QEMU's user"
            )))
        }
        Err(QmpError::Io(error)) => Err(QemuError::failed(
            format!("connecting to QMP socket {path}"),
            format!("{error}; start QEMU with -qmp unix:PATH,server=on,wait=off"),
        )),
        Err(QmpError::Protocol(why)) => Err(QemuError::Refused(format!(
            "{path} is not a QMP socket ({why}); start QEMU with -qmp unix:PATH,server=on,wait=off"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The process behind a monitor.
pub(crate) fn process(client: &Client, options: &GuestOptions) -> Result<Process, QemuError> {
    match options.pid {
        Some(pid) => Process::open(pid),
        None => Process::of_monitor(client),
    }
}

/// The gates of the guest's cards. Redirection is looked for in this thread's network namespace, so
/// it has to be QEMU's.
fn plan_gates(cards: &[Card], process: &Process, choices: &GateChoices) -> Result<Vec<CardGate>, QemuError> {
    let same_network = process.shares_network();
    gates::plan(cards, choices, &|spec| {
        if same_network {
            return can_redirect(spec);
        }
        Err(GateError(format!(
            "card {} on {}: QEMU runs in another network namespace; run romulus there (nsenter --net=/proc/{}/ns/net \
             romulus ...)",
            spec.nic,
            spec.tap,
            process.pid()
        )))
    })
}

fn buffered(gates: &[CardGate]) -> Vec<Card> {
    let card = |gate: &CardGate| match gate {
        CardGate::Buffer(card) => Some(card.clone()),
        _ => None,
    };
    gates.iter().filter_map(card).collect()
}

impl QemuGuest {
    /// The gate of the cards that QEMU itself holds.
    pub fn buffers(&self) -> BufferGate {
        self.buffers.clone()
    }

    /// The gates that its cards are to have.
    pub fn gates(&self) -> &[CardGate] {
        &self.gates
    }

    /// Attaches to a running QEMU. Nothing of the guest is changed before
    /// [`start_tracking`](romulus_checkpoint::guest::Guest::start_tracking). Refuses what cannot
    /// be protected, naming what and how to mend it.
    pub fn attach(options: GuestOptions) -> Result<Self, QemuError> {
        let mut client = connect(&options)?;
        let process = process(&client, &options)?;
        let pid = process.pid();
        tracking::check(pid.unsigned_abs()).map_err(|error| match error {
            TrackingError::Gone { .. } => QemuError::Gone { pid },
            TrackingError::Privilege(_) | TrackingError::Unsupported { .. } => {
                QemuError::Machine(format!("tracking the writes of QEMU's process {pid}: {error}"))
            }
            _ => QemuError::Refused(error.to_string()),
        })?;
        let inventory = Inventory::take(&mut client)?;
        let mut allowances = options.allowances;
        allowances.network |= options.gates.is_some();
        refusal::check(&inventory, allowances)?;
        let cards = cards(&inventory, &process.interfaces(), process.has_open("/dev/vhost-net"));
        let gates = match &options.gates {
            Some(choices) => plan_gates(&cards, &process, choices)?,
            None => Vec::new(),
        };
        let regions = ram::regions(&inventory)?;
        let mappings = ram::locate(&regions, &process.shared_mappings()?, inventory.address_of_zero)?;

        let mut layout = ram::layout(&regions);
        let mut memory = Vec::new();
        let mut ranges = Vec::new();
        let mut ram_files = Vec::new();
        let mut first = 0;
        for (mapping, region) in mappings.iter().zip(&layout.regions) {
            let (file, block) = process.map_read_only(mapping)?;
            ram_files.push(RamFile { file, offset_bytes: mapping.offset, memory: block.clone() });
            memory.push(block);
            ranges.push(DirtyRange {
                address: mapping.address,
                pages: region.pages,
                first: romulus_checkpoint::PageIndex(first),
            });
            first += region.pages;
        }
        let rom = RomRecord::with_room_for(identity::rom_bytes(&inventory));
        let rom_region_pages = rom.memory().len_bytes() as u64 / PAGE_BYTES;
        layout.regions.push(Region { name: ROM_REGION.into(), pages: rom_region_pages });
        memory.push(rom.memory().clone());

        let name = options.name.clone().or_else(|| inventory.guest_name.clone());
        Ok(Self {
            name: name.unwrap_or_else(|| "guest".into()),
            machine: identity::identity(&inventory),
            saves_devices: inventory.saves_devices,
            layout,
            memory,
            ranges,
            ram_files,
            rom_first: first,
            rom_dirty_pages: 0,
            rom,
            rom_refresh_until: None,
            savers: None,
            tracker: None,
            paused: false,
            stop_in_doubt: false,
            stays_paused: false,
            run: RunState::running(),
            detail: PauseDetail::default(),
            stop: Prepared::new("stop", &serde_json::Value::Null),
            cont: Prepared::new("cont", &serde_json::Value::Null),
            client,
            process,
            reported_death: false,
            buffers: BufferGate::new(buffered(&gates), cards.into_iter().map(|card| card.netdev).collect()),
            gates,
            options,
        })
    }
}
