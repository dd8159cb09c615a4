//! A fabric whose connections can be cut at any operation, as a host's death cuts them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use romulus_checkpoint::wire::message::{ByeReason, Message, decode};
use romulus_transport::{
    Arena, Channel, CloseReason, Endpoint, Event, Fabric, Listener, Memory, MessageBuffer, RegionId,
    TransportError, Write,
};

/// Cuts the connections of one host.
#[derive(Default)]
pub struct Switch {
    dead: AtomicBool,
    /// Operations until the next cut; negative: none is planned.
    countdown: AtomicI64,
    /// Whether a planned cut is for good.
    for_good: AtomicBool,
    /// Whoever sends `Bye{Failover}` panics once it has left.
    pub panic_after_failover_bye: AtomicBool,
    /// How fast one-sided writes leave; 0: as fast as they can.
    pub bytes_per_second: AtomicU64,
    endpoints: Mutex<Vec<Weak<dyn Endpoint>>>,
}

impl Switch {
    pub fn new() -> Arc<Self> {
        let switch = Self::default();
        switch.countdown.store(-1, Ordering::SeqCst);
        Arc::new(switch)
    }

    /// All connections end now; new ones may be made.
    pub fn cut(&self) {
        let endpoints = std::mem::take(&mut *self.endpoints.lock().unwrap());
        endpoints.iter().filter_map(Weak::upgrade).for_each(|endpoint| endpoint.close());
    }

    /// All connections end now, for good.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// As [`cut`](Self::cut) or [`kill`](Self::kill), after so many operations more.
    pub fn plan(&self, operations: i64, for_good: bool) {
        self.for_good.store(for_good, Ordering::SeqCst);
        self.countdown.store(operations, Ordering::SeqCst);
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Whether the planned cut has happened.
    pub fn plan_is_over(&self) -> bool {
        self.countdown.load(Ordering::SeqCst) < 0
    }

    fn step(&self) -> Result<(), TransportError> {
        if self.countdown.load(Ordering::SeqCst) >= 0 && self.countdown.fetch_sub(1, Ordering::SeqCst) == 0 {
            if self.for_good.load(Ordering::SeqCst) {
                self.kill();
            } else {
                self.cut();
            }
            return Err(CloseReason::Local.into());
        }
        Ok(())
    }

    /// Takes as long as a network of that speed.
    fn carry(&self, writes: &[Write]) {
        let bytes: u64 = writes.iter().map(|write| write.len_bytes).sum();
        if let Some(microseconds) =
            (bytes * 1_000_000).checked_div(self.bytes_per_second.load(Ordering::SeqCst))
        {
            std::thread::sleep(Duration::from_micros(microseconds));
        }
    }

    fn check(&self) -> Result<(), TransportError> {
        if self.is_dead() { Err(TransportError::Invalid("this host is dead".into())) } else { Ok(()) }
    }
}

/// A fabric with a switch.
pub struct CutFabric {
    pub inner: Arc<dyn Fabric>,
    pub switch: Arc<Switch>,
}

impl Fabric for CutFabric {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn connect(&self, peer: SocketAddr, timeout: Duration) -> Result<Box<dyn Channel>, TransportError> {
        self.switch.check()?;
        let inner = self.inner.connect(peer, timeout)?;
        Ok(Box::new(CutChannel { inner, switch: Arc::clone(&self.switch) }))
    }
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        let inner = self.inner.listen(address)?;
        Ok(Box::new(CutListener { inner, switch: Arc::clone(&self.switch) }))
    }
}

struct CutListener {
    inner: Box<dyn Listener>,
    switch: Arc<Switch>,
}

impl Listener for CutListener {
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Channel>>, TransportError> {
        let channel = self.inner.accept(timeout)?;
        if self.switch.is_dead() {
            return Ok(None);
        }
        let wrap =
            |inner| Box::new(CutChannel { inner, switch: Arc::clone(&self.switch) }) as Box<dyn Channel>;
        Ok(channel.map(wrap))
    }
    fn local_address(&self) -> SocketAddr {
        self.inner.local_address()
    }
}

struct CutChannel {
    inner: Box<dyn Channel>,
    switch: Arc<Switch>,
}

impl Channel for CutChannel {
    fn peer(&self) -> SocketAddr {
        self.inner.peer()
    }
    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        self.switch.check()?;
        self.inner.send(message)
    }
    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        self.switch.check()?;
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
        self.switch.check()?;
        let inner = self.inner.establish(answer, timeout)?;
        self.switch.endpoints.lock().unwrap().push(Arc::downgrade(&inner));
        Ok(Arc::new(CutEndpoint { inner, switch: self.switch }))
    }
}

struct CutEndpoint {
    inner: Arc<dyn Endpoint>,
    switch: Arc<Switch>,
}

impl Endpoint for CutEndpoint {
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError> {
        self.inner.register(memory)
    }
    fn write(&self, writes: &[Write]) -> Result<(), TransportError> {
        // Part of a batch may have left when the host dies.
        if let (Err(error), Some(half)) = (self.switch.step(), writes.get(..writes.len() / 2)) {
            let _ = self.inner.write(half);
            return Err(error);
        }
        self.switch.carry(writes);
        self.inner.write(writes)
    }
    fn write_now(&self, writes: &[Write]) -> Result<usize, TransportError> {
        if let (Err(error), Some(half)) = (self.switch.step(), writes.get(..writes.len() / 2)) {
            let _ = self.inner.write_now(half);
            return Err(error);
        }
        self.inner.write_now(writes)
    }
    fn mark(&self, marker: u64) -> Result<(), TransportError> {
        self.switch.step()?;
        self.inner.mark(marker)
    }
    fn completed(&self, marker: u64, timeout: Duration) -> Result<u64, TransportError> {
        self.inner.completed(marker, timeout)
    }
    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        self.switch.step()?;
        self.inner.send(message)?;
        let bye = Message::Bye { reason: ByeReason::Failover };
        if self.switch.panic_after_failover_bye.load(Ordering::SeqCst)
            && decode(message).is_ok_and(|(_, message)| message == bye)
        {
            panic!("asked to panic");
        }
        Ok(())
    }
    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError> {
        self.inner.next_event(message, timeout)
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
