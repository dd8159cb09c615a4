//! The arbiter as the hosts see it: slow, sometimes away, sometimes not saying how a swap ended.

use romulus_checkpoint::Time;
use romulus_checkpoint::arbiter::{Arbiter, ArbiterError, Ownership, Record, SwapOutcome};

use super::oracle::Oracle;
use super::rng::Rng;
use super::scenario::Host;

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    pub kind: Kind,
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
    pub record: Option<Record>,
    pub up: bool,
    pub delay_us: u64,
    pub unknown_percent: u64,
    unknown_is_won: bool,
}

impl ArbiterModel {
    pub fn new(delay_us: u64, unknown_percent: u64, unknown_is_won: bool) -> Self {
        Self { record: None, up: true, delay_us, unknown_percent, unknown_is_won }
    }

    /// Puts a request on its way.
    pub fn ask(&self, kind: Kind, now: Time, rng: &mut Rng) -> Request {
        let effect_at = now.after(rng.up_to_us(self.delay_us));
        let told_at = effect_at.after(rng.up_to_us(self.delay_us));
        Request { kind, effect_at, told_at, unknown: rng.percent(self.unknown_percent), outcome: None }
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
            Kind::Read if self.up => Answer::Record(Ok(self.record.clone())),
            Kind::Read => Answer::Record(Err("the arbiter is down".into())),
            Kind::Swap { expected, new } => {
                let happens = self.up && (!request.unknown || rng.percent(50));
                let truth = happens.then(|| self.compare_and_swap(expected.as_ref(), new, oracle));
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
        expected: Option<&Record>,
        new: &Record,
        oracle: &mut Oracle,
    ) -> SwapOutcome {
        if self.record.as_ref() == Some(new) {
            return SwapOutcome::Won;
        }
        if self.record.as_ref() != expected {
            return SwapOutcome::Lost(self.record.clone());
        }
        oracle.record_swapped(expected, new);
        self.record = Some(new.clone());
        SwapOutcome::Won
    }

    /// For a caller that waits (the guard, a process at its start): at once.
    pub fn at_once<'a>(&'a mut self, rng: &'a mut Rng, oracle: &'a mut Oracle) -> AtOnce<'a> {
        AtOnce(std::sync::Mutex::new((self, rng, oracle)))
    }
}

/// The arbiter behind its trait, without delay.
pub struct AtOnce<'a>(std::sync::Mutex<(&'a mut ArbiterModel, &'a mut Rng, &'a mut Oracle)>);

impl Arbiter for AtOnce<'_> {
    fn read(&self, _guest: &str) -> Result<Option<Record>, ArbiterError> {
        let inner = self.0.lock().unwrap();
        if inner.0.up { Ok(inner.0.record.clone()) } else { Err(ArbiterError("down".into())) }
    }

    fn swap(&self, _guest: &str, expected: Option<&Record>, new: &Record) -> SwapOutcome {
        let mut inner = self.0.lock().unwrap();
        let (model, rng, oracle) = &mut *inner;
        let mut request = model.ask(Kind::Read, Time::default(), rng);
        request.kind = Kind::Swap { expected: expected.cloned(), new: new.clone() };
        match model.take_effect(&request, rng, oracle) {
            Answer::Swap(_, outcome) => outcome,
            Answer::Record(_) => unreachable!("a swap was asked"),
        }
    }
}

/// Whether a record lets the guest run alone at this host.
pub fn grants(record: Option<&Record>, host: Host) -> bool {
    match record.map(|record| &record.ownership) {
        Some(Ownership::Solo { .. }) => host == Host::Primary,
        Some(Ownership::Owned { .. }) => host == Host::Backup,
        _ => false,
    }
}
