//! One run: both hosts and the network under one clock, faults, deeds, and the verdict.

use std::time::Duration;

use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::nonce::pairing;
use romulus_checkpoint::primary::PrimaryState;
use romulus_checkpoint::wire::message::ByeReason;
use romulus_checkpoint::{Identity, Time};
use romulus_transport::sim::{Side, Step};
use romulus_transport::{CloseReason, Fabric};

use super::backup_host::BackupHost;
use super::env::{Env, Progress, backup_address};
use super::gate::Mode;
use super::guest::Run;
use super::oracle::Stats;
use super::primary_host::PrimaryHost;
use super::primary_process::Exit;
use super::scenario::{Deed, Faults, Host, Plan};

/// Steps after the faults within which everything must be well.
const PATIENCE_STEPS: u64 = 60_000;
/// Epochs that must commit after the faults.
const EPOCHS_AFTER: u64 = 3;

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub stats: Stats,
    pub violation: Option<String>,
    pub trace: Vec<String>,
    /// Crash points passed by primary and backup.
    pub points: [u64; 2],
    /// The end, in a word.
    pub ending: &'static str,
}

pub struct World {
    env: Env,
    primary: PrimaryHost,
    backup: BackupHost,
    thaw_at: Option<Time>,
    connect_at: Option<Time>,
    arbiter_up_at: Option<Time>,
    stopped: bool,
    deed_done: bool,
    commits_at_heal: u64,
    released_at_heal: u64,
}

impl World {
    pub fn run(plan: Plan) -> Outcome {
        let mut env = Env::new(plan);
        let (primary, backup) = (PrimaryHost::new(&mut env), BackupHost::new(&mut env));
        let scenario = env.scenario.clone();
        env.trace(|| format!("{scenario:?}"));
        let mut world = World {
            env,
            primary,
            backup,
            thaw_at: None,
            connect_at: None,
            arbiter_up_at: None,
            stopped: false,
            deed_done: false,
            commits_at_heal: 0,
            released_at_heal: 0,
        };
        let ending = world.run_to_the_end();
        let trace = world.env.take_trace();
        Outcome {
            points: [world.env.points(Host::Primary), world.env.points(Host::Backup)],
            stats: world.env.oracle.stats,
            violation: world.env.oracle.violation,
            trace,
            ending,
        }
    }

