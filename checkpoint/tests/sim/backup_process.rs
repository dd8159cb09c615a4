//! The process that stands ready: the machine, and around it what the driver's threads do, one
//! small step at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use romulus_checkpoint::backup::{Actions, Backup, BackupAction, BackupConfig, Refusal};
use romulus_checkpoint::wire::message::{Message, decode};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{ConnectionNumber, Epoch, Identity, Time};
use romulus_transport::{Channel, Endpoint, Event, Fabric, Listener, MessageBuffer};

use super::arbiter::{Answer, Kind, Request};
use super::backup_admission::{Greeted, Welcoming};
use super::backup_standby::{Copying, Takeover};
use super::env::{Crashed, Env, Progress, Step, backup_address, encoded};
use super::image::Image;
use super::scenario::{Host, Mutant};

pub const BACKUP: &str = "host-b";

/// An established connection.
pub struct Link {
    pub endpoint: Arc<dyn Endpoint>,
    pub number: ConnectionNumber,
    /// The markers that are in.
    pub fences: Vec<u64>,
}

pub struct BackupProcess {
    pub machine: Backup,
    pub image: Option<Image>,
    pub actions: Actions,
    pub queue: VecDeque<BackupAction>,
    pub listener: Box<dyn Listener>,
    pub strangers: Vec<(Box<dyn Channel>, Time)>,
    pub greeted: Option<Greeted>,
    pub link: Option<Link>,
    pub asked: VecDeque<Request>,
    pub homing: Option<Copying>,
    pub homing_woken: bool,
    pub trial: Option<(Time, Result<(), String>)>,
    pub takeover: Option<Takeover>,
    /// The guest runs here now.
    pub activated: bool,
    /// The activation failed.
    pub activation_failed: bool,
    /// The fence stands since the last connection; the image then.
    pub fenced: Option<u64>,
    pub message: MessageBuffer,
}

impl std::fmt::Debug for BackupProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupProcess").field("state", &self.machine.state()).finish_non_exhaustive()
    }
}

impl BackupProcess {
    pub fn new(env: &mut Env) -> Option<Self> {
        let config = BackupConfig {
            host: BACKUP.into(),
            heartbeat_every: env.scenario.heartbeat,
            suspect_after: env.scenario.backup_suspects,
            takeover_automatic: env.scenario.takeover_automatic,
            max_arena_bytes: 1 << 30,
            shared_arbiter: env.scenario.shared_arbiter,
            nonce_seed: env.rng.next(),
        };
        Some(Self {
            machine: Backup::new(config, env.now),
            image: None,
            actions: Vec::new(),
            queue: VecDeque::new(),
            listener: env.fabric.listen(backup_address()).ok()?,
            strangers: Vec::new(),
            greeted: None,
            link: None,
            asked: VecDeque::new(),
            homing: None,
            homing_woken: false,
            trial: None,
            takeover: None,
            activated: false,
            activation_failed: false,
            fenced: None,
            message: MessageBuffer::default(),
        })
    }

    pub fn called(&mut self, env: &mut Env) -> Step {
        self.queue.extend(self.actions.drain(..));
        env.point(Host::Backup)?;
        Ok(Progress::Some)
    }

    /// One step of one thread, if any has something to do.
    pub fn step(&mut self, env: &mut Env) -> Step {
        let first = env.rng.below(8);
        for turn in 0..8 {
            let progress = match (first + turn) % 8 {
                0 => self.step_timer(env)?,
                1 => self.step_actions(env)?,
                2 => self.step_events(env)?,
                3 => self.step_strangers(env)?,
                4 => self.step_welcome(env)?,
                5 => self.step_arbiter(env)?,
                6 => self.step_homing(env)?,
                _ => self.step_standby(env)?,
            };
            if progress == Progress::Some {
                return Ok(progress);
            }
        }
        Ok(Progress::None)
    }

    fn step_timer(&mut self, env: &mut Env) -> Step {
        if self.machine.next_tick().is_none_or(|at| at > env.now) {
            return Ok(Progress::None);
        }
        self.machine.handle_tick(env.now, &mut self.actions);
        if self.machine.next_tick().is_some_and(|at| at <= env.now) {
            env.oracle.violate("timer", "the backup's tick is due again at the same time".into());
        }
        self.called(env)
    }

