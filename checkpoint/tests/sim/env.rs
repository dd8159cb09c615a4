//! What both hosts share: time, chance, network, arbiter, the truth, and the count of steps.

use std::net::SocketAddr;

use romulus_checkpoint::Time;
use romulus_checkpoint::wire::message;
use romulus_checkpoint::{Identity, wire};
use romulus_transport::sim::{SimFabric, SimNetwork};

use super::arbiter::ArbiterModel;
use super::oracle::Oracle;
use super::rng::Rng;
use super::scenario::{Faults, Host, Mutant, Plan, Scenario};

/// The process of a host ended in the middle of what it did.
#[derive(Debug)]
pub struct Crashed;

/// Whether an actor found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Some,
    None,
}

pub type Step = Result<Progress, Crashed>;

pub struct Env {
    pub scenario: Scenario,
    pub plan: Plan,
    pub now: Time,
    pub rng: Rng,
    pub network: SimNetwork,
    pub fabric: SimFabric,
    pub arbiter: ArbiterModel,
    pub oracle: Oracle,
    /// Faults still happen.
    pub faulty: bool,
    points: [u64; 2],
    trace: Vec<String>,
}

impl Env {
    pub fn new(plan: Plan) -> Self {
        let scenario = Scenario::draw(&plan);
        let network = SimNetwork::new(plan.seed, scenario.net.clone());
        let unknown_is_won = plan.mutant == Mutant::UnknownIsWon;
        Self {
            now: Time { nanoseconds: 1_000_000 },
            rng: Rng::new(plan.seed, 2),
            fabric: network.fabric(),
            network,
            arbiter: ArbiterModel::new(&scenario, unknown_is_won),
            oracle: Oracle::new(),
            faulty: true,
            points: [0, 0],
            trace: Vec::new(),
            scenario,
            plan,
        }
    }

    /// A point where the host's process may crash.
    pub fn point(&mut self, host: Host) -> Result<(), Crashed> {
        let count = &mut self.points[host as usize];
        *count += 1;
        let planned = self.plan.crash_at == Some((host, *count));
        if planned { Err(Crashed) } else { Ok(()) }
    }

    /// How many such points a host has passed.
    pub fn points(&self, host: Host) -> u64 {
        self.points[host as usize]
    }

    /// Whether one of the guest's or standby's operations fails now.
    pub fn operation_fails(&mut self) -> bool {
        self.faulty && self.rng.per_mille(self.scenario.faults.guest_failure)
    }

    /// The faults that happen at present.
    pub fn faults(&self) -> Option<&Faults> {
        self.faulty.then_some(&self.scenario.faults)
    }

    pub fn mutant(&self, mutant: Mutant) -> bool {
        self.plan.mutant == mutant
    }

    /// Notes what happens, when somebody wants to know.
    pub fn trace(&mut self, text: impl FnOnce() -> String) {
        if self.plan.trace {
            let at = self.now.nanoseconds as f64 / 1e6;
            self.trace.push(format!("{at:9.3} ms {}", text()));
        }
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }
}

/// Where the backup listens.
pub fn backup_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 7000))
}

/// The bytes of a message.
pub fn encoded(identity: &Identity, message: &wire::message::Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message::encode(identity, message, &mut bytes);
    bytes
}
