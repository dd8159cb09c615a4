//! The arbiter as the hosts see it: slow, sometimes away, sometimes not saying how a swap ended.

use std::sync::Mutex;

use romulus_checkpoint::Time;
use romulus_checkpoint::arbiter::{Arbiter, ArbiterError, Record, SwapOutcome};

use super::oracle::Oracle;
use super::rng::Rng;
use super::scenario::{Host, Scenario};

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    kind: Kind,
    host: Host,
    /// When it takes effect.
    effect_at: Time,
    /// When its outcome is told.
    told_at: Time,
    /// Its outcome will be told as unknown.
    unknown: bool,
    /// Present once it took effect.
    outcome: Option<Answer>,
}

impl Request {
    /// When something happens to it next.
    pub fn due(&self) -> Time {
        if self.outcome.is_none() { self.effect_at } else { self.told_at }
    }
}

#[derive(Debug)]
pub enum Kind {
    Read,
    Swap { expected: Option<Record>, new: Record },
}

/// What comes back.
#[derive(Clone, Debug)]
pub enum Answer {
    Record(Result<Option<Record>, String>),
    Swap(Record, SwapOutcome),
}

#[derive(Debug)]
pub struct ArbiterModel {
    /// One record, or (when nobody arbitrates) each host's own.
    records: [Option<Record>; 2],
    shared: bool,
    pub up: bool,
    pub delay_us: u64,
    pub unknown_percent: u64,
    unknown_is_won: bool,
    /// Swaps whose outcome was told as unknown and that happen later, if they still can.
    late: Vec<(Time, Option<Record>, Record)>,
}

impl ArbiterModel {
    pub fn new(scenario: &Scenario, unknown_is_won: bool) -> Self {
        Self {
            records: [None, None],
            shared: scenario.shared_arbiter,
            up: true,
            delay_us: scenario.arbiter_delay_us,
            unknown_percent: scenario.faults.arbiter_unknown_percent,
            unknown_is_won,
            late: Vec::new(),
        }
    }

    /// The record as a host sees it.
    pub fn record(&self, host: Host) -> Option<&Record> {
        self.records[self.place(host)].as_ref()
    }

    fn place(&self, host: Host) -> usize {
        if self.shared { 0 } else { host as usize }
    }

    /// Puts a request on its way.
    pub fn ask(&self, host: Host, kind: Kind, now: Time, rng: &mut Rng) -> Request {
        let effect_at = now.after(rng.up_to_us(self.delay_us));
        let told_at = effect_at.after(rng.up_to_us(self.delay_us));
        let unknown = rng.percent(self.unknown_percent);
        Request { kind, host, effect_at, told_at, unknown, outcome: None }
    }

    /// What was on its way happens.
    pub fn tick(&mut self, now: Time, oracle: &mut Oracle) {
        while let Some(at) = self.late.iter().position(|(due, ..)| *due <= now) {
            let (_, expected, new) = self.late.swap_remove(at);
            self.compare_and_swap(Host::Primary, expected.as_ref(), &new, oracle);
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn next_due(&self) -> Option<Time> {
        self.late.iter().map(|(due, ..)| *due).min()
    }

    /// Lets the request go on; returns its answer when it is told.
    pub fn go_on(
        &mut self,
        request: &mut Request,
        now: Time,
        rng: &mut Rng,
        oracle: &mut Oracle,
    ) -> Option<Answer> {
        if request.outcome.is_none() && request.effect_at <= now {
            request.outcome = Some(self.take_effect(request, rng, oracle));
        }
        if request.told_at <= now { request.outcome.take() } else { None }
    }

    /// The asking process died: what it asked may still happen, or not.
    pub fn abandoned(&mut self, mut request: Request, rng: &mut Rng, oracle: &mut Oracle) {
        if request.outcome.is_none() && rng.percent(50) {
            request.unknown = false;
            self.take_effect(&request, rng, oracle);
        }
    }

    fn take_effect(&mut self, request: &Request, rng: &mut Rng, oracle: &mut Oracle) -> Answer {
        match &request.kind {
            Kind::Read if self.up => Answer::Record(Ok(self.record(request.host).cloned())),
            Kind::Read => Answer::Record(Err("the arbiter is down".into())),
            Kind::Swap { expected, new } => {
                let happens = self.up && (!request.unknown || rng.percent(50));
                let truth =
                    happens.then(|| self.compare_and_swap(request.host, expected.as_ref(), new, oracle));
                if self.up && !happens && rng.percent(50) {
                    let due = request.told_at.after(rng.up_to_us(8000));
                    self.late.push((due, expected.clone(), new.clone()));
                }
                let outcome = match truth {
                    Some(outcome) if !request.unknown => outcome,
                    _ if self.unknown_is_won => SwapOutcome::Won,
                    _ => SwapOutcome::Unknown("no answer".into()),
                };
                Answer::Swap(new.clone(), outcome)
            }
        }
    }

    fn compare_and_swap(
        &mut self,
        host: Host,
        expected: Option<&Record>,
        new: &Record,
        oracle: &mut Oracle,
    ) -> SwapOutcome {
        let place = self.place(host);
        let record = &mut self.records[place];
        if self.shared {
            if record.as_ref() == Some(new) {
                return SwapOutcome::Won;
            }
            if record.as_ref() != expected {
                return SwapOutcome::Lost(record.clone());
            }
        }
        *record = Some(new.clone());
        if place == 0 {
            oracle.record_swapped(expected, new, self.shared);
        }
        SwapOutcome::Won
    }

    /// For a caller that waits (the guard, a process at its start): at once.
    pub fn at_once<'a>(&'a mut self, now: Time, rng: &'a mut Rng, oracle: &'a mut Oracle) -> AtOnce<'a> {
        AtOnce(Mutex::new((self, rng, oracle)), now)
    }
}

/// The arbiter behind its trait as the primary's host sees it, without delay.
pub struct AtOnce<'a>(Mutex<(&'a mut ArbiterModel, &'a mut Rng, &'a mut Oracle)>, Time);

impl Arbiter for AtOnce<'_> {
    fn read(&self, _guest: &str) -> Result<Option<Record>, ArbiterError> {
        let inner = self.0.lock().unwrap();
        if inner.0.up { Ok(inner.0.record(Host::Primary).cloned()) } else { Err(ArbiterError("down".into())) }
    }

    fn swap(&self, _guest: &str, expected: Option<&Record>, new: &Record) -> SwapOutcome {
        let mut inner = self.0.lock().unwrap();
        let (model, rng, oracle) = &mut *inner;
        let kind = Kind::Swap { expected: expected.cloned(), new: new.clone() };
        let request = model.ask(Host::Primary, kind, self.1, rng);
        match model.take_effect(&request, rng, oracle) {
            Answer::Swap(_, outcome) => outcome,
            Answer::Record(_) => unreachable!("a swap was asked"),
        }
    }
}
