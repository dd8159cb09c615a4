//! Carrying out what the machines ask for, with the checks of what they may not ask for.

use std::collections::VecDeque;

use rand::Rng;

use romulus_checkpoint::arbiter::{Ownership, Record, SwapOutcome};
use romulus_checkpoint::backup::{self, Backup, BackupAction};
use romulus_checkpoint::primary::{self, Primary, PrimaryAction};
use romulus_checkpoint::wire::message::{Message, encode};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::*;
use romulus_transport::Memory;

use super::{ArbiterMood, PAGES, World};

impl World {
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

    pub(super) fn read(&self) -> Result<Option<Record>, String> {
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

    pub(super) fn pump_primary(&mut self) {
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

    pub(super) fn pump_backup(&mut self) {
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
                    let slot = self.slot(epoch);
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
                    self.backup.handle_fenced(&mut actions);
                }
                BackupAction::Swap { expected, new } => {
                    let outcome = self.swap(&expected, &new);
                    self.backup.handle_swap(&new, outcome, self.now, &mut actions);
                }
                BackupAction::ReadRecord => {
                    self.backup.handle_record(self.read(), self.now, &mut actions);
                }
                BackupAction::Trial { epoch } => {
                    self.check_image(epoch);
                    if self.trial_takes.is_zero() {
                        self.backup.handle_trial(self.trial.clone(), self.now, &mut actions);
                    } else {
                        self.trial_ends = Some(self.now.after(self.trial_takes));
                    }
                }
                BackupAction::TakeOver { epoch, displaced } => {
                    self.take_over(epoch, &displaced);
                    self.backup.handle_activated(self.activation.clone(), &mut actions);
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

    pub(super) fn home_some(&mut self) {
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

    pub(super) fn home_value(&self, page: u64) -> u64 {
        let mut bytes = [0; 8];
        self.arena.read((page * PAGE_BYTES) as usize, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(super) fn homes(&self) -> Vec<u64> {
        (0..PAGES).map(|page| self.home_value(page)).collect()
    }

    fn slot(&self, epoch: Epoch) -> Memory {
        self.arena.part(self.lent_at(self.shape.slot_offset_bytes(epoch)), self.shape.slot_bytes as usize)
    }

    /// I2: the homes and the state are the guest at the pause of the epoch.
    pub(super) fn check_homes(&self, epoch: Epoch) {
        assert_eq!(self.homes(), self.pauses[&epoch.0], "homes at epoch {epoch}");
        self.check_image(epoch);
    }

    /// I2: the committed map and the state are. Before a trial with copy-only homes not all pages
    /// are home.
    fn check_image(&self, epoch: Epoch) {
        let frames = (0..PAGES).map(|page| self.home_value(self.backup.frame_of(PageIndex(page)).0));
        assert_eq!(frames.collect::<Vec<_>>(), self.pauses[&epoch.0], "image at epoch {epoch}");
        let slot = self.slot(epoch);
        let mut transfers = Vec::new();
        let identity = self.slots[&epoch.0];
        let header = slot::decode(&slot, &identity, epoch, &mut transfers).expect("the slot still stands");
        let mut state = [0; 8];
        slot.read(header.state_offset_bytes as usize, &mut state);
        assert_eq!(u64::from_le_bytes(state), epoch.0, "state");
    }

    pub(super) fn take_over(&mut self, epoch: Epoch, displaced: &[placement::committed::HomingCopy]) {
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
    pub(super) fn check_may_run_alone(&self) {
        let owner = self.record.as_ref().map(|record| &record.ownership);
        assert_eq!(owner, Some(&Ownership::Solo { primary: "alpha".into() }), "released without the grant");
        assert!(self.activated.is_none(), "two guests");
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
                BackupAction::Fence => backup.handle_fenced(&mut actions),
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
