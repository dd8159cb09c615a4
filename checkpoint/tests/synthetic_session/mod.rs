//! Plays a session between the real placement of both sides, without machines or threads, and
//! records it on both hosts: rounds, pipelined epochs, homings, a lost connection with a delta
//! resync, an invalidation, heartbeats, good-bye.

use std::collections::VecDeque;
use std::path::Path;

use arrayvec::ArrayVec;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use romulus_checkpoint::placement::committed::{CommittedMap, HomingCopy};
use romulus_checkpoint::placement::planner::{NotPlaced, Planner};
use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{
    ByeReason, Hello, MachineIdentity, Message, ROUND_MARKER, Welcome, encode,
};
use romulus_checkpoint::wire::record::{Recorder, Role};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{
    ArenaShape, ConnectionNumber, Epoch, Extent, Generation, GuestLayout, HomingSequence, Identity,
    Incarnation, PageIndex, Region, SessionId, Transfer,
};
use romulus_transport::Memory;

/// D.
const DEPTH: usize = 2;
const STATE_BYTES: usize = 700;
const SHAPE: ArenaShape =
    ArenaShape { pages: 256, spares: 64, slots: 3, slot_bytes: 16 * 1024, copy_only_homes: false };

/// Both hosts of a session and their recorders.
pub struct Session {
    random: SmallRng,
    planner: Planner,
    map: CommittedMap,
    primary: Recorder,
    backup: Recorder,
    identity: Identity,
    /// Sent by the primary and not yet read by the backup.
    in_flight: VecDeque<InFlight>,
    slots: Vec<Memory>,
    placed: u64,
    committed: u64,
    first: bool,
    running: Option<HomingCopy>,
    heartbeats: u64,
    carried: Vec<Extent>,
    /// How often something of each kind happened.
    pub homings: u64,
    /// Epochs that had to wait for frames.
    pub stalls: u64,
}

enum InFlight {
    Commit(Epoch, Vec<u8>),
    Home(Box<Message>, Vec<u8>),
}

impl Session {
    /// A session whose recordings go to `directory`, as `primary.rec` and `backup.rec`.
    pub fn new(directory: &Path, seed: u64) -> Self {
        let recorder = |name: &str, role| {
            Recorder::create(&directory.join(name), role, 1 << 30).expect("a file in a fresh directory")
        };
        Self {
            random: SmallRng::seed_from_u64(seed),
            planner: Planner::new(SHAPE, 24),
            map: CommittedMap::new(SHAPE),
            primary: recorder("primary.rec", Role::Primary),
            backup: recorder("backup.rec", Role::Backup),
            identity: Identity {
                session: SessionId(0xfeed_0000_0000_0000_0000_0000_0000_0001),
                generation: Generation(4),
                incarnation: Incarnation(256),
                connection: ConnectionNumber(0),
            },
            in_flight: VecDeque::new(),
            slots: (0..SHAPE.slots).map(|_| Memory::anonymous(SHAPE.slot_bytes as usize)).collect(),
            placed: 0,
            committed: 0,
            first: true,
            running: None,
            heartbeats: 0,
            carried: Vec::new(),
            homings: 0,
            stalls: 0,
        }
    }

    /// A whole session.
    pub fn play(mut self, epochs: u64) -> Self {
        self.connect();
        self.synchronize(3);
        self.epochs(epochs);
        self.lose_connection();
        self.connect();
        self.epochs(epochs);
        self.invalidate();
        self.synchronize(1);
        self.epochs(epochs);
        self.settle();
        self.primary_says(&Message::Bye { reason: ByeReason::Detached });
        self.backup_says(&Message::ByeAck { reason: ByeReason::Detached });
        self.primary.disconnected();
        self.backup.disconnected();
        self
    }

