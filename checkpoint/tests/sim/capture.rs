//! What the capture thread does: rounds of a synchronization, and checkpoints step by step.

use romulus_checkpoint::extent::{Extent, Transfer};
use romulus_checkpoint::primary::{NotTaken, Work};
use romulus_checkpoint::{FrameIndex, PageIndex, Time};

use super::env::{Env, Progress, Step};
use super::guest::{Run, extents};
use super::primary_host::PrimaryHost;
use super::primary_process::PrimaryProcess;
use super::scenario::Mutant;
use super::sender::{Job, Kind};

#[derive(Debug, Default)]
pub struct Capture {
    stage: Stage,
    /// Something happened since the machine was asked last.
    look: bool,
    until: Option<Time>,
    stale_state: Vec<u8>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// Copying a round's pages; the guest runs.
    Round {
        job: Job,
        pages: Vec<u64>,
        dirty: Vec<Extent>,
    },
    /// With copy-only homes: copying a part of a round; the guest runs.
    Part {
        job: Job,
        pages: Vec<(u64, u64)>,
    },
    /// The sender has the round.
    RoundAway {
        round: u64,
        dirty: Vec<Extent>,
    },
    Save {
        last: bool,
    },
    Collect {
        last: bool,
        state: Vec<u8>,
        early: Option<Vec<Extent>>,
    },
    Place {
        last: bool,
        state: Vec<u8>,
        dirty: Vec<Extent>,
    },
    /// No room yet: the guest stays paused.
    Full {
        last: bool,
        state: Vec<u8>,
        until: Time,
    },
    Copy {
        last: bool,
        job: Job,
        pages: Vec<(u64, u64)>,
    },
    Resume {
        job: Option<Job>,
    },
}

impl Capture {
    pub fn look_again(&mut self) {
        self.look = true;
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    pub fn wake_at(&self) -> Option<Time> {
        match self.stage {
            Stage::Idle => self.until,
            Stage::Full { until, .. } => Some(until),
            _ => None,
        }
    }
}

impl PrimaryProcess {
    pub fn step_capture(&mut self, host: &mut PrimaryHost, env: &mut Env) -> Step {
        match std::mem::take(&mut self.capture.stage) {
            Stage::Idle => self.ask_for_work(host, env),
            Stage::Round { job, pages, dirty } => self.copy_round(job, pages, dirty, host, env),
            Stage::Part { job, pages } => self.copy_part(job, pages, host, env),
            Stage::RoundAway { round, dirty } => self.await_round(round, dirty, env),
            Stage::Save { last } => self.save(last, host, env),
            Stage::Collect { last, state, early } => self.collect(last, state, early, host, env),
            Stage::Place { last, state, dirty } => self.place(last, state, dirty, host, env),
            Stage::Full { last, state, until } if env.now < until && !self.capture.look => {
                self.capture.stage = Stage::Full { last, state, until };
                Ok(Progress::None)
            }
            Stage::Full { last, state, .. } => {
                self.capture.look = false;
                self.place(last, state, Vec::new(), host, env)
            }
            Stage::Copy { last, job, pages } => self.copy(last, job, pages, host, env),
            Stage::Resume { job } => self.resume(job, host, env),
        }
    }

    fn ask_for_work(&mut self, host: &mut PrimaryHost, env: &mut Env) -> Step {
        let due = self.capture.until.is_some_and(|until| until <= env.now);
        if !due && !self.capture.look {
            return Ok(Progress::None);
        }
        self.capture.look = false;
        self.capture.until = None;
        match self.machine.next_work(env.now) {
            Work::Wait { until } => {
                if until.is_some_and(|until| until <= env.now) {
                    env.oracle.violate("timer", "the capture thread is to wait until the past".into());
                }
                self.capture.until = until;
                return Ok(Progress::None);
            }
            Work::Round { round, everything } => self.begin_round(round, everything, host, env)?,
            Work::Part => self.begin_part(env),
            Work::Checkpoint { last } => {
                env.trace(|| format!("primary: checkpoint, last: {last}"));
                if host.guest.run != Run::Running || env.operation_fails() {
                    // The pause failed: asked again later.
                    self.machine.capture_failed(&[]);
                    self.capture.until = Some(env.now.after(env.scenario.interval));
                    return Ok(Progress::Some);
                }
                host.guest.run = Run::Paused;
                let mark = self.machine.paused(env.now);
                host.gate.mark(mark, &mut env.oracle);
                if env.mutant(Mutant::ReleaseEarly) {
                    host.gate.leak(&mut env.oracle);
                }
                self.capture.stage = Stage::Save { last };
            }
        }
        self.point(env)?;
        Ok(Progress::Some)
    }

