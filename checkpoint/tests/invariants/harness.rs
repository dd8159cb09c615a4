//! Two machines, a guest, an arena, an arbiter and a gate in one deterministic world. Everything
//! between the machines travels as encoded bytes; messages and writes are two queues without order
//! between them.

mod actions;
mod wires;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use romulus_checkpoint::arbiter::{Ownership, Record};
use romulus_checkpoint::backup::{self, Backup, BackupAction, BackupConfig, BackupState};
use romulus_checkpoint::extent::Transfer;
use romulus_checkpoint::primary::{
    self, NotTaken, Primary, PrimaryAction, PrimaryConfig, PrimaryState, Work,
};
use romulus_checkpoint::wire::message::{MachineIdentity, ROUND_MARKER};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::*;
use romulus_transport::Memory;

pub const PAGES: u64 = 6;
pub const SPARES: u64 = 6;

/// On its way one-sidedly.
enum Item {
    Write { offset: u64, bytes: Vec<u8> },
    Marker(u64),
}

/// How the arbiter answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArbiterMood {
    Well,
    /// Changes nothing and says so to nobody.
    Down,
    /// Swaps, but the answer is lost.
    Deaf,
}

#[derive(Default)]
struct Gate {
    holding: bool,
    mark: u64,
    /// Output by the mark that will cover it.
    held: VecDeque<(u64, u64)>,
}

pub struct World {
    pub now: Time,
    pub rng: SmallRng,
    pub primary: Primary,
    pub backup: Backup,
    pub record: Option<Record>,
    pub mood: ArbiterMood,
    pub memory: Vec<u64>,
    pub dirty: BTreeSet<u64>,
    pub running: bool,
    /// It is kept paused by a checkpoint (the last one, if true) that waits for frames.
    pub throttled: Option<bool>,
    pub destroyed: bool,
    pub primary_alive: bool,
    pub backup_alive: bool,
    pub connected: bool,
    pub network: bool,
    /// Nothing arrives, and nobody is told.
    pub mute: bool,
    control: (VecDeque<Vec<u8>>, VecDeque<Vec<u8>>),
    data: VecDeque<Item>,
    arena: Memory,
    shape: ArenaShape,
    gate: Gate,
    pub released: u64,
    pub trial: Result<(), String>,
    /// How long a trial load takes.
    pub trial_takes: Duration,
    trial_ends: Option<Time>,
    /// Content at the pause of the epochs of the present incarnation.
    pauses: BTreeMap<u64, Vec<u64>>,
    /// Pages of the epoch placed last.
    pub placed_pages: u64,
    /// Under which identity the slots of the epochs were read.
    slots: BTreeMap<u64, Identity>,
    primary_queue: VecDeque<PrimaryAction>,
    backup_queue: VecDeque<BackupAction>,
    pub activated: Option<Vec<u64>>,
    pub activation: Result<(), String>,
    pub abandoned: bool,
    pub acks_sent: u64,
    pub primary_log: Vec<String>,
    pub backup_log: Vec<String>,
}

pub fn shape() -> ArenaShape {
    ArenaShape { pages: PAGES, spares: SPARES, slots: 3, slot_bytes: 4096, copy_only_homes: false }
}

pub fn primary_config() -> PrimaryConfig {
    PrimaryConfig {
        host: "alpha".into(),
        guest: "vm".into(),
        session: SessionId(0x1234),
        interval: Duration::from_millis(10),
        depth: 2,
        heartbeat_every: Duration::from_millis(20),
        suspect_after: Duration::from_millis(100),
        sync_target_pages: 3,
        sync_max_rounds: 4,
        throttle_pause: Duration::from_millis(20),
        solo_automatic: true,
        low_water_spares: 3,
        shared_arbiter: true,
        nonce_seed: 7,
    }
}

pub fn backup_config() -> BackupConfig {
    BackupConfig {
        host: "beta".into(),
        heartbeat_every: Duration::from_millis(20),
        suspect_after: Duration::from_millis(200),
        takeover_automatic: true,
        max_arena_bytes: 1 << 20,
        shared_arbiter: true,
        nonce_seed: 8,
    }
}

pub fn layout() -> GuestLayout {
    GuestLayout { regions: vec![Region { name: "ram".into(), pages: PAGES }] }
}

