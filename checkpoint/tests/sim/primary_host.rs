//! The primary's host: the guest, its gate, the guard, and the process that protects it.

use std::time::Duration;

use romulus_checkpoint::Time;
use romulus_checkpoint::arbiter::claim::{ClaimError, Patience, claim_after_loss, claim_first};

use super::env::{Env, Progress};
use super::gate::{GateModel, Mode};
use super::guest::{GuestModel, Run};
use super::primary_process::{Exit, PrimaryProcess};
use super::scenario::{Host, Mutant};

pub const GUEST: &str = "vm";
pub const PRIMARY: &str = "host-a";

#[derive(Debug)]
pub struct PrimaryHost {
    pub guest: GuestModel,
    pub gate: GateModel,
    pub process: Option<PrimaryProcess>,
    pub alive: bool,
    /// How the last process ended by itself.
    pub exit: Option<Exit>,
    /// The guard acts at this time.
    guard_at: Option<Time>,
    /// A new process starts at this time.
    start_at: Option<Time>,
    guest_at: Time,
    /// The process does not get to run before.
    pub hangs_until: Time,
}

impl PrimaryHost {
    pub fn new(env: &mut Env) -> Self {
        let guest = GuestModel::new(&env.scenario, &mut env.rng);
        Self {
            guest,
            gate: GateModel::new(),
            process: None,
            alive: true,
            exit: None,
            guard_at: None,
            start_at: Some(env.now),
            guest_at: env.now,
            hangs_until: env.now,
        }
    }

    /// When something is due that no other actor causes.
    pub fn next_due(&self) -> Option<Time> {
        let guest = (self.alive && self.guest.run == Run::Running).then_some(self.guest_at);
        let process = self.process.as_ref().and_then(|process| process.next_due());
        let process = process.map(|due| due.max(self.hangs_until));
        [guest, self.guard_at, self.start_at, process].into_iter().flatten().min()
    }

    pub fn step_guest(&mut self, env: &mut Env) -> Progress {
        if !self.alive || self.guest.run != Run::Running || env.now < self.guest_at {
            return Progress::None;
        }
        self.guest_at = env.now.after(env.rng.up_to_us(env.scenario.guest_every_us));
        if let Some(packet) = self.guest.act(&mut env.rng) {
            self.gate.send(packet, &mut env.oracle);
        }
        Progress::Some
    }

    pub fn step_process(&mut self, env: &mut Env) -> Progress {
        if env.now < self.hangs_until {
            return Progress::None;
        }
        let Some(mut process) = self.process.take() else { return self.start(env) };
        match process.step(self, env) {
            Err(_) => {
                self.process = Some(process);
                self.crash(env);
                Progress::Some
            }
            Ok(progress) => {
                self.exit = process.exit(self);
                match self.exit {
                    None => self.process = Some(process),
                    Some(exit) => {
                        env.trace(|| format!("primary: process ends: {exit:?}"));
                        process.leave(env);
                    }
                }
                progress
            }
        }
    }

    /// The process is killed.
    pub fn crash(&mut self, env: &mut Env) {
        let Some(process) = self.process.take() else { return };
        let points = env.points(HERE);
        env.trace(|| format!("primary: process crashes at point {points}"));
        env.oracle.stats.crashes += 1;
        process.die(env);
        self.gate.die(&mut env.oracle);
        if matches!(self.guest.run, Run::Running | Run::Paused) {
            self.guard_at = Some(env.now.after(env.rng.up_to_us(300)));
        }
    }

    /// The whole host dies.
    pub fn die(&mut self, env: &mut Env) {
        env.trace(|| "primary: host dies".into());
        if let Some(process) = self.process.take() {
            process.die(env);
        }
        self.gate.die(&mut env.oracle);
        self.guest.run = Run::Gone;
        self.alive = false;
        (self.guard_at, self.start_at) = (None, None);
    }

    /// The guard: acts as the primary that lost its protection.
    pub fn step_guard(&mut self, env: &mut Env) -> Progress {
        if self.guard_at.is_none_or(|at| at > env.now) {
            return Progress::None;
        }
        let at_once = Patience { attempts: 1, pause: Duration::ZERO };
        let arbiter = env.arbiter.at_once(env.now, &mut env.rng, &mut env.oracle);
        let claimed = claim_after_loss(&arbiter, GUEST, PRIMARY, at_once);
        env.trace(|| format!("guard: {claimed:?}"));
        let granted = claimed.is_ok() || env.mutant(Mutant::GuardWithoutGrant);
        match claimed {
            _ if granted => {
                if self.guest.run == Run::Paused {
                    self.guest.run = Run::Running;
                    self.guest_at = env.now;
                }
                self.guest.stop_tracking();
                self.gate.open(&mut env.oracle);
                self.guard_at = None;
                let again = !env.faulty || env.rng.percent(env.scenario.restart_percent);
                self.start_at = again.then(|| env.now.after(env.rng.up_to_us(5000)));
            }
            Err(ClaimError::Refused { .. }) => {
                self.destroy_guest();
                self.guard_at = None;
            }
            _ => self.guard_at = Some(env.now.after(env.rng.up_to_us(2000))),
        }
        Progress::Some
    }

    pub fn destroy_guest(&mut self) {
        if self.guest.run != Run::Ended {
            self.guest.run = Run::Gone;
        }
    }

    /// Starts the process, if it is time and there is a guest.
    fn start(&mut self, env: &mut Env) -> Progress {
        if self.start_at.is_none_or(|at| at > env.now) {
            return Progress::None;
        }
        self.start_at = None;
        if !matches!(self.guest.run, Run::Running) {
            return Progress::Some;
        }
        let at_once = Patience { attempts: 1, pause: Duration::ZERO };
        let arbiter = env.arbiter.at_once(env.now, &mut env.rng, &mut env.oracle);
        let claimed = claim_first(&arbiter, GUEST, PRIMARY, at_once);
        match claimed {
            Ok(record) => {
                env.trace(|| format!("primary: process starts, {}", record.describe()));
                if self.gate.mode != Mode::Open {
                    self.gate.open(&mut env.oracle);
                }
                self.process = Some(PrimaryProcess::new(record, env));
            }
            Err(error) => {
                env.trace(|| format!("primary: cannot start: {error}"));
                self.start_at = Some(env.now.after(env.rng.up_to_us(2000)));
            }
        }
        Progress::Some
    }

    /// Whether the guest runs here and the world hears it.
    pub fn speaks(&self) -> bool {
        self.alive && self.guest.run == Run::Running && self.gate.mode == Mode::Open
    }

    pub fn is_quiet(&self) -> bool {
        self.process.is_none() && self.guard_at.is_none() && self.start_at.is_none()
    }
}

/// The host's name in crash points.
pub const HERE: Host = Host::Primary;