    fn begin_round(
        &mut self,
        round: u64,
        everything: bool,
        host: &mut PrimaryHost,
        env: &mut Env,
    ) -> Result<(), super::env::Crashed> {
        env.trace(|| format!("primary: round {round}, everything: {everything}"));
        if env.operation_fails() {
            self.machine.round_failed(round, &[]);
            self.capture.until = Some(env.now.after(env.scenario.interval));
            return Ok(());
        }
        if everything {
            host.guest.start_tracking();
        }
        let mut dirty = host.guest.collect();
        if everything {
            dirty = extents(0..host.guest.versions.len() as u64);
        }
        if env.scenario.shape.copy_only_homes {
            self.machine.round_listed(round, &dirty, env.now, &mut self.actions);
            self.capture.look = true;
            self.called(env)?;
            return Ok(());
        }
        let job = Job::new(Kind::Round { round }, self.machine.identity().connection);
        let mut pages = pages_of(&dirty);
        pages.reverse();
        self.capture.stage = Stage::Round { job, pages, dirty };
        Ok(())
    }

    fn begin_part(&mut self, env: &mut Env) {
        self.capture.look = true;
        let mut transfers = Vec::new();
        let most = env.rng.between(1, 4);
        let placed = self.machine.place_part(most, env.now, &mut transfers, &mut self.actions);
        self.queue.extend(self.actions.drain(..));
        let Some(placed) = placed else { return };
        env.trace(|| format!("primary: a part is placed as {placed:?} {transfers:?}"));
        let mut job = Job::new(Kind::Epoch { placed }, placed.identity.connection);
        if !self.sender.stage_slot(&placed, &transfers, &[], &env.scenario.shape, &mut job) {
            env.oracle.violate("test", "no staging for a slot".into());
        }
        let pages = singles(&transfers).map(|one| (one.first_page.0, one.first_frame.0)).collect();
        self.capture.stage = Stage::Part { job, pages };
    }

    fn copy_part(
        &mut self,
        mut job: Job,
        mut pages: Vec<(u64, u64)>,
        host: &mut PrimaryHost,
        env: &mut Env,
    ) -> Step {
        let Some((page, frame)) = pages.pop() else {
            self.sender.jobs.push_back(job);
            self.capture.look = true;
            return Ok(Progress::Some);
        };
        let target = env.scenario.shape.frame_offset_bytes(FrameIndex(frame));
        let copied = self.sender.stage(&host.guest.memory, page, target, &mut job);
        if !copied {
            pages.push((page, frame));
        }
        self.capture.stage = Stage::Part { job, pages };
        Ok(if copied { Progress::Some } else { Progress::None })
    }

    fn copy_round(
        &mut self,
        mut job: Job,
        mut pages: Vec<u64>,
        dirty: Vec<Extent>,
        host: &mut PrimaryHost,
        env: &mut Env,
    ) -> Step {
        let Some(page) = pages.pop() else {
            let Kind::Round { round } = job.kind else { unreachable!("a round's job") };
            self.sender.jobs.push_back(job);
            self.capture.stage = Stage::RoundAway { round, dirty };
            return Ok(Progress::Some);
        };
        let target = env.scenario.shape.frame_offset_bytes(env.scenario.shape.home(PageIndex(page)));
        let copied = self.sender.stage(&host.guest.memory, page, target, &mut job);
        if !copied {
            pages.push(page);
        }
        self.capture.stage = Stage::Round { job, pages, dirty };
        Ok(if copied { Progress::Some } else { Progress::None })
    }

    fn await_round(&mut self, round: u64, dirty: Vec<Extent>, env: &mut Env) -> Step {
        match self.sender.round_done.take() {
            None => {
                self.capture.stage = Stage::RoundAway { round, dirty };
                Ok(Progress::None)
            }
            Some(posted) => {
                if !posted {
                    self.machine.round_failed(round, &dirty);
                }
                self.called(env)
            }
        }
    }

    fn save(&mut self, last: bool, host: &mut PrimaryHost, env: &mut Env) -> Step {
        let early = env.mutant(Mutant::CollectBeforeState).then(|| host.guest.collect());
        let state = host.guest.save_state(&mut env.rng);
        let failed = env.operation_fails() && early.is_none();
        if failed {
            self.machine.capture_failed(&[]);
        }
        self.capture.stage =
            if failed { Stage::Resume { job: None } } else { Stage::Collect { last, state, early } };
        self.point(env)?;
        Ok(Progress::Some)
    }

