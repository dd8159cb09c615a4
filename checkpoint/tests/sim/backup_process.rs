//! The process that stands ready: the machine, and around it what the driver's threads do, one
//! small step at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::{
    Actions, Admission, Backup, BackupAction, BackupConfig, BackupState, Refusal,
};
use romulus_checkpoint::placement::committed::HomingCopy;
use romulus_checkpoint::wire::message::{ErrorCode, Hello, Message, decode};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{ConnectionNumber, Epoch, Identity, Time};
use romulus_transport::{Channel, Endpoint, Event, Fabric, Listener, MessageBuffer, TransportError};

use super::arbiter::{Answer, Kind, Request};
use super::env::{Crashed, Env, Progress, Step, backup_address, encoded};
use super::image::Image;
use super::scenario::{Host, Mutant};

pub const BACKUP: &str = "host-b";

/// An established connection.
struct Link {
    endpoint: Arc<dyn Endpoint>,
    number: ConnectionNumber,
    /// The highest marker that is in.
    fences: Vec<u64>,
}

/// A Hello on its way to a Welcome.
struct Guest {
    channel: Box<dyn Channel>,
    identity: Identity,
    hello: Hello,
    step: Welcoming,
}

enum Welcoming {
    Record(Option<Request>),
    Quiesce,
}

/// A homing copy under way; made in two pieces.
struct Copying {
    copy: HomingCopy,
    pieces_done: u64,
}

/// A takeover under way.
struct Takeover {
    epoch: Epoch,
    copies: VecDeque<HomingCopy>,
    activate_at: Option<Time>,
}

pub struct BackupProcess {
    pub machine: Backup,
    pub image: Option<Image>,
    actions: Actions,
    queue: VecDeque<BackupAction>,
    listener: Box<dyn Listener>,
    strangers: Vec<(Box<dyn Channel>, Time)>,
    guest: Option<Guest>,
    link: Option<Link>,
    asked: VecDeque<Request>,
    homing: Option<Copying>,
    homing_woken: bool,
    trial: Option<(Time, Result<(), String>)>,
    takeover: Option<Takeover>,
    /// The guest runs here now.
    pub activated: bool,
    /// The activation failed.
    pub activation_failed: bool,
    /// The fence stands since the last connection; the image then.
    fenced: Option<u64>,
    message: MessageBuffer,
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
            guest: None,
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