    fn step_events(&mut self, env: &mut Env) -> Step {
        let Some(link) = &mut self.link else { return Ok(Progress::None) };
        let event = link.endpoint.next_event(&mut self.message, Duration::ZERO).expect("events never fail");
        match event {
            Event::Idle => return Ok(Progress::None),
            Event::Fenced { marker } => {
                link.fences.push(marker);
                self.machine.handle_fence(marker, env.now, &mut self.actions);
                self.called(env)?;
            }
            Event::Message => {
                if env.mutant(Mutant::CommitWithoutFence)
                    && let Ok((_, Message::Commit { epoch })) = decode(self.message.message())
                {
                    self.machine.handle_fence(epoch.0, env.now, &mut self.actions);
                }
                let bytes = self.message.message();
                let result = self.machine.handle_message(bytes, env.now, &mut self.actions);
                self.called(env)?;
                if let Err(refusal) = result {
                    self.refuse_peer(&refusal, env)?;
                }
            }
            Event::Closed(reason) => self.disconnect(&reason.to_string(), env)?,
        }
        Ok(Progress::Some)
    }

    /// An honest peer is never refused on an established connection.
    pub fn refuse_peer(&mut self, refusal: &Refusal, env: &mut Env) -> Result<(), Crashed> {
        env.trace(|| format!("backup: refuses its peer: {refusal:?}"));
        if env.plan.mutant == Mutant::None {
            env.oracle.violate("protocol", format!("the backup refuses the primary: {refusal}"));
        }
        self.disconnect(&refusal.text, env)
    }

    pub fn disconnect(&mut self, why: &str, env: &mut Env) -> Result<(), Crashed> {
        let Some(link) = self.link.take() else { return Ok(()) };
        env.trace(|| format!("backup: connection {} ends: {why}", link.number));
        link.endpoint.close();
        self.machine.handle_disconnected(why, env.now, &mut self.actions);
        self.called(env)?;
        self.check_image(env);
        Ok(())
    }

    fn step_arbiter(&mut self, env: &mut Env) -> Step {
        let Some(request) = self.asked.front_mut() else { return Ok(Progress::None) };
        if request.due() > env.now {
            return Ok(Progress::None);
        }
        let Some(answer) = env.arbiter.go_on(request, env.now, &mut env.rng, &mut env.oracle) else {
            return Ok(Progress::Some);
        };
        self.asked.pop_front();
        env.trace(|| format!("backup: arbiter says {answer:?}"));
        match answer {
            Answer::Record(record) => self.machine.handle_record(record, env.now, &mut self.actions),
            Answer::Swap(new, outcome) => self.machine.handle_swap(&new, outcome, env.now, &mut self.actions),
        }
        self.called(env)
    }

    fn step_actions(&mut self, env: &mut Env) -> Step {
        // The fence takes its time; what comes after it waits.
        if matches!(self.queue.front(), Some(BackupAction::Fence)) {
            return self.fence(env);
        }
        let Some(action) = self.queue.pop_front() else { return Ok(Progress::None) };
        env.trace(|| format!("backup: {action:?}"));
        match action {
            BackupAction::Send(identity, message) => {
                if let Some(link) = self.link.as_ref().filter(|link| link.number == identity.connection) {
                    let _ = link.endpoint.send(&encoded(&identity, &message));
                }
            }
            BackupAction::ReadSlot { identity, epoch } => self.read_slot(&identity, epoch, env)?,
            BackupAction::WakeHoming => self.homing_woken = true,
            BackupAction::CloseConnection(why) => self.disconnect(&why, env)?,
            BackupAction::Fence => unreachable!("handled above"),
            BackupAction::Swap { expected, new } => {
                let request =
                    env.arbiter.ask(Host::Backup, Kind::Swap { expected, new }, env.now, &mut env.rng);
                self.asked.push_back(request);
            }
            BackupAction::ReadRecord => {
                self.asked.push_back(env.arbiter.ask(Host::Backup, Kind::Read, env.now, &mut env.rng));
            }
            BackupAction::Trial { epoch } => {
                self.check_state(epoch, "tried", env);
                let failed = env.operation_fails();
                let outcome = if failed { Err("the trial failed".into()) } else { Ok(()) };
                self.trial = Some((env.now.after(env.rng.up_to_us(2000)), outcome));
            }
            BackupAction::TakeOver { epoch, displaced } => {
                self.begin_takeover(epoch, displaced, env);
            }
            BackupAction::Abandon => {
                self.image = None;
                env.oracle.image_gone();
            }
            BackupAction::Report(_) => {}
        }
        env.point(Host::Backup)?;
        Ok(Progress::Some)
    }

