//! A fabric that records: wraps any other and writes what passes to a [`Recorder`].
//!
//! Nothing above or below it changes. A connection is recorded from the moment it is established,
//! its handshake included; attempts that come to nothing are not. Slots are recorded where they
//! pass: on the primary from the writes in front of an epoch's marker, on the backup from the
//! arena once Commit and markers of the epoch are in.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use romulus_transport::{
    Arena, Channel, Endpoint, Event, Fabric, Listener, Memory, MessageBuffer, RegionId, TransportError, Write,
};

use super::message::{Message, ROUND_MARKER, decode, is_part};
use super::record::Recorder;
use crate::ids::Epoch;
use crate::layout::ArenaShape;

/// Messages of a handshake that are kept; there are two.
const MAX_HANDSHAKE_MESSAGES: usize = 4;

/// Wraps a fabric and records its connections, one after the other.
pub struct RecordedFabric {
    inner: Arc<dyn Fabric>,
    tape: Arc<Tape>,
}

impl RecordedFabric {
    /// Records what passes through `inner`.
    pub fn new(inner: Arc<dyn Fabric>, recorder: Arc<Recorder>) -> Self {
        Self { inner, tape: Arc::new(Tape { recorder, turns: Mutex::new(0) }) }
    }
}

/// The recorder, and which connection may still write to it.
struct Tape {
    recorder: Arc<Recorder>,
    /// Counts begins and ends of connections: odd while one lives, which is then its number.
    turns: Mutex<u64>,
}

impl Tape {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a connection with the messages of its handshake; ends the one before if nobody has.
    fn begin(&self, handshake: &[(bool, Vec<u8>)], connection: crate::ConnectionNumber) -> u64 {
        let mut count = self.lock();
        if *count % 2 == 1 {
            self.recorder.disconnected();
            *count += 1;
        }
        *count += 1;
        self.recorder.connected(connection);
        for (sent, message) in handshake {
            if *sent { self.recorder.sent(message) } else { self.recorder.received(message) }
        }
        *count
    }

    fn end(&self, number: u64) {
        let mut count = self.lock();
        if *count == number {
            self.recorder.disconnected();
            *count += 1;
        }
    }

    /// Records for a connection that has not ended.
    fn with(&self, number: u64, record: impl FnOnce(&Recorder)) {
        let count = self.lock();
        if *count == number {
            record(&self.recorder);
        }
    }
}

impl Fabric for RecordedFabric {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn connect(&self, peer: SocketAddr, timeout: Duration) -> Result<Box<dyn Channel>, TransportError> {
        let inner = self.inner.connect(peer, timeout)?;
        Ok(Box::new(RecordedChannel::new(inner, &self.tape)))
    }

    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        let inner = self.inner.listen(address)?;
        Ok(Box::new(RecordedListener { inner, tape: Arc::clone(&self.tape) }))
    }
}

struct RecordedListener {
    inner: Box<dyn Listener>,
    tape: Arc<Tape>,
}

impl Listener for RecordedListener {
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Channel>>, TransportError> {
        let accepted = self.inner.accept(timeout)?;
        Ok(accepted.map(|inner| Box::new(RecordedChannel::new(inner, &self.tape)) as Box<dyn Channel>))
    }

    fn local_address(&self) -> SocketAddr {
        self.inner.local_address()
    }
}

struct RecordedChannel {
    inner: Box<dyn Channel>,
    tape: Arc<Tape>,
    /// Whether sent, and the message.
    handshake: Vec<(bool, Vec<u8>)>,
    arena: Option<Arena>,
}

impl RecordedChannel {
    fn new(inner: Box<dyn Channel>, tape: &Arc<Tape>) -> Self {
        Self { inner, tape: Arc::clone(tape), handshake: Vec::new(), arena: None }
    }

    fn keep(&mut self, sent: bool, message: &[u8]) {
        if self.handshake.len() < MAX_HANDSHAKE_MESSAGES {
            self.handshake.push((sent, message.to_vec()));
        }
    }
}

impl Channel for RecordedChannel {
    fn peer(&self) -> SocketAddr {
        self.inner.peer()
    }

    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        self.keep(true, message);
        self.inner.send(message)
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        let message = self.inner.receive(timeout)?;
        self.keep(false, &message);
        Ok(message)
    }

    fn offer(&mut self) -> Result<Vec<u8>, TransportError> {
        self.inner.offer()
    }

    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError> {
        self.arena = Some(arena.clone());
        self.inner.answer(offer, arena)
    }

    fn establish(
        self: Box<Self>,
        answer: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        let Self { inner, tape, handshake, arena } = *self;
        let endpoint = inner.establish(answer, timeout)?;
        let mut session = Session { arena, ..Session::default() };
        let mut connection = crate::ConnectionNumber(0);
        for (_, message) in &handshake {
            match decode(message) {
                Ok((identity, Message::Hello(hello))) => {
                    session.shape = Some(hello.arena);
                    connection = identity.connection;
                }
                Ok((_, Message::Welcome(welcome))) => session.stand_at(welcome.committed),
                _ => {}
            }
        }
        let number = tape.begin(&handshake, connection);
        Ok(Arc::new(RecordedEndpoint { inner: endpoint, tape, number, session: Mutex::new(session) }))
    }
}

