//! In steady state an epoch allocates nothing: not in the machines, not in codec or placement.

use std::time::Duration;

use romulus_checkpoint::arbiter::{Ownership, Record, SwapOutcome};
use romulus_checkpoint::backup::{self, Backup, BackupAction, BackupConfig};
use romulus_checkpoint::primary::{self, Primary, PrimaryAction, PrimaryConfig, PrimaryState, Work};
use romulus_checkpoint::wire::message::{Hello, MachineIdentity, Message, ROUND_MARKER, encode};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::*;
use romulus_counting_allocator::{CountingAllocator, of_thread};
use romulus_transport::Memory;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PAGES: u64 = 4096;
const SHAPE: ArenaShape =
    ArenaShape { pages: PAGES, spares: 1024, slots: 3, slot_bytes: 64 * 1024, copy_only_homes: false };

/// Encoded messages whose buffers are kept.
#[derive(Default)]
struct Outbox {
    messages: Vec<Vec<u8>>,
    used: usize,
}

impl Outbox {
    fn push(&mut self, identity: &Identity, message: &Message) {
        if self.used == self.messages.len() {
            self.messages.push(Vec::with_capacity(4096));
        }
        let bytes = &mut self.messages[self.used];
        bytes.clear();
        encode(identity, message, bytes);
        self.used += 1;
    }
}

struct Pair {
    now: Time,
    primary: Primary,
    backup: Backup,
    slots: Memory,
    record: Record,
    to_backup: Outbox,
    to_primary: Outbox,
    primary_actions: primary::Actions,
    backup_actions: backup::Actions,
    more: backup::Actions,
    dirty: Vec<Extent>,
    transfers: Vec<Transfer>,
    read: Vec<Transfer>,
    homed: u64,
    released: u64,
}

impl Pair {
    fn new() -> Self {
        let now = Time::default();
        let session = SessionId(5);
        let config = PrimaryConfig {
            host: "alpha".into(),
            guest: "vm".into(),
            session,
            interval: Duration::from_millis(10),
            depth: 2,
            heartbeat_every: Duration::from_millis(20),
            suspect_after: Duration::from_millis(100),
            sync_target_pages: PAGES,
            sync_max_rounds: 4,
            throttle_pause: Duration::ZERO,
            solo_automatic: true,
            low_water_spares: 512,
            shared_arbiter: true,
            nonce_seed: 7,
        };
        let backup = BackupConfig {
            host: "beta".into(),
            heartbeat_every: Duration::from_millis(20),
            suspect_after: Duration::from_millis(200),
            takeover_automatic: true,
            max_arena_bytes: 1 << 30,
            shared_arbiter: true,
            nonce_seed: 8,
        };
        let ownership = Ownership::Solo { primary: "alpha".into() };
        let record = Record { ownership, generation: Generation(1), nonce: 9 };
        let layout = GuestLayout { regions: vec![Region { name: "ram".into(), pages: PAGES }] };
        let machine = MachineIdentity { hypervisor: "model".into(), configuration: Vec::new() };
        Self {
            now,
            primary: Primary::new(config, layout, machine, SHAPE, record.clone(), now),
            backup: Backup::new(backup, now),
            slots: Memory::anonymous((SHAPE.slots * SHAPE.slot_bytes) as usize),
            record,
            to_backup: Outbox::default(),
            to_primary: Outbox::default(),
            primary_actions: Vec::new(),
            backup_actions: Vec::new(),
            more: Vec::new(),
            dirty: Vec::new(),
            transfers: Vec::new(),
            read: Vec::new(),
            homed: 0,
            released: 0,
        }
    }

    fn connect(&mut self) {
        let hello: Hello = self.primary.hello(Vec::new(), self.now);
        let record = Ok(Some(self.record.clone()));
        self.backup.admit_with_record(&hello.identity, &hello, record, self.now).expect("admitted");
        let (identity, welcome) = self.backup.welcome(&hello, Vec::new(), self.now, &mut self.backup_actions);
        let mut bytes = Vec::new();
        encode(&identity, &welcome, &mut bytes);
        self.primary.handle_answer(&bytes, self.now, &mut self.primary_actions).expect("welcome");
        assert!(self.primary.handle_connected(self.now, &mut self.primary_actions));
        assert!(self.backup.handle_connected(self.now, &mut self.backup_actions));
        self.pump();
    }

    fn slot(&self, epoch: Epoch) -> Memory {
        self.slots.part(((epoch.0 % SHAPE.slots) * SHAPE.slot_bytes) as usize, SHAPE.slot_bytes as usize)
    }

