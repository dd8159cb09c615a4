//! The guest's way to the world: holds numbered packets, lets them go against tokens.

use std::collections::VecDeque;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::release::ReleaseToken;

use super::oracle::Oracle;

/// What the gate does with output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Lets it pass.
    Open,
    /// Holds it.
    Holding,
    /// Its process is gone: output is lost.
    Dropping,
}

#[derive(Debug)]
pub struct GateModel {
    pub mode: Mode,
    held: VecDeque<u64>,
    marks: Vec<(GateMark, u64)>,
    last_sent: u64,
}

impl GateModel {
    pub fn new() -> Self {
        Self { mode: Mode::Open, held: VecDeque::new(), marks: Vec::new(), last_sent: 0 }
    }

    fn set(&mut self, mode: Mode, oracle: &mut Oracle) {
        self.mode = mode;
        oracle.gate_open = mode == Mode::Open;
    }

    /// The guest sends a packet.
    pub fn send(&mut self, packet: u64, oracle: &mut Oracle) {
        self.last_sent = packet + 1;
        match self.mode {
            Mode::Open => oracle.left_openly(packet),
            Mode::Holding => self.held.push_back(packet),
            Mode::Dropping => {}
        }
    }

    pub fn hold(&mut self, oracle: &mut Oracle) {
        self.set(Mode::Holding, oracle);
    }

    /// Output so far belongs to `mark`.
    pub fn mark(&mut self, mark: GateMark, oracle: &mut Oracle) {
        if self.marks.last().is_some_and(|(last, _)| *last >= mark) {
            oracle.violate("I1", format!("gate mark {mark} does not grow"));
        }
        self.marks.push((mark, self.last_sent));
    }

    pub fn release(&mut self, token: &ReleaseToken, oracle: &mut Oracle) {
        if token.opens_gate() {
            self.open(oracle);
            return;
        }
        let covered = self.marks.partition_point(|(mark, _)| *mark <= token.through());
        let Some((_, boundary)) = covered.checked_sub(1).map(|index| self.marks[index]) else { return };
        self.marks.drain(..covered - 1);
        while self.held.front().is_some_and(|packet| *packet < boundary) {
            let packet = self.held.pop_front().expect("looked at above");
            oracle.left_against_ack(packet);
        }
    }

    /// Lets everything go that it holds, on purpose against the rules.
    pub fn leak(&mut self, oracle: &mut Oracle) {
        for packet in self.held.drain(..) {
            oracle.left_against_ack(packet);
        }
    }

    /// Lets everything go, with a grant.
    pub fn open(&mut self, oracle: &mut Oracle) {
        self.set(Mode::Open, oracle);
        for packet in self.held.drain(..) {
            oracle.left_openly(packet);
        }
    }

    /// The gate's process dies.
    pub fn die(&mut self, oracle: &mut Oracle) {
        self.set(Mode::Dropping, oracle);
        self.held.clear();
        self.marks.clear();
    }
}
