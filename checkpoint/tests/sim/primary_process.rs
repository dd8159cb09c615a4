//! The process that protects a guest: the machine, and around it what the driver's threads do,
//! one small step at a time and in any order that threads could take.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use romulus_checkpoint::arbiter::Record;
use romulus_checkpoint::primary::{
    Actions, Primary, PrimaryAction, PrimaryConfig, PrimaryReport, PrimaryState,
};
use romulus_checkpoint::wire::message::{ByeReason, MachineIdentity, Message};
use romulus_checkpoint::{ConnectionNumber, SessionId, Time};
use romulus_transport::{Channel, Endpoint, Event, Fabric, MessageBuffer, RegionId, TransportError};

use super::arbiter::{Answer, Kind, Request};
use super::capture::Capture;
use super::env::{Crashed, Env, Progress, Step, backup_address, encoded};
use super::guest::Run;
use super::primary_host::{GUEST, HERE, PRIMARY, PrimaryHost};
use super::scenario::Mutant;
use super::sender::Sender;

/// How a process ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its guest lives elsewhere.
    Lost,
    /// The guest has ended, or the operator stopped protection.
    Ended,
}

/// An established connection.
pub struct Link {
    pub endpoint: Arc<dyn Endpoint>,
    pub staging: RegionId,
    pub number: ConnectionNumber,
}

enum Dial {
    Rest(Time),
    Asked(Box<dyn Channel>, Time),
}

pub struct PrimaryProcess {
    pub machine: Primary,
    pub actions: Actions,
    pub link: Option<Link>,
    pub capture: Capture,
    pub sender: Sender,
    pub queue: VecDeque<PrimaryAction>,
    dial: Dial,
    asked: VecDeque<Request>,
    message: MessageBuffer,
    last_hello: Vec<u8>,
    stray: Option<Box<dyn Channel>>,
}

impl std::fmt::Debug for PrimaryProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrimaryProcess").field("state", &self.machine.state()).finish_non_exhaustive()
    }
}

/// What both sides' machines say they are.
pub fn machine_identity() -> MachineIdentity {
    MachineIdentity { hypervisor: "model".into(), configuration: vec!["cpus=1".into()] }
}

impl PrimaryProcess {
    pub fn new(record: Record, env: &mut Env) -> Self {
        let scenario = &env.scenario;
        let config = PrimaryConfig {
            host: PRIMARY.into(),
            guest: GUEST.into(),
            session: SessionId(u128::from(env.rng.next())),
            interval: scenario.interval,
            depth: scenario.depth,
            heartbeat_every: scenario.heartbeat,
            suspect_after: scenario.primary_suspects,
            sync_target_pages: scenario.sync_target_pages,
            sync_max_rounds: scenario.sync_max_rounds,
            throttle_pause: scenario.throttle_pause,
            solo_automatic: scenario.solo_automatic,
            low_water_spares: scenario.low_water_spares,
            shared_arbiter: scenario.shared_arbiter,
            nonce_seed: env.rng.next(),
        };
        let (layout, shape) = (scenario.layout.clone(), scenario.shape);
        Self {
            machine: Primary::new(config, layout, machine_identity(), shape, record, env.now),
            actions: Vec::new(),
            link: None,
            capture: Capture::default(),
            sender: Sender::new(&env.scenario),
            queue: VecDeque::new(),
            dial: Dial::Rest(env.now),
            asked: VecDeque::new(),
            message: MessageBuffer::default(),
            last_hello: Vec::new(),
            stray: None,
        }
    }

    /// A point where the process may crash.
    pub fn point(&mut self, env: &mut Env) -> Result<(), Crashed> {
        env.point(HERE)
    }

    /// Queues what the machine asked for, after one call of it.
    pub fn called(&mut self, env: &mut Env) -> Step {
        self.queue.extend(self.actions.drain(..));
        self.capture.look_again();
        self.point(env)?;
        Ok(Progress::Some)
    }

