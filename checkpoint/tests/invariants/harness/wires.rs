//! The connection: its beginning, its end, and what is on its way.

use romulus_checkpoint::backup::{self, Admission, Backup};
use romulus_checkpoint::primary;
use romulus_checkpoint::wire::message::{Message, decode, encode};
use romulus_checkpoint::*;

use super::{ArbiterMood, Item, World, arena, backup_config};
use rand::Rng;

impl World {
    pub(super) fn write_page(&mut self, page: u64, frame: u64, value: u64) {
        let _ = page;
        let mut bytes = vec![0; PAGE_BYTES as usize];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        self.post(self.shape.frame_offset_bytes(FrameIndex(frame)), bytes);
    }

    pub(super) fn post(&mut self, offset: u64, bytes: Vec<u8>) {
        if self.connected {
            self.data.push_back(Item::Write { offset, bytes });
        }
    }

    pub(super) fn mark(&mut self, marker: u64) {
        if self.connected {
            self.data.push_back(Item::Marker(marker));
        }
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
            assert!(self.primary.handle_connected(self.now, &mut actions), "it was just welcomed");
        }
        self.primary_queue.extend(actions);
        if self.connected {
            let mut actions = backup::Actions::new();
            assert!(self.backup.handle_connected(self.now, &mut actions), "it was just welcomed");
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
    pub(super) fn deliver(&mut self) {
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
                Some(Item::Write { offset, bytes }) => self.arena.write(self.lent_at(offset), &bytes),
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

    /// The backup's actions answer and close.
    pub(super) fn backup_outcome(&mut self, outcome: Result<(), backup::Refusal>) {
        if let Err(refusal) = outcome {
            self.backup_log.push(refusal.to_string());
        }
    }

    /// The backup's process is started anew, its memory is gone.
    pub fn restart_backup(&mut self) {
        self.cut();
        self.backup = Backup::new(backup_config(), self.now);
        self.backup_queue.clear();
        self.arena = arena(&self.shape);
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
                Item::Write { offset, bytes } => self.arena.write(self.lent_at(offset), &bytes),
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
}