    fn collect(
        &mut self,
        last: bool,
        state: Vec<u8>,
        early: Option<Vec<Extent>>,
        host: &mut PrimaryHost,
        env: &mut Env,
    ) -> Step {
        self.capture.stage = Stage::Resume { job: None };
        if env.operation_fails() {
            self.machine.capture_failed(&[]);
            return self.called(env);
        }
        let mut dirty = early.unwrap_or_else(|| host.guest.collect());
        if env.mutant(Mutant::LoseDirtyPage) && env.rng.percent(2) {
            dirty.pop();
        }
        if env.operation_fails() {
            self.machine.capture_failed(&dirty);
            return self.called(env);
        }
        self.capture.stage = Stage::Place { last, state, dirty };
        self.point(env)?;
        Ok(Progress::Some)
    }

    fn place(
        &mut self,
        last: bool,
        mut state: Vec<u8>,
        dirty: Vec<Extent>,
        host: &mut PrimaryHost,
        env: &mut Env,
    ) -> Step {
        let mut transfers = Vec::new();
        let placed = self.machine.place(&dirty, env.now, &mut transfers, &mut self.actions);
        env.trace(|| format!("primary: {dirty:?} placed as {placed:?} {transfers:?}"));
        if let Err(NotTaken::Full { until }) = placed {
            env.oracle.stats.throttled += 1;
            if until <= env.now {
                env.oracle.violate("timer", "the guest is to stay paused until the past".into());
            }
            self.capture.stage = Stage::Full { last, state, until };
            return self.called(env);
        }
        let snapshot = host.guest.snapshot(&state);
        let stale = std::mem::replace(&mut self.capture.stale_state, state.clone());
        if env.mutant(Mutant::StaleState) && env.rng.percent(10) && !stale.is_empty() {
            state = stale;
        }
        self.capture.stage = match placed {
            Err(_) => {
                env.oracle.stats.stalls += 1;
                Stage::Resume { job: None }
            }
            Ok(placed) => {
                env.oracle.placed(&placed.identity, placed.epoch, snapshot);
                if env.mutant(Mutant::DropCarriedPages) {
                    let fresh = pages_of(&dirty);
                    transfers = singles(&transfers).filter(|one| fresh.contains(&one.first_page.0)).collect();
                }
                let mut job = Job::new(Kind::Epoch { placed }, placed.identity.connection);
                if !self.sender.stage_slot(&placed, &transfers, &state, &env.scenario.shape, &mut job) {
                    env.oracle.violate("test", "no staging for a slot".into());
                }
                let shift = u64::from(env.mutant(Mutant::WrongFrame) && env.rng.percent(2));
                let shape = &env.scenario.shape;
                let (first, lent) = (shape.first_lent_frame().0, shape.frames() - shape.first_lent_frame().0);
                let frame = |one: &Transfer| first + (one.first_frame.0 - first + shift) % lent;
                let pages = singles(&transfers).map(|one| (one.first_page.0, frame(&one))).collect();
                Stage::Copy { last, job, pages }
            }
        };
        self.called(env)
    }

    fn copy(
        &mut self,
        last: bool,
        mut job: Job,
        mut pages: Vec<(u64, u64)>,
        host: &mut PrimaryHost,
        env: &mut Env,
    ) -> Step {
        if let Some((page, frame)) = pages.pop() {
            let target = env.scenario.shape.frame_offset_bytes(FrameIndex(frame));
            let copied = self.sender.stage(&host.guest.memory, page, target, &mut job);
            if !copied {
                pages.push((page, frame));
            }
            self.capture.stage = Stage::Copy { last, job, pages };
            return Ok(if copied { Progress::Some } else { Progress::None });
        }
        if last {
            self.sender.jobs.push_back(job);
        } else {
            self.capture.stage = Stage::Resume { job: Some(job) };
        }
        self.point(env)?;
        Ok(Progress::Some)
    }

    fn resume(&mut self, job: Option<Job>, host: &mut PrimaryHost, env: &mut Env) -> Step {
        if env.operation_fails() {
            // It stays paused and is tried again.
            self.capture.stage = Stage::Resume { job };
            return Ok(Progress::Some);
        }
        if host.guest.run == Run::Paused {
            host.guest.run = Run::Running;
        }
        self.point(env)?;
        self.sender.jobs.extend(job);
        self.capture.look = true;
        Ok(Progress::Some)
    }
}

/// The transfers, a page each.
fn singles(transfers: &[Transfer]) -> impl Iterator<Item = Transfer> {
    transfers.iter().flat_map(|transfer| {
        (0..transfer.pages).map(|index| Transfer {
            first_page: PageIndex(transfer.first_page.0 + index),
            first_frame: FrameIndex(transfer.first_frame.0 + index),
            pages: 1,
        })
    })
}

fn pages_of(dirty: &[Extent]) -> Vec<u64> {
    dirty.iter().flat_map(|extent| extent.first.0..extent.first.0 + extent.pages).collect()
}