    /// One step of one thread, if any has something to do.
    pub fn step(&mut self, host: &mut PrimaryHost, env: &mut Env) -> Step {
        let first = env.rng.below(7);
        for turn in 0..7 {
            let progress = match (first + turn) % 7 {
                0 => self.step_timer(env)?,
                1 => self.step_actions(host, env)?,
                2 => self.step_events(env)?,
                3 => self.step_dial(env)?,
                4 => self.step_arbiter(env)?,
                5 => self.step_capture(host, env)?,
                _ => self.step_sender(env)?,
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
            env.oracle.violate("timer", "the primary's tick is due again at the same time".into());
        }
        self.called(env)
    }

    fn step_events(&mut self, env: &mut Env) -> Step {
        let Some(link) = &self.link else { return Ok(Progress::None) };
        let event = link.endpoint.next_event(&mut self.message, Duration::ZERO).expect("events never fail");
        match event {
            Event::Idle => return Ok(Progress::None),
            Event::Message => {
                let result = self.machine.handle_message(self.message.message(), env.now, &mut self.actions);
                self.called(env)?;
                if let Err(fault) = result {
                    self.peer_fault(&fault.text, env)?;
                }
            }
            Event::Fenced { .. } => env.oracle.violate("fabric", "a marker came to the primary".into()),
            Event::Closed(reason) => self.disconnect(&reason.to_string(), env)?,
        }
        Ok(Progress::Some)
    }

    /// An honest peer never makes one of these; it may give up, and says so.
    fn peer_fault(&mut self, why: &str, env: &mut Env) -> Result<(), Crashed> {
        env.trace(|| format!("primary: peer fault: {why}"));
        if env.plan.mutant == Mutant::None && !why.starts_with("the backup gives up") {
            env.oracle.violate("protocol", format!("the primary finds fault with the backup: {why}"));
        }
        self.disconnect(why, env)
    }

    fn disconnect(&mut self, why: &str, env: &mut Env) -> Result<(), Crashed> {
        let Some(link) = self.link.take() else { return Ok(()) };
        env.trace(|| format!("primary: connection {} ends: {why}", link.number));
        link.endpoint.close();
        self.sender.disconnected();
        self.dial = Dial::Rest(env.now.after(env.rng.up_to_us(1500)));
        self.machine.handle_disconnected(why, env.now, &mut self.actions);
        self.called(env)?;
        Ok(())
    }

    fn wants_connection(&self) -> bool {
        self.link.is_none() && !matches!(self.machine.state(), PrimaryState::Lost | PrimaryState::Ended)
    }

    fn step_dial(&mut self, env: &mut Env) -> Step {
        match std::mem::replace(&mut self.dial, Dial::Rest(env.now)) {
            Dial::Rest(at) if at > env.now || !self.wants_connection() => {
                self.dial = Dial::Rest(at);
                Ok(Progress::None)
            }
            // What was asked for on the last connection comes first.
            Dial::Rest(_) if !self.queue.is_empty() => Ok(Progress::None),
            Dial::Rest(_) => {
                let retry = env.now.after(env.rng.up_to_us(3000) + Duration::from_micros(100));
                self.dial = Dial::Rest(retry);
                let Ok(mut channel) = env.fabric.connect(backup_address(), Duration::ZERO) else {
                    return Ok(Progress::Some);
                };
                let Ok(offer) = channel.offer() else { return Ok(Progress::Some) };
                let hello = self.machine.hello(offer, env.now);
                env.trace(|| format!("primary: hello {:?}", hello.identity));
                self.last_hello = encoded(&hello.identity.clone(), &Message::Hello(hello));
                self.called(env)?;
                if channel.send(&self.last_hello).is_ok() {
                    self.dial = Dial::Asked(channel, env.now.after(Duration::from_millis(20)));
                    self.maybe_again(env);
                }
                Ok(Progress::Some)
            }
            Dial::Asked(channel, until) => self.await_answer(channel, until, env),
        }
    }

    /// A replay: the same Hello once more, on a connection that nobody continues.
    fn maybe_again(&mut self, env: &mut Env) {
        let chance = env.faults().map_or(0, |faults| faults.late_hello_percent);
        if !env.rng.percent(chance) {
            return;
        }
        if let Ok(mut channel) = env.fabric.connect(backup_address(), Duration::ZERO)
            && channel.send(&self.last_hello).is_ok()
        {
            env.trace(|| "primary: the hello is sent a second time".into());
            self.stray = Some(channel);
        }
    }

    fn await_answer(&mut self, mut channel: Box<dyn Channel>, until: Time, env: &mut Env) -> Step {
        let bytes = match channel.receive(Duration::ZERO) {
            Err(TransportError::TimedOut { .. }) if env.now < until && self.wants_connection() => {
                self.dial = Dial::Asked(channel, until);
                return Ok(Progress::None);
            }
            Err(_) => return Ok(Progress::Some),
            Ok(bytes) => bytes,
        };
        self.dial = Dial::Rest(env.now.after(env.rng.up_to_us(3000) + Duration::from_micros(100)));
        let answer = self.machine.handle_answer(&bytes, env.now, &mut self.actions);
        self.called(env)?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                env.trace(|| format!("primary: not answered: {fault}"));
                return Ok(Progress::Some);
            }
        };
        let number = self.machine.identity().connection;
        match channel.establish(Some(&answer), Duration::ZERO) {
            Ok(endpoint) => {
                let staging = endpoint.register(self.sender.staging.clone()).expect("memory registers");
                self.link = Some(Link { endpoint, staging, number });
                env.trace(|| format!("primary: connection {number} stands"));
                if !self.machine.handle_connected(env.now, &mut self.actions) {
                    self.disconnect("given up meanwhile", env)?;
                }
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
        env.trace(|| format!("primary: arbiter says {answer:?}"));
        match answer {
            Answer::Record(record) => self.machine.handle_record(record, env.now, &mut self.actions),
            Answer::Swap(new, outcome) => self.machine.handle_swap(&new, outcome, env.now, &mut self.actions),
        }
        self.called(env)
    }

    fn step_actions(&mut self, host: &mut PrimaryHost, env: &mut Env) -> Step {
        let Some(action) = self.queue.pop_front() else { return Ok(Progress::None) };
        env.trace(|| format!("primary: {action:?}"));
        match action {
            PrimaryAction::Send(identity, message) => {
                if let Some(link) = self.link.as_ref().filter(|link| link.number == identity.connection) {
                    // A failure comes back as the end of the connection.
                    let _ = link.endpoint.send(&encoded(&identity, &message));
                }
            }
            PrimaryAction::Release(token) => host.gate.release(&token, &mut env.oracle),
            PrimaryAction::HoldOutput => {
                let failed = env.operation_fails();
                if !failed {
                    host.gate.hold(&mut env.oracle);
                }
                let outcome = if failed { Err("the gate failed".into()) } else { Ok(()) };
                self.machine.handle_held(outcome, env.now, &mut self.actions);
                self.called(env)?;
            }
            PrimaryAction::CloseConnection(why) => {
                if env.mutant(Mutant::OpenWithoutGrant) {
                    host.gate.open(&mut env.oracle);
                }
                self.disconnect(&why, env)?;
            }
            PrimaryAction::Swap { expected, new } => {
                let request = env.arbiter.ask(HERE, Kind::Swap { expected, new }, env.now, &mut env.rng);
                self.asked.push_back(request);
            }
            PrimaryAction::ReadRecord => {
                self.asked.push_back(env.arbiter.ask(HERE, Kind::Read, env.now, &mut env.rng));
            }
            PrimaryAction::DestroyGuest => host.destroy_guest(),
            PrimaryAction::ResumeGuest => {
                if host.guest.run == Run::Paused {
                    host.guest.run = Run::Running;
                }
            }
            PrimaryAction::Report(report) => count(&report, env),
        }
        self.point(env)?;
        Ok(Progress::Some)
    }

    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// The operator's and the guest's deeds.
    pub fn request_failover(&mut self, env: &mut Env) -> Result<(), String> {
        let result = self.machine.request_failover(env.now, &mut self.actions);
        self.queue.extend(self.actions.drain(..));
        self.capture.look_again();
        result
    }

    pub fn request_stop(&mut self, env: &mut Env) {
        self.machine.request_stop(env.now, &mut self.actions);
        self.queue.extend(self.actions.drain(..));
        self.capture.look_again();
    }

    pub fn guest_gone(&mut self, reason: ByeReason, env: &mut Env) {
        self.machine.guest_gone(reason, env.now, &mut self.actions);
        self.queue.extend(self.actions.drain(..));
        self.capture.look_again();
    }

    /// Whether the process ends by itself now.
    pub fn exit(&self, host: &PrimaryHost) -> Option<Exit> {
        let idle = self.queue.is_empty() && self.asked.is_empty() && self.capture.is_idle();
        match self.machine.state() {
            PrimaryState::Lost if idle && host.guest.run != Run::Running => Some(Exit::Lost),
            PrimaryState::Ended if idle => Some(Exit::Ended),
            _ => None,
        }
    }

    /// It ends by itself.
    pub fn leave(self, _env: &mut Env) {
        if let Some(link) = self.link {
            link.endpoint.close();
        }
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

    pub fn next_due(&self) -> Option<Time> {
        let dial = match &self.dial {
            Dial::Rest(at) => self.wants_connection().then_some(*at),
            Dial::Asked(_, until) => Some(*until),
        };
        let asked = self.asked.front().map(Request::due);
        [dial, asked, self.machine.next_tick(), self.capture.wake_at()].into_iter().flatten().min()
    }
}

fn count(report: &PrimaryReport, env: &mut Env) {
    let stats = &mut env.oracle.stats;
    match report {
        PrimaryReport::State(PrimaryState::Syncing, _) => stats.full_syncs += 1,
        PrimaryReport::Resumed { .. } => stats.resumptions += 1,
        PrimaryReport::Overflow { .. } => stats.overflows += 1,
        _ => {}
    }
}