/// What it takes to find slots.
#[derive(Default)]
struct Session {
    shape: Option<ArenaShape>,
    /// Primary: registered memory, and the writes to slots since the last marker.
    regions: HashMap<RegionId, Memory>,
    slot_writes: Vec<Write>,
    /// Backup: the arena, and how far Commits, markers and recorded slots have come.
    arena: Option<Arena>,
    asked: Epoch,
    fenced: Epoch,
    recorded: Epoch,
}

impl Session {
    fn stand_at(&mut self, epoch: Epoch) {
        self.asked = epoch;
        self.fenced = epoch;
        self.recorded = epoch;
    }

    /// The slot of the epoch whose marker is about to be posted, put together from its writes.
    fn posted_slot(&mut self, epoch: Epoch) -> Option<Memory> {
        let shape = self.shape?;
        let start = shape.slot_offset_bytes(epoch);
        let writes = std::mem::take(&mut self.slot_writes);
        let in_slot = |write: &&Write| {
            (start..start + shape.slot_bytes).contains(&write.remote_offset)
                && write.len_bytes <= start + shape.slot_bytes - write.remote_offset
        };
        let end = writes.iter().filter(in_slot).map(|write| write.remote_offset + write.len_bytes).max()?;
        let slot = Memory::anonymous((end - start) as usize);
        for write in writes.iter().filter(in_slot) {
            let source = self.regions.get(&write.region)?;
            let from = write.local_offset as usize;
            let fits = from.checked_add(write.len_bytes as usize)? <= source.len_bytes();
            if fits {
                let into = (write.remote_offset - start) as usize;
                source.copy_to(from, &slot, into, write.len_bytes as usize);
            }
        }
        Some(slot)
    }

    /// The next slot that is complete in the arena.
    fn arrived_slot(&mut self) -> Option<Memory> {
        let shape = self.shape?;
        let next = self.recorded.next();
        if next > self.asked || next > self.fenced {
            return None;
        }
        self.recorded = next;
        let (memory, offset) =
            self.arena.as_ref()?.locate(shape.slot_offset_bytes(next), shape.slot_bytes)?;
        Some(memory.part(offset, shape.slot_bytes as usize))
    }
}

struct RecordedEndpoint {
    inner: Arc<dyn Endpoint>,
    tape: Arc<Tape>,
    number: u64,
    session: Mutex<Session>,
}

impl RecordedEndpoint {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_arrived_slots(&self, session: &mut Session) {
        while let Some(slot) = session.arrived_slot() {
            self.tape.with(self.number, |recorder| recorder.slot(&slot));
        }
    }
}

impl Endpoint for RecordedEndpoint {
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError> {
        let region = self.inner.register(memory.clone())?;
        self.session().regions.insert(region, memory);
        Ok(region)
    }

    fn write(&self, writes: &[Write]) -> Result<(), TransportError> {
        let mut session = self.session();
        if let Some(shape) = session.shape {
            let slots = shape.slot_offset_bytes(Epoch(0));
            session.slot_writes.extend(writes.iter().filter(|write| write.remote_offset >= slots));
        }
        drop(session);
        self.inner.write(writes)
    }

    fn mark(&self, marker: u64) -> Result<(), TransportError> {
        if is_part(marker) {
            return self.inner.mark(marker);
        }
        if marker & ROUND_MARKER == 0
            && let Some(slot) = self.session().posted_slot(Epoch(marker))
        {
            self.tape.with(self.number, |recorder| recorder.slot(&slot));
        }
        self.tape.with(self.number, |recorder| recorder.marker(marker));
        self.inner.mark(marker)
    }

    fn completed(&self, marker: u64, timeout: Duration) -> Result<u64, TransportError> {
        self.inner.completed(marker, timeout)
    }

    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        self.tape.with(self.number, |recorder| recorder.sent(message));
        if let Ok((_, Message::Invalidated { .. })) = decode(message) {
            self.session().stand_at(Epoch(0));
        }
        self.inner.send(message)
    }

    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError> {
        let event = self.inner.next_event(message, timeout)?;
        match &event {
            Event::Message => {
                let bytes = message.message();
                self.tape.with(self.number, |recorder| recorder.received(bytes));
                if let Ok((_, Message::Commit { epoch })) = decode(bytes) {
                    let mut session = self.session();
                    session.asked = epoch;
                    self.record_arrived_slots(&mut session);
                }
            }
            Event::Fenced { marker } if is_part(*marker) => {}
            Event::Fenced { marker } => {
                self.tape.with(self.number, |recorder| recorder.marker(*marker));
                if marker & ROUND_MARKER == 0 {
                    let mut session = self.session();
                    session.fenced = Epoch(*marker);
                    self.record_arrived_slots(&mut session);
                }
            }
            Event::Closed(_) => self.tape.end(self.number),
            Event::Idle => {}
        }
        Ok(event)
    }

    fn close(&self) {
        self.inner.close();
        self.tape.end(self.number);
        self.tape.recorder.flush();
    }

    fn bytes_written(&self) -> u64 {
        self.inner.bytes_written()
    }

    fn streams(&self) -> usize {
        self.inner.streams()
    }
}
