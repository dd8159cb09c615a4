//! The backup's host: the process that stands ready, and the guest once it runs here.

use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::{Epoch, Time};

use super::backup_process::BackupProcess;
use super::env::{Env, Progress};
use super::scenario::Host;

#[derive(Debug)]
pub struct BackupHost {
    pub process: Option<BackupProcess>,
    pub alive: bool,
    /// The guest runs here.
    pub survivor: bool,
    /// A takeover began here and came to nothing.
    pub failed_takeover: bool,
    start_at: Option<Time>,
    pub hangs_until: Time,
}

impl BackupHost {
    pub fn new(env: &mut Env) -> Self {
        Self {
            process: None,
            alive: true,
            survivor: false,
            failed_takeover: false,
            start_at: Some(env.now),
            hangs_until: env.now,
        }
    }

    pub fn next_due(&self) -> Option<Time> {
        let process = self.process.as_ref().and_then(|process| process.next_due());
        [process.map(|due| due.max(self.hangs_until)), self.start_at].into_iter().flatten().min()
    }

    pub fn step(&mut self, env: &mut Env) -> Progress {
        if env.now < self.hangs_until {
            return Progress::None;
        }
        let Some(process) = &mut self.process else { return self.start(env) };
        let stepped = process.step(env);
        self.survivor |= process.activated;
        self.failed_takeover |= process.activation_failed;
        if process.machine.committed() == Epoch(0) {
            env.oracle.image_gone();
        }
        match stepped {
            Ok(progress) => {
                let over = matches!(process.machine.state(), BackupState::Active | BackupState::Ended);
                if over && process.is_idle() && progress == Progress::None {
                    env.trace(|| "backup: process ends".into());
                    if let Some(process) = self.process.take() {
                        process.die(env);
                    }
                    if !self.survivor {
                        env.oracle.image_gone();
                    }
                }
                progress
            }
            Err(_) => {
                self.crash(env);
                Progress::Some
            }
        }
    }

    fn start(&mut self, env: &mut Env) -> Progress {
        if self.start_at.is_none_or(|at| at > env.now) || !self.alive || self.survivor {
            return Progress::None;
        }
        self.start_at = None;
        env.trace(|| "backup: process starts".into());
        self.process = BackupProcess::new(env);
        Progress::Some
    }

    /// The process is killed; its memory goes with it.
    pub fn crash(&mut self, env: &mut Env) {
        let Some(process) = self.process.take() else { return };
        let points = env.points(Host::Backup);
        env.trace(|| format!("backup: process crashes at point {points}"));
        env.oracle.stats.crashes += 1;
        self.failed_takeover |= process.machine.state() == BackupState::TakingOver;
        process.die(env);
        env.oracle.image_gone();
        let again = !env.faulty || env.rng.percent(env.scenario.restart_percent);
        self.start_at = again.then(|| env.now.after(env.rng.up_to_us(5000)));
    }

    /// The whole host dies, and with it what runs there.
    pub fn die(&mut self, env: &mut Env) {
        self.crash(env);
        env.trace(|| "backup: host dies".into());
        self.alive = false;
        self.start_at = None;
    }

    /// Whether a process is there or will be.
    pub fn will_serve(&self) -> bool {
        self.alive && (self.process.is_some() || self.start_at.is_some())
    }
}
