//! The whole simulated network: its connections, its faults, and what happens in one step.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::config::SimConfig;
use super::connection::{Arrived, Connection, Notice, Side};
use super::lane::Source;
use super::random::Random;
use super::{ConnectionId, Step};
use crate::error::CloseReason;

/// Something that a step can serve.
#[derive(Clone, Copy, Debug)]
enum Lane {
    /// A data stream from this side.
    Stream(Side, usize),
    /// The messages from this side.
    Messages(Side),
    /// The notice to this side.
    Notice(Side),
}

#[derive(Debug)]
pub(super) struct State {
    pub config: SimConfig,
    pub random: Random,
    pub now: u64,
    pub connections: BTreeMap<ConnectionId, Connection>,
    pub listeners: BTreeMap<SocketAddr, VecDeque<ConnectionId>>,
    pub refuse_connections: bool,
    pub next_connection: u64,
    pub next_port: u16,
    lanes: Vec<(u64, ConnectionId, Lane)>,
}

impl State {
    pub(super) fn new(seed: u64, mut config: SimConfig) -> Self {
        config.streams = config.streams.max(1);
        State {
            config,
            random: Random::new(seed),
            now: 0,
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            refuse_connections: false,
            next_connection: 1,
            next_port: 49152,
            lanes: Vec::new(),
        }
    }

    /// Delivers one item, chosen at random.
    pub(super) fn step(&mut self) -> Step {
        self.now += 1;
        self.random_fault();
        self.collect_lanes();
        let Some(earliest) = self.lanes.iter().map(|lane| lane.0).min() else { return Step::Idle };
        self.now = self.now.max(earliest);
        let now = self.now;
        self.lanes.retain(|lane| lane.0 <= now);
        if self.lanes.len() > 1 && self.random.chance(self.config.hold_percent, 100) {
            let held = self.random.index(self.lanes.len());
            let (_, id, lane) = self.lanes.swap_remove(held);
            self.hold(id, lane);
        }
        let chosen = self.random.index(self.lanes.len());
        let (_, id, lane) = self.lanes[chosen];
        self.deliver(id, lane)
    }

    /// Lists every lane that has something to deliver, with the step from which it may.
    fn collect_lanes(&mut self) {
        self.lanes.clear();
        for (id, connection) in &self.connections {
            for side in Side::BOTH {
                let end = connection.end(side);
                if let Some(notice) = &end.notice {
                    let peer = connection.end(side.other());
                    if !notice.from_peer || !(peer.frozen) {
                        self.lanes.push((notice.due, *id, Lane::Notice(side)));
                    }
                }
                if end.frozen {
                    continue;
                }
                if !end.messages.queue.is_empty() {
                    self.lanes.push((end.messages.held_until, *id, Lane::Messages(side)));
                }
                for (index, stream) in end.streams.iter().enumerate() {
                    if !stream.segments.is_empty() {
                        self.lanes.push((stream.held_until, *id, Lane::Stream(side, index)));
                    }
                }
            }
        }
    }

    fn hold(&mut self, id: ConnectionId, lane: Lane) {
        let until = self.now + 1 + self.random.below(self.config.hold_steps_max);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match lane {
            Lane::Stream(side, index) => connection.end_mut(side).streams[index].held_until = until,
            Lane::Messages(side) => connection.end_mut(side).messages.held_until = until,
            Lane::Notice(side) => {
                if let Some(notice) = &mut connection.end_mut(side).notice {
                    notice.due = until;
                }
            }
        }
    }

    fn deliver(&mut self, id: ConnectionId, lane: Lane) -> Step {
        let Some(connection) = self.connections.get_mut(&id) else { return Step::Idle };
        match lane {
            Lane::Notice(side) => {
                let Some(Notice { reason, .. }) = connection.end_mut(side).notice.take() else {
                    return Step::Idle;
                };
                connection.learn(side, reason);
                Step::Noticed { connection: id, side }
            }
            Lane::Messages(side) => {
                let Some(message) = connection.end_mut(side).messages.queue.pop_front() else {
                    return Step::Idle;
                };
                connection.end_mut(side.other()).arrived.push_back(Arrived::Message(message));
                Step::Message { connection: id, to: side.other() }
            }
            Lane::Stream(side, stream) => self.deliver_from_stream(id, side, stream),
        }
    }

    fn deliver_from_stream(&mut self, id: ConnectionId, side: Side, stream: usize) -> Step {
        let Some(connection) = self.connections.get_mut(&id) else { return Step::Idle };
        let lane = &mut connection.end_mut(side).streams[stream];
        if let Some(marker) = lane.take_marker() {
            connection.marker_arrived(side.other(), stream, marker);
            return Step::Marker { connection: id, stream, marker };
        }
        let fragments_before = lane.segments.front().map_or(0, |segment| segment.fragments.len());
        let Some(mut fragment) = lane.take_fragment(&mut self.random, self.config.partial_percent) else {
            return Step::Idle;
        };
        let was_split = lane.segments.front().map_or(0, |s| s.fragments.len()) == fragments_before;
        let departed_now = fragment.depart();
        let only_departs = departed_now && self.random.chance(self.config.early_departure_percent, 100);
        let (offset, len_bytes) = (fragment.remote_offset, fragment.len_bytes() as u64);
        let end = connection.end_mut(side);
        if departed_now {
            // The rest of a fragment that was split is still in local memory and counts anew.
            if was_split {
                end.count_split(fragment.batch);
            }
            end.count_departure(fragment.batch);
        }
        if only_departs {
            end.streams[stream].put_back(fragment);
            return Step::Departed { connection: id, stream, len_bytes };
        }
        if let (Some(arena), Source::Departed(bytes)) = (&connection.arena, &fragment.source)
            && let Some((memory, at)) = arena.locate(offset, len_bytes)
        {
            memory.write(at, bytes);
        }
        Step::Placed { connection: id, stream, offset, len_bytes }
    }

    fn random_fault(&mut self) {
        let (cut, silence) = (self.config.cut_per_million, self.config.silence_per_million);
        if cut == 0 && silence == 0 || self.connections.is_empty() {
            return;
        }
        let draw = self.random.below(1_000_000);
        if draw >= u64::from(cut) + u64::from(silence) {
            return;
        }
        let chosen = self.random.index(self.connections.len());
        let Some(id) = self.connections.keys().nth(chosen).copied() else { return };
        if draw < u64::from(cut) {
            self.cut(id);
        } else {
            let side = Side::BOTH[self.random.index(2)];
            self.freeze(id, side, true);
            for side in Side::BOTH {
                self.notice_later(id, side, CloseReason::Silent(std::time::Duration::from_secs(1)));
            }
        }
    }

    pub(super) fn cut(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.cut(&mut self.random, self.config.notice_steps_max, self.now);
        }
    }

    pub(super) fn freeze(&mut self, id: ConnectionId, from: Side, frozen: bool) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.end_mut(from).frozen = frozen;
        }
    }

    pub(super) fn notice_later(&mut self, id: ConnectionId, side: Side, reason: CloseReason) {
        let due = self.now + self.random.below(self.config.notice_steps_max);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.schedule(side, Notice { reason, due, from_peer: false });
        }
    }

    pub(super) fn close(&mut self, id: ConnectionId, side: Side) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.close(side, &mut self.random, self.config.notice_steps_max, self.now);
        }
    }

    /// The last handle of a side is gone.
    pub(super) fn release(&mut self, id: ConnectionId, side: Side) {
        self.close(id, side);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.end_mut(side).dropped = true;
        if Side::BOTH.iter().all(|side| connection.end(*side).dropped) {
            self.connections.remove(&id);
        }
    }
}
