//! Two machines, a guest, an arena, an arbiter and a gate in one deterministic world. Everything
//! between the machines travels as encoded bytes; messages and writes are two queues without order
//! between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use romulus_checkpoint::arbiter::{Ownership, Record, SwapOutcome};
use romulus_checkpoint::backup::{self, Admission, Backup, BackupAction, BackupConfig, BackupState};
use romulus_checkpoint::primary::{
    self, NotTaken, Primary, PrimaryAction, PrimaryConfig, PrimaryState, Work,
};
use romulus_checkpoint::wire::message::{MachineIdentity, Message, ROUND_MARKER, decode, encode};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::*;
use romulus_transport::Memory;

pub const PAGES: u64 = 6;
pub const SPARES: u64 = 6;
const STATE_BYTES: u64 = 8;

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
    /// Content at the pause of the epochs of the present incarnation.
    pauses: BTreeMap<u64, Vec<u64>>,
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
            destroyed: false,
            primary_alive: true,
            backup_alive: true,
            connected: false,
            network: true,
            mute: false,
            control: Default::default(),
            data: VecDeque::new(),
            arena: Memory::anonymous(shape.len_bytes() as usize),
            shape,
            gate: Gate::default(),
            released: 0,
            trial: Ok(()),
            pauses: BTreeMap::new(),
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

    fn write_page(&mut self, page: u64, frame: u64, value: u64) {
        let _ = page;
        let mut bytes = vec![0; PAGE_BYTES as usize];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        self.post(frame * PAGE_BYTES, bytes);
    }

    fn post(&mut self, offset: u64, bytes: Vec<u8>) {
        if self.connected {
            self.data.push_back(Item::Write { offset, bytes });
        }
    }

    fn mark(&mut self, marker: u64) {
        if self.connected {
            self.data.push_back(Item::Marker(marker));
        }
    }

    pub fn capture(&mut self) {
        match self.primary.next_work(self.now) {
            Work::Wait { .. } => {}
            Work::Round { round, everything } => {
                let mut pages = self.collect();
                if everything {
                    pages = vec![Extent { first: PageIndex(0), pages: PAGES }];
                }
                let mut count = 0;
                for page in pages.iter().flat_map(|e| e.first.0..e.first.0 + e.pages) {
                    self.write_page(page, page, self.memory[page as usize]);
                    count += 1;
                }
                self.mark(ROUND_MARKER | round);
                let mut actions = primary::Actions::new();
                self.primary.round_posted(round, count, self.now, &mut actions);
                self.primary_queue.extend(actions);
            }
            Work::Checkpoint { last } => self.checkpoint(last),
        }
        self.pump_primary();
    }

    fn checkpoint(&mut self, last: bool) {
        let mark = self.primary.paused(self.now);
        assert!(mark.0 > self.gate.mark, "marks grow");
        self.gate.mark = mark.0;
        let memory = self.memory.clone();
        let dirty = self.collect();
        let mut transfers = Vec::new();
        let mut actions = primary::Actions::new();
        let placed = self.primary.place(&dirty, self.now, &mut transfers, &mut actions);
        match placed {
            Ok(placed) => {
                for transfer in &transfers {
                    for i in 0..transfer.pages {
                        let page = transfer.first_page.0 + i;
                        self.write_page(page, transfer.first_frame.0 + i, memory[page as usize]);
                    }
                }
                let slot = Memory::anonymous(self.shape.slot_bytes as usize);
                let state = placed.epoch.0.to_le_bytes();
                slot.write(slot::state_offset_bytes(transfers.len() as u64) as usize, &state);
                let used = slot::encode(
                    &placed.identity,
                    placed.epoch,
                    &transfers,
                    STATE_BYTES,
                    crc32fast::hash(&state),
                    &slot,
                )
                .expect("fits");
                let mut bytes = vec![0; used as usize];
                slot.read(0, &mut bytes);
                self.post(self.shape.slot_offset_bytes(placed.epoch), bytes);
                self.mark(placed.epoch.0);
                self.pauses.insert(placed.epoch.0, memory);
                self.running = !last;
                self.primary.epoch_posted(&placed, self.now, &mut actions);
            }
            Err(NotTaken::Stalled | NotTaken::Overflow | NotTaken::Superseded) => {}
        }
        self.primary_queue.extend(actions);
    }

    pub fn connect(&mut self) {
        let hello = self.primary.hello(Vec::new(), self.now);
        let mut bytes = Vec::new();
        encode(&hello.identity.clone(), &Message::Hello(hello), &mut bytes);
        let (identity, message) = decode(&bytes).expect("own Hello");
        let Message::Hello(hello) = message else { panic!("not a Hello") };
        let mut actions = backup::Actions::new();
        let mut admission = self.backup.admit(&identity, &hello, self.now);
        if admission == Ok(Admission::NeedsRecord) {
            let record = match self.mood {
                ArbiterMood::Well => Ok(self.record.clone()),
                _ => Err("down".to_owned()),
            };
            admission = self.backup.admit_with_record(&identity, &hello, record, self.now);
        }
        let (identity, answer) = match admission {
            Ok(_) => {
                assert!(self.backup.quiesce_homing(), "homing is synchronous here");
                self.backup.welcome(&hello, Vec::new(), self.now, &mut actions)
            }
            Err(refusal) => (identity, Message::Error { code: refusal.code, text: refusal.text }),
        };
        self.backup_queue.extend(actions);
        let mut bytes = Vec::new();
        encode(&identity, &answer, &mut bytes);
        let mut actions = primary::Actions::new();
        let outcome = self.primary.handle_answer(&bytes, self.now, &mut actions);
        if let Err(fault) = &outcome {
            self.primary_log.push(fault.to_string());
        } else {
            self.connected = true;
            self.data.clear();
            self.control = Default::default();
            self.primary.handle_connected(self.now, &mut actions);
        }
        self.primary_queue.extend(actions);
        if self.connected {
            let mut actions = backup::Actions::new();
            self.backup.handle_connected(self.now, &mut actions);
            self.backup_queue.extend(actions);
            self.pump_backup();
        }
        self.pump_primary();
    }

    /// The connection breaks; what is under way is lost.
    pub fn cut(&mut self) {
        self.connected = false;
        self.data.clear();
        self.control = Default::default();
        if self.primary_alive {
            let mut actions = primary::Actions::new();
            self.primary.handle_disconnected("cut", self.now, &mut actions);
            self.primary_queue.extend(actions);
            self.pump_primary();
        }
        if self.backup_alive {
            let mut actions = backup::Actions::new();
            self.backup.handle_disconnected("cut", self.now, &mut actions);
            self.backup_queue.extend(actions);
            self.pump_backup();
        }
    }

    /// One item of either direction or kind.
    fn deliver(&mut self) {
        if !self.connected || self.mute {
            return;
        }
        match self.rng.random_range(0..3) {
            0 => {
                if let Some(bytes) = self.control.0.pop_front() {
                    self.message_to_backup(&bytes);
                }
            }
            1 => {
                if let Some(bytes) = self.control.1.pop_front() {
                    self.message_to_primary(&bytes);
                }
            }
            _ => match self.data.pop_front() {
                Some(Item::Write { offset, bytes }) => self.arena.write(offset as usize, &bytes),
                Some(Item::Marker(marker)) => {
                    let mut actions = backup::Actions::new();
                    self.backup.handle_fence(marker, self.now, &mut actions);
                    self.backup_queue.extend(actions);
                    self.pump_backup();
                }
                None => {}
            },
        }
    }

    pub fn message_to_backup(&mut self, bytes: &[u8]) {
        let mut actions = backup::Actions::new();
        let outcome = self.backup.handle_message(bytes, self.now, &mut actions);
        self.backup_queue.extend(actions);
        self.pump_backup();
        self.backup_outcome(outcome);
    }

    pub fn message_to_primary(&mut self, bytes: &[u8]) {
        let mut actions = primary::Actions::new();
        let outcome = self.primary.handle_message(bytes, self.now, &mut actions);
        self.primary_queue.extend(actions);
        self.pump_primary();
        if let Err(fault) = outcome {
            self.primary_log.push(fault.to_string());
            self.cut();
        }
    }

    fn backup_outcome(&mut self, outcome: Result<(), backup::Refusal>) {
        if let Err(refusal) = outcome {
            self.backup_log.push(refusal.to_string());
            let mut bytes = Vec::new();
            let message = Message::Error { code: refusal.code, text: refusal.text };
            encode(&self.primary.identity(), &message, &mut bytes);
            if self.connected {
                self.message_to_primary(&bytes);
            }
            self.cut();
        }
    }

    pub fn swap(&mut self, expected: &Option<Record>, new: &Record) -> SwapOutcome {
        let matches = self.record == *expected;
        match self.mood {
            ArbiterMood::Down => SwapOutcome::Unknown("down".into()),
            ArbiterMood::Deaf => {
                if matches {
                    self.record = Some(new.clone());
                }
                SwapOutcome::Unknown("deaf".into())
            }
            ArbiterMood::Well if matches => {
                self.record = Some(new.clone());
                SwapOutcome::Won
            }
            ArbiterMood::Well => SwapOutcome::Lost(self.record.clone()),
        }
    }

    fn read(&self) -> Result<Option<Record>, String> {
        match self.mood {
            ArbiterMood::Well => Ok(self.record.clone()),
            _ => Err("no answer".into()),
        }
    }

    pub fn act_primary(&mut self, call: impl FnOnce(&mut Primary, Time, &mut primary::Actions)) {
        let mut actions = primary::Actions::new();
        call(&mut self.primary, self.now, &mut actions);
        self.primary_queue.extend(actions);
        self.pump_primary();
    }

    pub fn act_backup(&mut self, call: impl FnOnce(&mut Backup, Time, &mut backup::Actions)) {
        let mut actions = backup::Actions::new();
        call(&mut self.backup, self.now, &mut actions);
        self.backup_queue.extend(actions);
        self.pump_backup();
    }

    fn pump_primary(&mut self) {
        while let Some(action) = self.primary_queue.pop_front() {
            let mut actions = primary::Actions::new();
            match action {
                PrimaryAction::Send(identity, message) => {
                    if self.connected {
                        let mut bytes = Vec::new();
                        encode(&identity, &message, &mut bytes);
                        self.control.0.push_back(bytes);
                    }
                }
                PrimaryAction::Release(token) => {
                    self.release(token.through().0);
                    if token.opens_gate() {
                        self.check_may_run_alone();
                        self.gate.holding = false;
                    }
                }
                PrimaryAction::HoldOutput => {
                    self.gate.holding = true;
                    self.primary.handle_held(Ok(()), self.now, &mut actions);
                }
                PrimaryAction::CloseConnection(why) => {
                    self.primary_log.push(format!("closes: {why}"));
                    self.cut();
                }
                PrimaryAction::Swap { expected, new } => {
                    let outcome = self.swap(&expected, &new);
                    self.primary.handle_swap(&new, outcome, self.now, &mut actions);
                }
                PrimaryAction::ReadRecord => {
                    self.primary.handle_record(self.read(), self.now, &mut actions);
                }
                PrimaryAction::DestroyGuest => self.destroyed = true,
                PrimaryAction::ResumeGuest => self.running = true,
                PrimaryAction::Report(report) => {
                    if !matches!(report, primary::PrimaryReport::Acked { .. }) {
                        self.primary_log.push(format!("{report:?}"));
                    }
                }
            }
            self.primary_queue.extend(actions);
        }
    }

    fn pump_backup(&mut self) {
        while let Some(action) = self.backup_queue.pop_front() {
            let mut actions = backup::Actions::new();
            match action {
                BackupAction::Send(identity, message) => {
                    self.acks_sent += u64::from(matches!(message, Message::Ack { .. }));
                    if self.connected {
                        let mut bytes = Vec::new();
                        encode(&identity, &message, &mut bytes);
                        self.control.1.push_back(bytes);
                    }
                }
                BackupAction::ReadSlot { identity, epoch } => {
                    let at = self.shape.slot_offset_bytes(epoch) as usize;
                    let slot = self.arena.part(at, self.shape.slot_bytes as usize);
                    let mut transfers = Vec::new();
                    let header = slot::decode(&slot, &identity, epoch, &mut transfers);
                    self.slots.insert(epoch.0, identity);
                    let outcome = self.backup.handle_slot(header, &transfers, self.now, &mut actions);
                    self.backup_queue.extend(actions.drain(..));
                    self.backup_outcome(outcome);
                }
                BackupAction::WakeHoming => {}
                BackupAction::CloseConnection(why) => {
                    self.backup_log.push(format!("closes: {why}"));
                    // What was sent before still arrives.
                    for bytes in std::mem::take(&mut self.control.1) {
                        if self.connected && self.primary_alive {
                            self.message_to_primary(&bytes);
                        }
                    }
                    self.cut();
                }
                BackupAction::Fence => {
                    for bytes in std::mem::take(&mut self.control.1) {
                        if self.connected && self.primary_alive {
                            self.message_to_primary(&bytes);
                        }
                    }
                    self.cut();
                    self.backup.handle_fenced(self.now, &mut actions);
                }
                BackupAction::Swap { expected, new } => {
                    let outcome = self.swap(&expected, &new);
                    self.backup.handle_swap(&new, outcome, self.now, &mut actions);
                }
                BackupAction::ReadRecord => {
                    self.backup.handle_record(self.read(), self.now, &mut actions);
                }
                BackupAction::Trial { epoch } => {
                    self.check_homes(epoch);
                    self.backup.handle_trial(self.trial.clone(), self.now, &mut actions);
                }
                BackupAction::TakeOver { epoch, displaced } => {
                    self.take_over(epoch, &displaced);
                    self.backup.handle_activated(self.activation.clone(), self.now, &mut actions);
                }
                BackupAction::Abandon => self.abandoned = true,
                BackupAction::Report(report) => {
                    if !matches!(report, backup::BackupReport::Committed { .. }) {
                        self.backup_log.push(format!("{report:?}"));
                    }
                }
            }
            self.backup_queue.extend(actions);
        }
    }

    fn home_some(&mut self) {
        while self.rng.random_bool(0.8) {
            let Some(copy) = self.backup.next_homing() else { return };
            let page = PAGE_BYTES as usize;
            self.arena.copy_to(
                copy.source.0 as usize * page,
                &self.arena,
                copy.target.0 as usize * page,
                page,
            );
            self.act_backup(|backup, now, actions| backup.homing_finished(&copy, now, actions));
        }
    }

    fn home_value(&self, page: u64) -> u64 {
        let mut bytes = [0; 8];
        self.arena.read((page * PAGE_BYTES) as usize, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn homes(&self) -> Vec<u64> {
        (0..PAGES).map(|page| self.home_value(page)).collect()
    }

    /// I2: the homes and the state are the guest at the pause of the epoch.
    fn check_homes(&self, epoch: Epoch) {
        assert_eq!(self.homes(), self.pauses[&epoch.0], "image at epoch {epoch}");
        let slot =
            self.arena.part(self.shape.slot_offset_bytes(epoch) as usize, self.shape.slot_bytes as usize);
        let mut transfers = Vec::new();
        let identity = self.slots[&epoch.0];
        let header = slot::decode(&slot, &identity, epoch, &mut transfers).expect("the slot still stands");
        let mut state = [0; 8];
        slot.read(header.state_offset_bytes as usize, &mut state);
        assert_eq!(u64::from_le_bytes(state), epoch.0, "state");
    }

    fn take_over(&mut self, epoch: Epoch, displaced: &[placement::committed::HomingCopy]) {
        assert!(!self.connected, "fenced before the image is read");
        let owner = self.record.as_ref().map(|record| &record.ownership);
        assert_eq!(owner, Some(&Ownership::Owned { backup: "beta".into() }), "granted before activation");
        let page = PAGE_BYTES as usize;
        for copy in displaced {
            self.arena.copy_to(
                copy.source.0 as usize * page,
                &self.arena,
                copy.target.0 as usize * page,
                page,
            );
        }
        self.check_homes(epoch);
        let homes = self.homes();
        // I1: the world has seen nothing that the resumed guest does not know.
        assert!(self.released <= homes[0], "released {} after takeover at {}", self.released, homes[0]);
        self.activated = Some(homes);
    }

    /// I9: output leaves on a grant only when the record gives it.
    fn check_may_run_alone(&self) {
        let owner = self.record.as_ref().map(|record| &record.ownership);
        assert_eq!(owner, Some(&Ownership::Solo { primary: "alpha".into() }), "released without the grant");
        assert!(self.activated.is_none(), "two guests");
    }

    /// Whether the primary's guest still talks to the world.
    pub fn primary_output_goes_on(&self) -> bool {
        self.running && !self.destroyed && !self.gate.holding
    }

    /// The counter in the guest.
    pub fn count(&self) -> u64 {
        self.memory[0]
    }

    /// The backup's process is started anew, its memory is gone.
    pub fn restart_backup(&mut self) {
        self.cut();
        self.backup = Backup::new(backup_config(), self.now);
        self.backup_queue.clear();
        self.arena = Memory::anonymous(self.shape.len_bytes() as usize);
        self.backup_alive = true;
    }

    pub fn drop_markers(&mut self) {
        self.data.retain(|item| matches!(item, Item::Write { .. }));
    }

    pub fn deliver_all_to_backup(&mut self) {
        while let Some(bytes) = self.control.0.pop_front() {
            self.message_to_backup(&bytes);
        }
    }

    pub fn deliver_data(&mut self) {
        while let Some(item) = self.data.pop_front() {
            match item {
                Item::Write { offset, bytes } => self.arena.write(offset as usize, &bytes),
                Item::Marker(marker) => {
                    self.act_backup(|backup, now, actions| backup.handle_fence(marker, now, actions));
                }
            }
        }
    }

    /// Both sides idle on the wire.
    pub fn flush(&mut self) {
        for _ in 0..200 {
            self.deliver();
        }
    }

    /// The backup's process is cut off and lives on elsewhere; another one takes its place.
    pub fn take_backup(&mut self) -> Backup {
        self.cut();
        std::mem::replace(&mut self.backup, Backup::new(backup_config(), self.now))
    }

    /// A cut-off backup process notices that the primary is silent, and asks for the guest.
    pub fn zombie(&mut self, mut backup: Backup) {
        let mut actions = backup::Actions::new();
        backup.handle_tick(self.now, &mut actions);
        let mut todo = VecDeque::from(actions);
        let mut asked = 0;
        while let Some(action) = todo.pop_front() {
            let mut actions = backup::Actions::new();
            match action {
                BackupAction::Fence => backup.handle_fenced(self.now, &mut actions),
                BackupAction::Swap { expected, new } => {
                    asked += 1;
                    let outcome = self.swap(&expected, &new);
                    backup.handle_swap(&new, outcome, self.now, &mut actions);
                }
                BackupAction::TakeOver { .. } => panic!("a zombie takes over"),
                _ => {}
            }
            todo.extend(actions);
        }
        assert!(asked > 0, "it has tried");
    }
}