    fn run_to_the_end(&mut self) -> &'static str {
        let fault_steps = self.env.scenario.fault_steps;
        let mut ending = None;
        while !self.env.oracle.failed() && ending.is_none() {
            let step = self.env.oracle.stats.steps;
            if step == fault_steps {
                self.heal();
            }
            if step < fault_steps {
                self.maybe_fault();
            }
            if step > fault_steps && !self.primary.alive && !self.env.scenario.takeover_automatic {
                self.operator_takes_over();
            }
            if !self.deed_done && step >= self.env.scenario.deed_at {
                self.try_deed();
            }
            self.step();
            self.check_guests();
            if step > fault_steps && step.is_multiple_of(64) {
                ending = self.well();
                if ending.is_none() && step > fault_steps + PATIENCE_STEPS {
                    let text = self.describe();
                    self.env.oracle.violate("liveness", text);
                }
            }
        }
        ending.unwrap_or("violation")
    }

    /// Lets one actor do one thing; when none can, time goes on to the next thing due.
    fn step(&mut self) {
        self.env.oracle.stats.steps += 1;
        self.env.now = self.env.now.after(self.env.rng.up_to_us(4));
        self.env.arbiter.tick(self.env.now, &mut self.env.oracle);
        let first = self.env.rng.below(6);
        for turn in 0..6 {
            let progress = match (first + turn) % 6 {
                0 | 1 => self.step_network(),
                2 => self.primary.step_guest(&mut self.env),
                3 => self.primary.step_process(&mut self.env),
                4 => self.primary.step_guard(&mut self.env),
                _ => self.backup.step(&mut self.env),
            };
            if progress == Progress::Some {
                return;
            }
        }
        let arbiter = [self.arbiter_up_at, self.env.arbiter.next_due()].into_iter().flatten().min();
        let due = [self.primary.next_due(), self.backup.next_due(), self.thaw_at, arbiter];
        let next = due.into_iter().flatten().min().unwrap_or(self.env.now.after(Duration::from_millis(1)));
        self.env.now = self.env.now.after(Duration::from_micros(1)).max(next);
    }

    fn step_network(&mut self) -> Progress {
        match self.env.network.step() {
            Step::Idle => return Progress::None,
            Step::Placed { offset, len_bytes, .. } => {
                if let Some(process) = &self.backup.process {
                    process.check_placed(offset, len_bytes, &mut self.env);
                }
            }
            _ => {}
        }
        Progress::Some
    }

    /// I9 at every instant.
    fn check_guests(&mut self) {
        if self.backup.survivor && self.primary.speaks() {
            self.env.oracle.violate("I9", "two guests run and speak".into());
        }
    }

    fn maybe_fault(&mut self) {
        self.end_outages();
        let Some(faults) = self.env.faults().cloned() else { return };
        let env = &mut self.env;
        if env.rng.per_million(faults.crash_primary) {
            self.primary.crash(env);
        }
        if env.rng.per_million(faults.crash_backup) {
            self.backup.crash(env);
        }
        if env.rng.per_million(faults.hang_primary) {
            env.trace(|| "the primary's process hangs".into());
            self.primary.hangs_until = env.now.after(env.rng.up_to_us(40_000));
        }
        if env.rng.per_million(faults.hang_backup) {
            env.trace(|| "the backup's process hangs".into());
            self.backup.hangs_until = env.now.after(env.rng.up_to_us(40_000));
        }
        if env.rng.per_million(faults.arbiter_outage) {
            env.trace(|| "the arbiter is away".into());
            env.arbiter.up = false;
            self.arbiter_up_at = Some(env.now.after(env.rng.up_to_us(30_000)));
        }
        if env.rng.per_million(faults.refuse_connections) {
            env.network.refuse_connections(true);
            self.connect_at = Some(env.now.after(env.rng.up_to_us(20_000)));
        }
        if env.rng.per_million(faults.garbage) {
            self.send_garbage();
        }
        self.network_faults(&faults);
    }

    fn network_faults(&mut self, faults: &Faults) {
        let env = &mut self.env;
        let connections = env.network.connections();
        let Some(last) = connections.last().copied() else { return };
        if env.rng.per_million(faults.cut) {
            env.trace(|| format!("{last:?} is cut"));
            env.network.cut(last);
        }
        let side = if env.rng.percent(50) { Side::Initiator } else { Side::Responder };
        if env.rng.per_million(faults.freeze_network) {
            env.trace(|| format!("{last:?} is frozen from {side:?}"));
            env.network.freeze(last, side);
            self.thaw_at = Some(env.now.after(env.rng.up_to_us(30_000)));
        }
        if env.rng.per_million(faults.silence) {
            env.trace(|| format!("{last:?} falls silent from {side:?}"));
            env.network.freeze(last, side);
            for side in [Side::Initiator, Side::Responder] {
                env.network.notice(last, side, CloseReason::Silent(Duration::from_millis(5)));
            }
        }
    }

    /// A stranger says something to the backup.
    fn send_garbage(&mut self) {
        if let Ok(mut channel) = self.env.fabric.connect(backup_address(), Duration::ZERO) {
            let bytes: Vec<u8> = (0..self.env.rng.below(200)).map(|_| self.env.rng.next() as u8).collect();
            let _ = channel.send(&bytes);
        }
    }

    fn end_outages(&mut self) {
        let env = &mut self.env;
        if self.arbiter_up_at.take_if(|at| *at <= env.now).is_some() {
            env.trace(|| "the arbiter is back".into());
            env.arbiter.up = true;
        }
        if self.thaw_at.take_if(|at| *at <= env.now).is_some() {
            env.trace(|| "the network thaws".into());
            thaw(env);
        }
        if self.connect_at.take_if(|at| *at <= env.now).is_some() {
            env.network.refuse_connections(false);
        }
    }

    /// The end of all faults.
    fn heal(&mut self) {
        let env = &mut self.env;
        env.trace(|| "all faults end".into());
        self.primary.guest.calm_down();
        env.faulty = false;
        env.arbiter.up = true;
        env.arbiter.unknown_percent = 0;
        env.network.refuse_connections(false);
        // A host that is dead stays silent; its peer finds out by itself.
        if self.primary.alive && self.backup.alive {
            thaw(env);
        }
        (self.primary.hangs_until, self.backup.hangs_until) = (env.now, env.now);
        (self.thaw_at, self.arbiter_up_at, self.connect_at) = (None, None, None);
        self.commits_at_heal = env.oracle.stats.commits;
        self.released_at_heal = env.oracle.stats.released;
    }

    /// What people do, once it is possible.
    fn try_deed(&mut self) {
        let deed = self.env.scenario.deed;
        let env = &mut self.env;
        self.deed_done = match deed {
            Deed::Nothing => true,
            Deed::Failover => match &mut self.primary.process {
                Some(process) => process.request_failover(env).is_ok(),
                None => false,
            },
            Deed::Takeover => match &mut self.backup.process {
                // Where nobody arbitrates the operator must know that the primary is dead.
                Some(process) if env.scenario.shared_arbiter || !self.primary.alive => {
                    process.request_takeover(false).is_ok()
                }
                Some(_) => true,
                None => false,
            },
            Deed::Stop => {
                // Where nobody arbitrates an operator must know that the backup is not at work.
                let knows = env.scenario.shared_arbiter || env.scenario.solo_automatic;
                let process = self.primary.process.as_mut();
                process.filter(|process| knows || process.is_connected()).is_some_and(|process| {
                    process.request_stop(env);
                    self.stopped = true;
                    true
                })
            }
            Deed::StopBackup => self.backup.process.as_mut().is_some_and(|process| {
                process.request_stop(env);
                true
            }),
            Deed::GuestPowersOff | Deed::GuestDies if self.primary.guest.run != Run::Running => true,
            Deed::GuestPowersOff => {
                self.primary.guest.run = Run::Ended;
                if let Some(process) = &mut self.primary.process {
                    process.guest_gone(ByeReason::GuestEnded, env);
                }
                true
            }
            Deed::GuestDies => {
                self.primary.guest.run = Run::Gone;
                if let Some(process) = &mut self.primary.process {
                    process.guest_gone(ByeReason::GuestDied, env);
                }
                true
            }
            Deed::PrimaryHostDies => {
                for connection in env.network.connections() {
                    env.network.freeze(connection, Side::Initiator);
                }
                self.primary.die(env);
                true
            }
            Deed::BackupHostDies => {
                for connection in env.network.connections() {
                    env.network.freeze(connection, Side::Responder);
                }
                self.backup.die(env);
                true
            }
        };
        if self.deed_done && deed != Deed::Nothing {
            self.env.trace(|| format!("deed: {deed:?}"));
        }
    }

    /// The primary's host is dead, and the backup waits to be told.
    fn operator_takes_over(&mut self) {
        let protected = self.was_protected();
        if let Some(process) = self.backup.process.as_mut().filter(|_| protected) {
            let _ = process.request_takeover(true);
        }
    }

    /// Whether all is well, and in which way.
    fn well(&mut self) -> Option<&'static str> {
        let guest = self.primary.guest.run;
        let here = matches!(guest, Run::Running | Run::Paused);
        if self.backup.survivor {
            self.check_handover();
            // Where nobody arbitrates a primary cannot learn that it has lost: it holds its output.
            let silent = !self.env.scenario.shared_arbiter && self.primary.gate.mode == Mode::Holding;
            if silent {
                return Some("taken over, the primary holds");
            }
            return (!here && self.primary.process.is_none()).then_some("taken over");
        }
        if here {
            return self.well_here();
        }
        // Nobody runs it: an end, or more was lost than one host.
        let process = self.primary.process.as_ref().map(|process| process.machine.state());
        // With its guest dead a primary waits for a takeover that may never come.
        let waits = process == Some(PrimaryState::TakingOver) && guest == Run::Gone;
        let quiet = (self.primary.is_quiet() || waits) && self.backup_is_quiet();
        let excused =
            guest == Run::Ended || self.backup.failed_takeover || !self.backup.alive || !self.was_protected();
        (quiet && excused).then_some(if guest == Run::Ended { "ended" } else { "lost" })
    }

    /// A planned failover without faults loses nothing.
    fn check_handover(&mut self) {
        let smooth =
            self.env.scenario.deed == Deed::Failover && self.env.scenario.faults == Faults::default();
        let (sent, known) = (self.primary.guest.sent, self.env.oracle.survivor_sent);
        if smooth && known != Some(sent) {
            let text = format!("the guest had sent {sent} packets when it was moved, the survivor {known:?}");
            self.env.oracle.violate("handover", text);
        }
    }

    /// Whether the record names the image that the backup holds.
    fn was_protected(&self) -> bool {
        let (Some(record), Some(committed)) = (&self.env.oracle.record, &self.env.oracle.committed) else {
            return false;
        };
        let Identity { session, incarnation, .. } = committed.identity;
        let protected = matches!(record.ownership, Ownership::Protected { .. });
        protected && record.nonce == pairing(session, incarnation)
    }

    /// Whether the backup has an image, and has not tried in vain to make a guest of it.
    fn backup_stands_by(&self) -> bool {
        self.was_protected() && self.backup.will_serve() && !self.backup.failed_takeover
    }

    fn backup_is_quiet(&self) -> bool {
        self.backup.process.as_ref().is_none_or(|process| {
            let state = process.machine.state();
            // A backup whose image the record does not name looks at it now and then.
            state == BackupState::Solo || state != BackupState::TakingOver && process.is_idle()
        })
    }

    fn well_here(&self) -> Option<&'static str> {
        let stats = &self.env.oracle.stats;
        let released = stats.released > self.released_at_heal + 3;
        let Some(process) = &self.primary.process else {
            let over = self.primary.is_quiet() && self.primary.speaks() && released;
            let stopped = self.primary.exit == Some(Exit::Ended);
            return over.then_some(if stopped { "stopped" } else { "alone without protection" });
        };
        let backup = self.backup.process.as_ref().map(|process| process.machine.state());
        let waits = !self.env.scenario.solo_automatic;
        match process.machine.state() {
            PrimaryState::Protected if backup == Some(BackupState::Protected) => {
                let commits = stats.commits >= self.commits_at_heal + EPOCHS_AFTER;
                (commits && released).then_some("protected")
            }
            _ if !self.backup.will_serve() && self.primary.speaks() && released => Some("alone"),
            // Its image is gone, and nobody but the operator may say that the guest goes on alone.
            PrimaryState::Protected if waits && !self.backup_stands_by() => Some("waiting for an operator"),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        let primary = self.primary.process.as_ref().map(|process| process.machine.state());
        let backup = self.backup.process.as_ref().map(|process| process.machine.state());
        format!(
            "not well long after the last fault: primary {primary:?}, guest {:?}, gate {:?}, backup {backup:?}, \
             survivor {}, record {:?}, exit {:?}, stopped {}",
            self.primary.guest.run,
            self.primary.gate.mode,
            self.backup.survivor,
            self.env.oracle.record,
            self.primary.exit,
            self.stopped,
        )
    }
}

fn thaw(env: &mut Env) {
    for connection in env.network.connections() {
        for side in [Side::Initiator, Side::Responder] {
            env.network.thaw(connection, side);
        }
    }
}