    /// Carries everything out until nothing is left to do.
    fn pump(&mut self) {
        loop {
            self.act_primary();
            self.act_backup();
            for at in 0..std::mem::take(&mut self.to_backup.used) {
                let bytes = &self.to_backup.messages[at];
                self.backup.handle_message(bytes, self.now, &mut self.backup_actions).expect("good");
            }
            for at in 0..std::mem::take(&mut self.to_primary.used) {
                let bytes = &self.to_primary.messages[at];
                self.primary.handle_message(bytes, self.now, &mut self.primary_actions).expect("good");
            }
            if self.primary_actions.is_empty() && self.backup_actions.is_empty() {
                return;
            }
        }
    }

    fn act_primary(&mut self) {
        let mut actions = std::mem::take(&mut self.primary_actions);
        let mut later = None;
        let mut held = false;
        for action in actions.drain(..) {
            match action {
                PrimaryAction::Send(identity, message) => self.to_backup.push(&identity, &message),
                PrimaryAction::HoldOutput => held = true,
                PrimaryAction::Swap { new, .. } => later = Some(new),
                PrimaryAction::Release(token) => self.released = token.through().0,
                PrimaryAction::Report(_) => {}
                other => panic!("{other:?}"),
            }
        }
        if held {
            self.primary.handle_held(Ok(()), self.now, &mut actions);
        }
        if let Some(new) = later {
            self.record = new.clone();
            self.primary.handle_swap(&new, SwapOutcome::Won, self.now, &mut actions);
        }
        self.primary_actions = actions;
    }

    fn act_backup(&mut self) {
        std::mem::swap(&mut self.backup_actions, &mut self.more);
        let mut actions = std::mem::take(&mut self.more);
        for action in actions.drain(..) {
            match action {
                BackupAction::Send(identity, message) => self.to_primary.push(&identity, &message),
                BackupAction::ReadSlot { identity, epoch } => {
                    let header = slot::decode(&self.slot(epoch), &identity, epoch, &mut self.read);
                    let into = &mut self.backup_actions;
                    self.backup.handle_slot(header, &self.read, self.now, into).expect("a good slot");
                }
                BackupAction::Trial { .. } => {
                    self.backup.handle_trial(Ok(()), self.now, &mut self.backup_actions);
                }
                BackupAction::WakeHoming => {
                    while let Some(copy) = self.backup.next_homing() {
                        self.homed += 1;
                        self.backup.homing_finished(&copy, self.now, &mut self.backup_actions);
                    }
                }
                BackupAction::Report(_) => {}
                other => panic!("{other:?}"),
            }
        }
        self.more = actions;
    }

    /// One epoch of 400 scattered pages, or what else is due.
    fn epoch(&mut self, number: u64) {
        self.now = self.now.after(Duration::from_millis(10));
        self.primary.handle_tick(self.now, &mut self.primary_actions);
        self.backup.handle_tick(self.now, &mut self.backup_actions);
        self.pump();
        match self.primary.next_work(self.now) {
            Work::Wait { .. } => {}
            Work::Round { round, .. } => {
                self.primary.round_posted(round, PAGES, &mut self.primary_actions);
                self.backup.handle_fence(ROUND_MARKER | round, self.now, &mut self.backup_actions);
            }
            Work::Part => unreachable!("the homes are no copy-only ones"),
            Work::Checkpoint { .. } => {
                self.dirty.clear();
                let pages = (0..400).map(|page| page * 10 + (number * 7) % 10);
                self.dirty.extend(pages.map(|page| Extent { first: PageIndex(page), pages: 1 }));
                self.primary.paused(self.now);
                let (now, actions) = (self.now, &mut self.primary_actions);
                let placed = self.primary.place(&self.dirty, now, &mut self.transfers, actions);
                if let Ok(placed) = placed {
                    let slot = self.slot(placed.epoch);
                    slot::encode(&placed.identity, placed.epoch, &self.transfers, 0, 0, &slot).expect("fits");
                    self.primary.epoch_posted(&placed, now, &mut self.primary_actions);
                    self.backup.handle_fence(placed.epoch.0, now, &mut self.backup_actions);
                }
            }
        }
        self.pump();
    }
}

#[test]
fn an_epoch_in_steady_state_allocates_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    for number in 0..300 {
        pair.epoch(number);
    }
    assert_eq!(pair.primary.state(), PrimaryState::Protected);
    let (epochs, homed, released) = (pair.backup.committed(), pair.homed, pair.released);
    let before = of_thread().times;
    for number in 300..800 {
        pair.epoch(number);
    }
    assert!(before > 0, "the counter counts");
    let allocated = of_thread().times - before;
    assert!(pair.backup.committed().0 > epochs.0 + 250, "epochs go on: {}", pair.backup.committed());
    assert!(pair.homed > homed && pair.released > released);
    assert_eq!(allocated, 0, "in {} epochs", pair.backup.committed().0 - epochs.0);
}