    fn bytes(&self, message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&self.identity, message, &mut bytes);
        bytes
    }

    fn primary_says(&self, message: &Message) {
        let bytes = self.bytes(message);
        self.primary.sent(&bytes);
        self.backup.received(&bytes);
    }

    fn backup_says(&self, message: &Message) {
        let bytes = self.bytes(message);
        self.backup.sent(&bytes);
        self.primary.received(&bytes);
    }

    fn connect(&mut self) {
        self.identity.connection = self.identity.connection.next();
        self.heartbeats = 0;
        self.primary.connected(self.identity.connection);
        self.backup.connected(ConnectionNumber(0));
        self.primary_says(&Message::Hello(self.hello()));
        self.map.drop_pending();
        let (committed, homed_through) = (Epoch(self.committed), self.map.homed_through());
        self.backup_says(&Message::Welcome(Welcome {
            version: 1,
            identity: self.identity,
            backup: "right".into(),
            committed,
            homed_through,
            fabric_answer: vec![7; 40],
            proof: AckProof::outgoing(),
        }));
        if self.committed > 0 {
            assert!(self.planner.may_stand_at(committed, homed_through));
            self.planner.reconnected(committed, homed_through, &mut self.carried);
        }
        self.placed = self.committed;
    }

    fn hello(&self) -> Hello {
        let regions = vec![Region { name: "ram".into(), pages: SHAPE.pages }];
        Hello {
            versions: (1, 1),
            identity: self.identity,
            primary: "left".into(),
            guest: "synthetic".into(),
            layout: GuestLayout { regions },
            arena: SHAPE,
            depth: DEPTH as u64,
            machine: MachineIdentity { hypervisor: "none 1".into(), configuration: vec!["a".into()] },
            suspect_after_ms: 150,
            fabric_offer: vec![1; 8],
        }
    }

    fn synchronize(&mut self, rounds: u64) {
        for round in 1..=rounds {
            self.primary.marker(ROUND_MARKER | round);
            self.primary_says(&Message::RoundEnd { round });
            self.backup.marker(ROUND_MARKER | round);
            self.backup_says(&Message::RoundAck { round });
        }
    }

    fn epochs(&mut self, count: u64) {
        let last = self.placed + count;
        while self.placed < last {
            match self.random.random_range(0..10) {
                0..4 => self.place(),
                4..8 => self.deliver(),
                8 => self.copy_home(),
                _ => self.heartbeat(),
            }
        }
    }

    /// Everything sent has arrived and is acked.
    fn settle(&mut self) {
        while !self.in_flight.is_empty() {
            self.deliver();
        }
    }

    fn dirty(&mut self) -> Vec<Extent> {
        let mut dirtied = [false; SHAPE.pages as usize];
        // What could not be placed is tried again as it is, so that it fits some time.
        let carried = !self.carried.is_empty();
        for extent in self.carried.drain(..) {
            dirtied[extent.first.0 as usize..][..extent.pages as usize].fill(true);
        }
        let fresh = if carried { 0..1 } else { 0..5 };
        for _ in 0..self.random.random_range(fresh) {
            let first = self.random.random_range(0..SHAPE.pages as usize);
            let pages = self.random.random_range(1..6).min(SHAPE.pages as usize - first);
            dirtied[first..first + pages].fill(true);
        }
        let mut extents: Vec<Extent> = Vec::new();
        for page in (0..SHAPE.pages).filter(|page| dirtied[*page as usize]) {
            match extents.last_mut() {
                Some(last) if last.first.0 + last.pages == page => last.pages += 1,
                _ => extents.push(Extent { first: PageIndex(page), pages: 1 }),
            }
        }
        extents
    }

    fn place(&mut self) {
        let commits = self.in_flight.iter().filter(|item| matches!(item, InFlight::Commit(..))).count();
        if commits >= DEPTH {
            return self.deliver();
        }
        let epoch = Epoch(self.placed + 1);
        let dirty = self.dirty();
        let mut transfers = Vec::new();
        match self.planner.place(epoch, &dirty, &mut transfers) {
            Ok(()) => self.placed += 1,
            Err(NotPlaced::Later) => {
                self.stalls += 1;
                self.carried = dirty;
                self.ask_homings();
                return self.deliver();
            }
            Err(error @ NotPlaced::NeverFits { .. }) => panic!("{error:?}"),
        }
        let memory = self.slots[(epoch.0 % SHAPE.slots) as usize].clone();
        let state: Vec<u8> = (0..STATE_BYTES).map(|_| self.random.random()).collect();
        memory.write(slot::state_offset_bytes(transfers.len() as u64) as usize, &state);
        let checksum =
            slot::checksum(&memory, slot::state_offset_bytes(transfers.len() as u64) as usize, STATE_BYTES);
        slot::encode(&self.identity, epoch, &transfers, STATE_BYTES as u64, checksum, &memory)
            .expect("few transfers fit a slot");
        self.primary.slot(&memory);
        self.primary.marker(epoch.0);
        let bytes = self.bytes(&Message::Commit { epoch });
        self.primary.sent(&bytes);
        self.planner.commit_sent(epoch);
        self.in_flight.push_back(InFlight::Commit(epoch, bytes));
        self.ask_homings();
    }

    fn ask_homings(&mut self) {
        let mut homings = ArrayVec::new();
        if let Some(first_sequence) = self.planner.next_homings(&mut homings) {
            self.homings += homings.len() as u64;
            let message = Message::Home { first_sequence, homings };
            let bytes = self.bytes(&message);
            self.primary.sent(&bytes);
            self.in_flight.push_back(InFlight::Home(Box::new(message), bytes));
        }
    }

    /// The backup takes the next message, and says where it stands.
    fn deliver(&mut self) {
        match self.in_flight.pop_front() {
            None => {}
            Some(InFlight::Home(message, bytes)) => {
                let Message::Home { first_sequence, homings } = *message else { unreachable!() };
                self.backup.received(&bytes);
                self.map.take_homings(first_sequence, &homings).expect("the planner asks by the rules");
            }
            Some(InFlight::Commit(epoch, bytes)) => {
                // Marker and Commit have no order between them.
                if self.random.random() {
                    self.backup.received(&bytes);
                    self.backup.marker(epoch.0);
                } else {
                    self.backup.marker(epoch.0);
                    self.backup.received(&bytes);
                }
                self.commit(epoch);
                self.ack();
            }
        }
    }

    fn commit(&mut self, epoch: Epoch) {
        let memory = &self.slots[(epoch.0 % SHAPE.slots) as usize];
        let mut transfers: Vec<Transfer> = Vec::new();
        slot::decode(memory, &self.identity, epoch, &mut transfers).expect("a slot just written");
        self.backup.slot(memory);
        self.map.commit(&transfers, self.first).expect("the planner places by the rules");
        self.first = false;
        self.committed = epoch.0;
    }

    fn ack(&mut self) {
        let (committed, homed_through) = (Epoch(self.committed), self.map.homed_through());
        self.backup_says(&Message::Ack { committed, homed_through, proof: AckProof::outgoing() });
        self.planner.acked(committed, homed_through);
    }

    fn copy_home(&mut self) {
        match self.running.take() {
            Some(copy) => {
                self.map.copy_finished(copy.sequence);
                if self.committed > 0 {
                    self.ack();
                }
            }
            None => self.running = self.map.next_copy(),
        }
    }

    fn heartbeat(&mut self) {
        self.heartbeats += 1;
        let message = Message::Heartbeat { sequence: self.heartbeats, progress: self.placed };
        self.primary_says(&message);
        self.backup_says(&message);
    }

    /// Ends the connection with epochs and homings under way. Of what was sent, the backup
    /// still commits one epoch, whose Ack is lost.
    fn lose_connection(&mut self) {
        while self.in_flight.len() < 2 {
            self.place();
        }
        while let Some(item) = self.in_flight.pop_front() {
            if let InFlight::Commit(epoch, bytes) = item {
                self.backup.received(&bytes);
                self.backup.marker(epoch.0);
                self.commit(epoch);
                break;
            }
        }
        self.in_flight.clear();
        if let Some(copy) = self.running.take() {
            self.map.copy_finished(copy.sequence);
        }
        self.primary.disconnected();
        self.backup.disconnected();
    }

    fn invalidate(&mut self) {
        self.settle();
        if let Some(copy) = self.running.take() {
            self.map.copy_finished(copy.sequence);
        }
        self.primary_says(&Message::Invalidate);
        // The share of the second connection, as the protocol numbers incarnations.
        let incarnation = Incarnation(512);
        self.backup_says(&Message::Invalidated { incarnation });
        self.identity.incarnation = incarnation;
        self.planner.reset();
        self.map.reset();
        self.first = true;
        self.committed = 0;
        self.placed = 0;
        assert_eq!(self.map.homed_through(), HomingSequence(0));
    }
}