    fn called(&mut self, env: &mut Env) -> Step {
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
        if !self.machine.next_tick().is_some_and(|at| at <= env.now) {
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
    fn refuse_peer(&mut self, refusal: &Refusal, env: &mut Env) -> Result<(), Crashed> {
        env.trace(|| format!("backup: refuses its peer: {refusal:?}"));
        if env.plan.mutant == Mutant::None {
            env.oracle.violate("protocol", format!("the backup refuses the primary: {refusal}"));
        }
        self.disconnect(&refusal.text, env)
    }

    fn disconnect(&mut self, why: &str, env: &mut Env) -> Result<(), Crashed> {
        let Some(link) = self.link.take() else { return Ok(()) };
        env.trace(|| format!("backup: connection {} ends: {why}", link.number));
        link.endpoint.close();
        self.machine.handle_disconnected(why, env.now, &mut self.actions);
        self.called(env)?;
        self.check_image(env);
        Ok(())
    }

    fn step_strangers(&mut self, env: &mut Env) -> Step {
        let mut progress = Progress::None;
        if let Ok(Some(channel)) = self.listener.accept(Duration::ZERO) {
            self.strangers.push((channel, env.now.after(Duration::from_millis(5))));
            progress = Progress::Some;
        }
        for (mut channel, until) in std::mem::take(&mut self.strangers) {
            match channel.receive(Duration::ZERO) {
                Err(TransportError::TimedOut { .. }) if env.now < until => {
                    self.strangers.push((channel, until))
                }
                Err(_) => progress = Progress::Some,
                Ok(bytes) => {
                    progress = Progress::Some;
                    self.greet(channel, &bytes, env)?;
                }
            }
        }
        Ok(progress)
    }

    fn greet(&mut self, mut channel: Box<dyn Channel>, bytes: &[u8], env: &mut Env) -> Result<(), Crashed> {
        let Ok((identity, Message::Hello(hello))) = decode(bytes) else {
            return Ok(());
        };
        if self.guest.is_some() {
            // One handshake at a time; the stranger tries again.
            refuse(&mut channel, &identity, ErrorCode::Busy, "another handshake is under way");
            return Ok(());
        }
        let admission = self.machine.admit(&identity, &hello, env.now);
        env.trace(|| format!("backup: hello {identity:?}: {admission:?}"));
        self.guest = Some(Guest { channel, identity, hello, step: Welcoming::Quiesce });
        self.admitted(admission, env)
    }

    fn admitted(&mut self, admission: Result<Admission, Refusal>, env: &mut Env) -> Result<(), Crashed> {
        env.point(Host::Backup)?;
        let Some(mut guest) = self.guest.take() else { return Ok(()) };
        match admission {
            Err(refusal) => {
                refuse(&mut guest.channel, &guest.identity, refusal.code, &refusal.text);
                return Ok(());
            }
            Ok(Admission::NeedsRecord) => guest.step = Welcoming::Record(None),
            Ok(Admission::Resume) => {
                self.disconnect("replaced by a new connection", env)?;
                guest.step = Welcoming::Quiesce;
            }
            Ok(Admission::Prepare(shape)) => {
                self.disconnect("replaced by a new connection", env)?;
                if env.operation_fails() {
                    let text = "no standby could be prepared";
                    refuse(&mut guest.channel, &guest.identity, ErrorCode::StandbyFailed, text);
                    return Ok(());
                }
                env.oracle.image_gone();
                self.image = Some(Image::new(shape));
                guest.step = Welcoming::Quiesce;
            }
        }
        self.guest = Some(guest);
        Ok(())
    }

    fn step_welcome(&mut self, env: &mut Env) -> Step {
        let Some(guest) = &mut self.guest else { return Ok(Progress::None) };
        match &mut guest.step {
            Welcoming::Record(None) => {
                guest.step =
                    Welcoming::Record(Some(env.arbiter.ask(Host::Backup, Kind::Read, env.now, &mut env.rng)));
                Ok(Progress::Some)
            }
            Welcoming::Record(Some(request)) => {
                if request.due() > env.now {
                    return Ok(Progress::None);
                }
                let answer = env.arbiter.go_on(request, env.now, &mut env.rng, &mut env.oracle);
                if let Some(Answer::Record(record)) = answer {
                    let (identity, hello) = (guest.identity, guest.hello.clone());
                    let admission = self.machine.admit_with_record(&identity, &hello, record, env.now);
                    env.trace(|| format!("backup: with the record: {admission:?}"));
                    self.admitted(admission, env)?;
                }
                Ok(Progress::Some)
            }
            Welcoming::Quiesce => self.welcome(env),
        }
    }

    fn welcome(&mut self, env: &mut Env) -> Step {
        if !self.machine.quiesce_homing() || self.homing.is_some() {
            return Ok(Progress::None);
        }
        let (Some(mut guest), Some(image)) = (self.guest.take(), &self.image) else {
            return Ok(Progress::Some);
        };
        self.check_image(env);
        let Ok(fabric_answer) = guest.channel.answer(&guest.hello.fabric_offer, image.arena()) else {
            // The stranger is gone; the machine waits for the next Hello.
            return Ok(Progress::Some);
        };
        let (identity, welcome) =
            self.machine.welcome(&guest.hello, fabric_answer, env.now, &mut self.actions);
        env.trace(|| format!("backup: {welcome:?}"));
        self.called(env)?;
        let sent = guest.channel.send(&encoded(&identity, &welcome));
        if !matches!(welcome, Message::Welcome(_)) {
            // Things have changed since the Hello: the peer gets no answer of the fabric's.
            return Ok(Progress::Some);
        }
        self.fenced = None;
        match sent.and_then(|()| guest.channel.establish(None, Duration::ZERO)) {
            Ok(endpoint) => {
                self.link = Some(Link { endpoint, number: identity.connection, fences: Vec::new() });
                self.machine.handle_connected(env.now, &mut self.actions);
            }
            Err(error) => self.machine.handle_disconnected(&error.to_string(), env.now, &mut self.actions),
        }
        self.called(env)
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
            env.oracle.committed(identity, epoch, &state);
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
            self.machine.handle_fenced(env.now, &mut self.actions);
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
        self.machine.handle_fenced(env.now, &mut self.actions);
        self.called(env)
    }

    fn step_homing(&mut self, env: &mut Env) -> Step {
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

    fn begin_takeover(&mut self, epoch: Epoch, displaced: Vec<HomingCopy>, env: &mut Env) {
        match (&self.image, self.fenced) {
            (Some(image), Some(then)) if image.fingerprint() == then => {}
            _ => env.oracle.violate("I6", "the image changed after the fence, or there was none".into()),
        }
        let skip = env.mutant(Mutant::SkipDisplaced);
        let copies = displaced.into_iter().filter(|_| !skip).collect();
        self.takeover = Some(Takeover { epoch, copies, activate_at: None });
    }

    /// The standby's slow work: the trial, the copies of a takeover, the activation.
    fn step_standby(&mut self, env: &mut Env) -> Step {
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

    fn activate(&mut self, epoch: Epoch, env: &mut Env) -> Step {
        if env.operation_fails() {
            env.trace(|| "backup: the activation fails".into());
            self.activation_failed = true;
            let why = "the standby does not start".to_owned();
            self.machine.handle_activated(Err(why), env.now, &mut self.actions);
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
        self.machine.handle_activated(Ok(()), env.now, &mut self.actions);
        self.called(env)
    }

    /// The state in the slot of the committed epoch is the guest's.
    fn check_state(&mut self, epoch: Epoch, what: &str, env: &mut Env) {
        let (Some(image), Some(committed)) = (&self.image, &env.oracle.committed) else {
            env.oracle.violate("I2", format!("epoch {epoch} is {what} and there is no image"));
            return;
        };
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

    pub fn request_takeover(&mut self, force: bool, env: &mut Env) -> Result<(), String> {
        let result = self.machine.request_takeover(force, env.now, &mut self.actions);
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
        let record = match self.guest.as_ref().map(|guest| &guest.step) {
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

fn refuse(channel: &mut Box<dyn Channel>, identity: &Identity, code: ErrorCode, text: &str) {
    let _ = channel.send(&encoded(identity, &Message::Error { code, text: text.into() }));
}
