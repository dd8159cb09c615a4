//! The backup's slow work: homing copies, the trial, the takeover, and what is checked then.

use std::collections::VecDeque;

use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::placement::committed::HomingCopy;
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{Epoch, Time};

use super::backup_process::BackupProcess;
use super::env::{Env, Progress, Step};
use super::scenario::{Host, Mutant};

/// A homing copy under way; made in two pieces.
pub struct Copying {
    copy: HomingCopy,
    pieces_done: u64,
}

/// A takeover under way.
pub struct Takeover {
    epoch: Epoch,
    copies: VecDeque<HomingCopy>,
    pub activate_at: Option<Time>,
}

impl BackupProcess {
    pub fn step_homing(&mut self, env: &mut Env) -> Step {
        let Some(mut running) = self.homing.take() else {
            if !std::mem::take(&mut self.homing_woken) {
                return Ok(Progress::None);
            }
            let Some(copy) = self.machine.next_homing() else { return Ok(Progress::Some) };
            env.trace(|| format!("backup: homing {copy:?} begins"));
            self.homing_woken = true;
            self.homing = Some(Copying { copy, pieces_done: 0 });
            if env.mutant(Mutant::HomingReportedEarly) {
                self.machine.homing_finished(&copy, env.now, &mut self.actions);
            }
            env.point(Host::Backup)?;
            return Ok(Progress::Some);
        };
        if running.pieces_done < 2 {
            if let Some(image) = &self.image {
                image.copy_half(&running.copy, running.pieces_done);
            }
            running.pieces_done += 1;
            self.homing = Some(running);
            env.point(Host::Backup)?;
            return Ok(Progress::Some);
        }
        env.oracle.stats.homings += 1;
        if !env.mutant(Mutant::HomingReportedEarly) {
            self.machine.homing_finished(&running.copy, env.now, &mut self.actions);
        }
        self.called(env)?;
        self.check_image(env);
        Ok(Progress::Some)
    }

    pub fn begin_takeover(&mut self, epoch: Epoch, displaced: Vec<HomingCopy>, env: &mut Env) {
        match (&self.image, self.fenced) {
            (Some(image), Some(then)) if image.fingerprint() == then => {}
            _ => env.oracle.violate("I6", "the image changed after the fence, or there was none".into()),
        }
        let skip = env.mutant(Mutant::SkipDisplaced);
        let copies = displaced.into_iter().filter(|_| !skip).collect();
        self.takeover = Some(Takeover { epoch, copies, activate_at: None });
    }

    /// The standby's slow work: the trial, the copies of a takeover, the activation.
    pub fn step_standby(&mut self, env: &mut Env) -> Step {
        if let Some((_, outcome)) = self.trial.take_if(|(at, _)| *at <= env.now) {
            self.machine.handle_trial(outcome, env.now, &mut self.actions);
            return self.called(env);
        }
        let (Some(takeover), Some(image)) = (&mut self.takeover, &self.image) else {
            return Ok(Progress::None);
        };
        if let Some(copy) = takeover.copies.pop_front() {
            image.copy_half(&copy, 0);
            image.copy_half(&copy, 1);
            env.point(Host::Backup)?;
            return Ok(Progress::Some);
        }
        let at = *takeover.activate_at.get_or_insert_with(|| env.now.after(env.rng.up_to_us(1000)));
        if at > env.now {
            return Ok(Progress::None);
        }
        let epoch = takeover.epoch;
        self.takeover = None;
        env.point(Host::Backup)?;
        self.activate(epoch, env)
    }

    pub fn activate(&mut self, epoch: Epoch, env: &mut Env) -> Step {
        if env.operation_fails() {
            env.trace(|| "backup: the activation fails".into());
            self.activation_failed = true;
            let why = "the standby does not start".to_owned();
            self.machine.handle_activated(Err(why), &mut self.actions);
            return self.called(env);
        }
        env.trace(|| format!("backup: the guest runs from epoch {epoch}"));
        self.check_state(epoch, "activated", env);
        let record = env.arbiter.record(Host::Backup).map(|record| &record.ownership);
        let granted = matches!(record, Some(Ownership::Owned { .. }));
        env.oracle.activated(granted);
        if let (Some(image), Some(committed)) = (&self.image, &env.oracle.committed) {
            if committed.epoch != epoch {
                env.oracle
                    .violate("I2", format!("epoch {epoch} was activated, {} committed", committed.epoch));
            } else if let Some(page) = image.wrong_home(&committed.snapshot) {
                env.oracle
                    .violate("I2", format!("page {page} of the activated guest is not epoch {epoch}'s"));
            }
        }
        self.activated = true;
        self.machine.handle_activated(Ok(()), &mut self.actions);
        self.called(env)
    }

    /// The state in the slot of the committed epoch is the guest's.
    pub fn check_state(&mut self, epoch: Epoch, what: &str, env: &mut Env) {
        // A trial that was asked for may come after the end of its image.
        let (Some(image), Some(committed)) = (&self.image, &env.oracle.committed) else { return };
        let mut transfers = Vec::new();
        if committed.epoch != epoch {
            return;
        }
        let decoded = slot::decode(&image.slot(epoch), &committed.identity, epoch, &mut transfers);
        match decoded {
            Ok(header) if image.state(epoch, &header) == committed.snapshot.state => {}
            _ => env.oracle.violate("I2", format!("the state {what} is not epoch {epoch}'s")),
        }
    }

    /// I2, whenever it is cheap: the committed map with the image is the guest at that pause.
    pub fn check_image(&self, env: &mut Env) {
        let (Some(image), Some(committed)) = (&self.image, &env.oracle.committed) else { return };
        if self.machine.state() != BackupState::Protected || self.machine.committed() != committed.epoch {
            return;
        }
        let wrong = image.wrong_page(&committed.snapshot, |page| self.machine.frame_of(page));
        if let Some((page, frame)) = wrong {
            let epoch = committed.epoch;
            env.oracle.violate("I2", format!("page {page} in frame {frame} is not epoch {epoch}'s"));
        }
    }

    /// A write of the primary landed: nothing that counts may be in its way.
    pub fn check_placed(&self, offset: u64, len_bytes: u64, env: &mut Env) {
        let (Some(image), Some(committed)) = (&self.image, &env.oracle.committed) else { return };
        if self.machine.state() != BackupState::Protected || self.machine.committed() != committed.epoch {
            return;
        }
        env.oracle.stats.placed_checks += 1;
        let hit = image.hits(offset, len_bytes, committed.epoch, |page| self.machine.frame_of(page));
        if let Some(what) = hit {
            env.oracle.violate("I3", format!("a write landed in {what}"));
        }
        if let Some(running) = &self.homing
            && image.touches(offset, len_bytes, &running.copy)
        {
            env.oracle.violate("I3", format!("a write landed in a running homing {:?}", running.copy));
        }
    }
}
