//! A fabric that stops its own process in the middle of an epoch, as `kill -STOP` at the worst
//! moment would: half of the epoch's writes are posted, the others only after SIGCONT, when the
//! process is a zombie that the backup has long replaced. What becomes of those is kept.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use romulus_transport::{
    Arena, Channel, CloseReason, Endpoint, Event, Fabric, Listener, Memory, MessageBuffer, RegionId,
    TransportError, Write,
};
use rustix::process::{Signal, getpid, kill_process};
use serde::Serialize;

/// Errors that are kept.
const MOST_ERRORS: usize = 8;

/// What the zombie met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Zombie {
    /// Writes posted before the stop.
    pub writes_before: usize,
    /// Writes of the same epoch posted after it.
    pub writes_after: usize,
    /// What the fabric said to those, or to the wait for their completion, and to what followed.
    pub errors: Vec<String>,
    /// How the connection ended.
    pub ended: Option<String>,
}

/// When to stop, and what came of it; shared by all connections.
#[derive(Debug)]
pub struct Halt {
    epoch: u64,
    last_marker: AtomicU64,
    stopped: AtomicBool,
    zombie: Mutex<Zombie>,
}

impl Halt {
    /// In the middle of this epoch, at least the second.
    pub fn in_epoch(epoch: u64) -> Arc<Self> {
        let zombie = Mutex::default();
        Arc::new(Self { epoch, last_marker: AtomicU64::new(0), stopped: AtomicBool::new(false), zombie })
    }

    /// What the zombie met; `None` if the process was never stopped.
    pub fn zombie(&self) -> Option<Zombie> {
        self.stopped.load(Ordering::Acquire).then(|| self.update(|zombie| zombie.clone()))
    }

    fn update<T>(&self, work: impl FnOnce(&mut Zombie) -> T) -> T {
        work(&mut self.zombie.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether these writes are the first of the epoch.
    fn is_due(&self) -> bool {
        self.last_marker.load(Ordering::Acquire) + 1 == self.epoch && !self.stopped.load(Ordering::Acquire)
    }

    fn note<T>(&self, what: &str, result: Result<T, TransportError>) -> Result<T, TransportError> {
        if self.stopped.load(Ordering::Acquire)
            && let Err(error) = &result
        {
            self.update(|zombie| {
                if zombie.errors.len() < MOST_ERRORS {
                    zombie.errors.push(format!("{what}: {error}"));
                }
            });
        }
        result
    }

    /// Stops this process; returns once somebody has sent SIGCONT.
    fn stop(&self, before: usize, after: usize) {
        self.stopped.store(true, Ordering::Release);
        self.update(|zombie| (zombie.writes_before, zombie.writes_after) = (before, after));
        println!("stopping in epoch {} after {before} of {} writes", self.epoch, before + after);
        if let Err(error) = kill_process(getpid(), Signal::STOP) {
            tracing::error!(%error, "stopping this process");
        }
    }
}

/// The fabric.
pub struct HaltingFabric {
    inner: Arc<dyn Fabric>,
    halt: Arc<Halt>,
}

impl HaltingFabric {
    /// Like `inner`, and stops the process as `halt` says.
    pub fn new(inner: Arc<dyn Fabric>, halt: Arc<Halt>) -> Self {
        Self { inner, halt }
    }
}

impl Fabric for HaltingFabric {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn connect(&self, peer: SocketAddr, timeout: Duration) -> Result<Box<dyn Channel>, TransportError> {
        let inner = self.halt.note("connecting", self.inner.connect(peer, timeout))?;
        Ok(Box::new(HaltingChannel { inner, halt: Arc::clone(&self.halt) }))
    }
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        self.inner.listen(address)
    }
}

struct HaltingChannel {
    inner: Box<dyn Channel>,
    halt: Arc<Halt>,
}

impl Channel for HaltingChannel {
    fn peer(&self) -> SocketAddr {
        self.inner.peer()
    }
    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        self.inner.send(message)
    }
    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        self.inner.receive(timeout)
    }
    fn offer(&mut self) -> Result<Vec<u8>, TransportError> {
        self.inner.offer()
    }
    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError> {
        self.inner.answer(offer, arena)
    }
    fn establish(
        self: Box<Self>,
        answer: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        let inner = self.inner.establish(answer, timeout)?;
        Ok(Arc::new(HaltingEndpoint { inner, halt: self.halt }))
    }
}

struct HaltingEndpoint {
    inner: Arc<dyn Endpoint>,
    halt: Arc<Halt>,
}

impl Endpoint for HaltingEndpoint {
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError> {
        self.inner.register(memory)
    }
    fn write(&self, writes: &[Write]) -> Result<(), TransportError> {
        if !self.halt.is_due() {
            return self.halt.note("writing", self.inner.write(writes));
        }
        let (before, after) = writes.split_at(writes.len().div_ceil(2));
        self.inner.write(before)?;
        self.halt.stop(before.len(), after.len());
        self.halt.note("writing the other half", self.inner.write(after))
    }
    fn mark(&self, marker: u64) -> Result<(), TransportError> {
        self.halt.last_marker.store(marker, Ordering::Release);
        self.halt.note("marking", self.inner.mark(marker))
    }
    fn completed(&self, marker: u64, timeout: Duration) -> Result<u64, TransportError> {
        self.halt.note("waiting for completion", self.inner.completed(marker, timeout))
    }
    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        self.halt.note("sending a message", self.inner.send(message))
    }
    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError> {
        let event = self.halt.note("waiting for an event", self.inner.next_event(message, timeout))?;
        if let Event::Closed(reason) = &event
            && self.halt.stopped.load(Ordering::Acquire)
        {
            self.halt.update(|zombie| zombie.ended = zombie.ended.take().or_else(|| ended(reason)));
        }
        Ok(event)
    }
    fn close(&self) {
        self.inner.close();
    }
    fn bytes_written(&self) -> u64 {
        self.inner.bytes_written()
    }
    fn streams(&self) -> usize {
        self.inner.streams()
    }
}

fn ended(reason: &CloseReason) -> Option<String> {
    Some(reason.to_string())
}