    fn read_slot(&mut self, identity: &Identity, epoch: Epoch, env: &mut Env) -> Result<(), Crashed> {
        let Some(image) = &self.image else {
            env.oracle.violate("I2", format!("the slot of epoch {epoch} is read without an image"));
            return Ok(());
        };
        let fenced = self.link.as_ref().is_some_and(|link| link.fences.contains(&epoch.0));
        let mut transfers = Vec::new();
        let slot = slot::decode(&image.slot(epoch), identity, epoch, &mut transfers);
        let committed_before = self.machine.committed();
        let result = self.machine.handle_slot(slot.clone(), &transfers, env.now, &mut self.actions);
        if self.machine.committed() != committed_before {
            if !fenced {
                env.oracle.violate("I4", format!("epoch {epoch} was committed without its markers"));
            }
            if self.machine.committed() != epoch {
                env.oracle.violate("I5", format!("the slot of epoch {epoch} committed another"));
            }
            let state = slot.as_ref().map(|header| image.state(epoch, header)).unwrap_or_default();
            if env.scenario.shape.copy_only_homes && state.is_empty() {
                env.oracle.part_committed(identity, epoch);
            } else {
                env.oracle.committed(identity, epoch, &state);
            }
        }
        self.called(env)?;
        self.check_image(env);
        if let Err(refusal) = result {
            self.refuse_peer(&refusal, env)?;
        }
        Ok(())
    }

    fn fence(&mut self, env: &mut Env) -> Step {
        if env.mutant(Mutant::TakeoverWithoutFence) {
            self.queue.pop_front();
            self.machine.handle_fenced(&mut self.actions);
            return self.called(env);
        }
        if let Some(link) = self.link.take() {
            link.endpoint.close();
            env.trace(|| "backup: fence: the connection is destroyed".into());
            self.machine.handle_disconnected("fenced", env.now, &mut self.actions);
            return self.called(env);
        }
        if !self.machine.quiesce_homing() || self.homing.is_some() {
            return Ok(Progress::None);
        }
        self.queue.pop_front();
        env.trace(|| "backup: the fence stands".into());
        self.fenced = self.image.as_ref().map(Image::fingerprint);
        self.machine.handle_fenced(&mut self.actions);
        self.called(env)
    }

    pub fn request_takeover(&mut self, force: bool) -> Result<(), String> {
        let result = self.machine.request_takeover(force, &mut self.actions);
        self.queue.extend(self.actions.drain(..));
        result
    }

    pub fn request_stop(&mut self, env: &mut Env) {
        self.machine.request_stop(env.now, &mut self.actions);
        self.queue.extend(self.actions.drain(..));
    }

    /// It is killed: what it asked of the arbiter may still happen.
    pub fn die(self, env: &mut Env) {
        for request in self.asked {
            env.arbiter.abandoned(request, &mut env.rng, &mut env.oracle);
        }
        if let Some(link) = self.link {
            link.endpoint.close();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.asked.is_empty()
    }

    pub fn next_due(&self) -> Option<Time> {
        let record = match self.greeted.as_ref().map(|guest| &guest.step) {
            Some(Welcoming::Record(Some(request))) => Some(request.due()),
            _ => None,
        };
        let strangers = self.strangers.iter().map(|(_, until)| *until).min();
        let asked = self.asked.front().map(Request::due);
        let trial = self.trial.as_ref().map(|(at, _)| *at);
        let takeover = self.takeover.as_ref().and_then(|takeover| takeover.activate_at);
        [record, strangers, asked, trial, takeover, self.machine.next_tick()].into_iter().flatten().min()
    }
}