/// Homes, lent or not, spares and slots.
fn arena(shape: &ArenaShape) -> Memory {
    Memory::anonymous((shape.frames() * PAGE_BYTES + shape.slots * shape.slot_bytes) as usize)
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, primary_config(), backup_config())
    }

    pub fn with(seed: u64, primary: PrimaryConfig, backup: BackupConfig) -> Self {
        Self::build(seed, shape(), primary, backup)
    }

    pub fn build(seed: u64, shape: ArenaShape, primary: PrimaryConfig, backup: BackupConfig) -> Self {
        let now = Time { nanoseconds: 1_000_000 };
        let machine = MachineIdentity { hypervisor: "model".into(), configuration: Vec::new() };
        let record = Record {
            ownership: Ownership::Solo { primary: "alpha".into() },
            generation: Generation(1),
            nonce: 99,
        };
        Self {
            now,
            rng: SmallRng::seed_from_u64(seed),
            primary: Primary::new(primary, layout(), machine, shape, record.clone(), now),
            backup: Backup::new(backup, now),
            record: Some(record),
            mood: ArbiterMood::Well,
            memory: vec![0; PAGES as usize],
            dirty: BTreeSet::new(),
            running: true,
            throttled: None,
            destroyed: false,
            primary_alive: true,
            backup_alive: true,
            connected: false,
            network: true,
            mute: false,
            control: Default::default(),
            data: VecDeque::new(),
            arena: arena(&shape),
            shape,
            gate: Gate::default(),
            released: 0,
            trial: Ok(()),
            trial_takes: Duration::ZERO,
            trial_ends: None,
            pauses: BTreeMap::new(),
            placed_pages: 0,
            slots: BTreeMap::new(),
            primary_queue: VecDeque::new(),
            backup_queue: VecDeque::new(),
            activated: None,
            activation: Ok(()),
            abandoned: false,
            acks_sent: 0,
            primary_log: Vec::new(),
            backup_log: Vec::new(),
        }
    }

    /// Where an offset of what is lent lies in the memory of the model.
    fn lent_at(&self, offset: u64) -> usize {
        (offset + self.shape.first_lent_frame().0 * PAGE_BYTES) as usize
    }

    /// Runs until `done` says so; fails after two virtual minutes.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&World) -> bool) {
        for _ in 0..60_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!(
            "not reached: {what}; primary {:?}, backup {:?}\n{:#?}\n{:#?}",
            self.primary.state(),
            self.backup.state(),
            self.primary_log,
            self.backup_log
        );
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.now < end {
            self.step();
        }
    }

    pub fn protect(&mut self) {
        self.run_until("protected on both sides", |world| {
            world.primary.state() == PrimaryState::Protected && world.backup.state() == BackupState::Protected
        });
    }

    /// Two milliseconds of everything.
    pub fn step(&mut self) {
        self.now = self.now.after(Duration::from_millis(2));
        self.guest();
        if self.primary_alive {
            if !self.connected && self.network && !self.mute && self.backup_alive && self.rng.random_bool(0.1)
            {
                self.connect();
            }
            let mut actions = primary::Actions::new();
            if self.primary.next_tick().is_some_and(|at| at <= self.now) {
                self.primary.handle_tick(self.now, &mut actions);
            }
            self.primary_queue.extend(actions);
            self.pump_primary();
            self.capture();
        }
        if self.backup_alive {
            let mut actions = backup::Actions::new();
            if self.backup.next_tick().is_some_and(|at| at <= self.now) {
                self.backup.handle_tick(self.now, &mut actions);
            }
            if self.trial_ends.take_if(|at| *at <= self.now).is_some() {
                self.backup.handle_trial(self.trial.clone(), self.now, &mut actions);
            }
            self.backup_queue.extend(actions);
            self.pump_backup();
            self.home_some();
        }
        for _ in 0..6 {
            self.deliver();
        }
    }

    /// The guest counts in page 0, tells the world, and writes elsewhere.
    fn guest(&mut self) {
        if !self.running || self.destroyed {
            return;
        }
        self.memory[0] += 1;
        let count = self.memory[0];
        self.dirty.insert(0);
        if self.rng.random_bool(0.5) {
            let page = self.rng.random_range(1..PAGES);
            self.memory[page as usize] = count << 8 | page;
            self.dirty.insert(page);
        }
        if self.gate.holding {
            self.gate.held.push_back((self.gate.mark + 1, count));
        } else {
            self.released = count;
        }
    }

    fn release(&mut self, through: u64) {
        while let Some((mark, count)) = self.gate.held.front().copied() {
            if mark > through {
                break;
            }
            self.gate.held.pop_front();
            self.released = count;
        }
    }

    fn collect(&mut self) -> Vec<Extent> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|page| Extent { first: PageIndex(page), pages: 1 }).collect()
    }

    pub fn capture(&mut self) {
        if let Some(last) = self.throttled.take() {
            self.place(last, &[]);
            return self.pump_primary();
        }
        match self.primary.next_work(self.now) {
            Work::Wait { .. } => {}
            Work::Round { round, everything } => {
                let mut pages = self.collect();
                if everything {
                    pages = vec![Extent { first: PageIndex(0), pages: PAGES }];
                }
                if self.shape.copy_only_homes {
                    self.act_primary(|primary, now, actions| {
                        primary.round_listed(round, &pages, now, actions)
                    });
                    return;
                }
                let mut count = 0;
                for page in pages.iter().flat_map(|e| e.first.0..e.first.0 + e.pages) {
                    self.write_page(page, page, self.memory[page as usize]);
                    count += 1;
                }
                self.mark(ROUND_MARKER | round);
                let mut actions = primary::Actions::new();
                self.primary.round_posted(round, count, &mut actions);
                self.primary_queue.extend(actions);
            }
            Work::Part => {
                let most = self.rng.random_range(1..5);
                let (mut transfers, mut actions) = (Vec::new(), primary::Actions::new());
                let placed = self.primary.place_part(most, self.now, &mut transfers, &mut actions);
                if let Some(placed) = placed {
                    self.send_epoch(&placed, &transfers, &[]);
                    self.primary.epoch_posted(&placed, self.now, &mut actions);
                }
                self.primary_queue.extend(actions);
            }
            Work::Checkpoint { last } => self.checkpoint(last),
        }
        self.pump_primary();
    }

    /// The guest is paused for an epoch that the primary asked for, which is placed and sent.
    pub fn checkpoint(&mut self, last: bool) {
        let mark = self.primary.paused(self.now);
        assert!(mark.0 > self.gate.mark, "marks grow");
        self.gate.mark = mark.0;
        let dirty = self.collect();
        self.place(last, &dirty);
    }

    /// The guest is paused.
    fn place(&mut self, last: bool, dirty: &[Extent]) {
        let memory = self.memory.clone();
        let mut transfers = Vec::new();
        let mut actions = primary::Actions::new();
        let placed = self.primary.place(dirty, self.now, &mut transfers, &mut actions);
        match placed {
            Ok(placed) => {
                self.send_epoch(&placed, &transfers, &placed.epoch.0.to_le_bytes());
                self.pauses.insert(placed.epoch.0, memory);
                self.placed_pages = placed.pages;
                self.running = !last;
                self.primary.epoch_posted(&placed, self.now, &mut actions);
            }
            Err(NotTaken::Full { until }) => {
                assert!(until > self.now, "asked to wait until the past");
                self.throttled = Some(last);
                self.running = false;
            }
            Err(NotTaken::Stalled | NotTaken::Overflow | NotTaken::Superseded) => self.running = true,
        }
        self.primary_queue.extend(actions);
    }

    /// The pages as they are now, and the slot.
    pub fn send_epoch(&mut self, placed: &primary::PlacedEpoch, transfers: &[Transfer], state: &[u8]) {
        for transfer in transfers {
            for i in 0..transfer.pages {
                let page = transfer.first_page.0 + i;
                self.write_page(page, transfer.first_frame.0 + i, self.memory[page as usize]);
            }
        }
        let slot = Memory::anonymous(self.shape.slot_bytes as usize);
        slot.write(slot::state_offset_bytes(transfers.len() as u64) as usize, state);
        let (length, checksum) = (state.len() as u64, crc32fast::hash(state));
        let used = slot::encode(&placed.identity, placed.epoch, transfers, length, checksum, &slot);
        let mut bytes = vec![0; used.expect("fits") as usize];
        slot.read(0, &mut bytes);
        self.post(self.shape.slot_offset_bytes(placed.epoch), bytes);
        self.mark(placed.epoch.0);
    }

    /// Whether the primary's guest still talks to the world.
    pub fn primary_output_goes_on(&self) -> bool {
        self.running && !self.destroyed && !self.gate.holding
    }

    /// Whether a trial load is under way.
    pub fn tries(&self) -> bool {
        self.trial_ends.is_some()
    }

    /// Whether output is held.
    pub fn holds(&self) -> bool {
        self.gate.holding
    }

    /// The counter in the guest.
    pub fn count(&self) -> u64 {
        self.memory[0]
    }
}
