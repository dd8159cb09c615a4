//! The deterministic in-memory fabric.
//!
//! A [`SimNetwork`] holds everything that is on its way between its endpoints. It is as hostile
//! as the contract of [`Endpoint`](crate::Endpoint) allows: writes land in random order and in
//! pieces, streams overtake each other, local memory is read when an item departs (so memory
//! reused before [`completed`](crate::Endpoint::completed) shows as corruption), what was posted
//! before the end of a connection may land until the receiver closes, and after that never.
//!
//! In *manual* mode ([`SimNetwork::new`]) nothing moves until its owner calls
//! [`SimNetwork::step`], and no call of the fabric ever waits, whatever its timeout: one thread
//! can drive both peers, the network and a virtual clock, and a seed repeats the run exactly.
//! In *auto* mode ([`SimNetwork::auto`]) a thread of the network steps by itself and calls wait
//! as over a real network.
//!
//! ```
//! use std::time::Duration;
//! use romulus_transport::sim::{SimConfig, SimNetwork};
//! use romulus_transport::{Arena, Event, Fabric, Memory, MessageBuffer, Write};
//!
//! # fn main() -> Result<(), romulus_transport::TransportError> {
//! let network = SimNetwork::new(7, SimConfig::default());
//! let fabric = network.fabric();
//! let mut listener = fabric.listen("10.0.0.1:7000".parse().expect("an address"))?;
//! let mut initiator = fabric.connect(listener.local_address(), Duration::ZERO)?;
//! let mut responder = listener.accept(Duration::ZERO)?.expect("connected");
//!
//! let target = Memory::anonymous(4096);
//! let answer = responder.answer(&initiator.offer()?, Arena::new([target.clone()]))?;
//! let backup = responder.establish(None, Duration::ZERO)?;
//! let primary = initiator.establish(Some(&answer), Duration::ZERO)?;
//!
//! let source = Memory::anonymous(4096);
//! source.write(0, b"hello");
//! let region = primary.register(source)?;
//! primary.write(&[Write { region, local_offset: 0, remote_offset: 100, len_bytes: 5 }])?;
//! primary.mark(1)?;
//! let mut message = MessageBuffer::default();
//! while backup.next_event(&mut message, Duration::ZERO)? != (Event::Fenced { marker: 1 }) {
//!     network.step();
//! }
//! let mut placed = [0; 5];
//! target.read(100, &mut placed);
//! assert_eq!(&placed, b"hello");
//! # Ok(())
//! # }
//! ```

mod config;
mod connection;
mod endpoint;
mod fabric;
mod lane;
mod random;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use config::SimConfig;
pub use connection::Side;
pub use fabric::SimFabric;

use crate::error::CloseReason;
use state::State;

/// Names a connection of a [`SimNetwork`]; numbered from 1 in the order of `connect` calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is on its way that could be delivered.
    Idle,
    /// Bytes of a write left local memory and are on the wire.
    Departed {
        /// Of this connection.
        connection: ConnectionId,
        /// On this data stream.
        stream: usize,
        /// How many.
        len_bytes: u64,
    },
    /// Bytes of a write were placed (or lost, when the receiver has closed).
    Placed {
        /// Of this connection.
        connection: ConnectionId,
        /// On this data stream.
        stream: usize,
        /// Offset in the receiver's arena.
        offset: u64,
        /// How many.
        len_bytes: u64,
    },
    /// A marker arrived on one stream.
    Marker {
        /// Of this connection.
        connection: ConnectionId,
        /// On this data stream.
        stream: usize,
        /// The marker's number.
        marker: u64,
    },
    /// A message arrived.
    Message {
        /// Of this connection.
        connection: ConnectionId,
        /// At this side.
        to: Side,
    },
    /// A side has noticed that the connection is over.
    Noticed {
        /// This connection.
        connection: ConnectionId,
        /// This side.
        side: Side,
    },
}

struct Inner {
    state: Mutex<State>,
    /// Signalled when something was posted, for the thread of auto mode.
    posted: Condvar,
    /// Signalled when something was delivered, for those who wait in auto mode.
    delivered: Condvar,
    auto: bool,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread of auto mode; ends with the last handle of the network.
struct Stepper {
    inner: Arc<Inner>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Stepper {
    fn drop(&mut self) {
        {
            let _state = self.inner.lock();
            self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        self.inner.posted.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the stepping thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

/// A simulated network. Clones are handles of the same network.
#[derive(Clone)]
pub struct SimNetwork {
    inner: Arc<Inner>,
    _stepper: Option<Arc<Stepper>>,
}

impl std::fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNetwork").field("auto", &self.inner.auto).finish_non_exhaustive()
    }
}

impl SimNetwork {
    /// A network in manual mode: nothing moves except by [`step`](Self::step), no call waits.
    pub fn new(seed: u64, config: SimConfig) -> Self {
        SimNetwork { inner: Self::inner(seed, config, false), _stepper: None }
    }

    /// A network in auto mode: its own thread steps as long as there is something to deliver.
    pub fn auto(seed: u64, config: SimConfig) -> Self {
        let inner = Self::inner(seed, config, true);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (thread_inner, thread_stop) = (Arc::clone(&inner), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("rom-sim".into())
            .spawn(move || run(&thread_inner, &thread_stop))
            .expect("a thread for the simulated network");
        let stepper = Stepper { inner: Arc::clone(&inner), stop, thread: Mutex::new(Some(thread)) };
        SimNetwork { inner, _stepper: Some(Arc::new(stepper)) }
    }

    fn inner(seed: u64, config: SimConfig, auto: bool) -> Arc<Inner> {
        Arc::new(Inner {
            state: Mutex::new(State::new(seed, config)),
            posted: Condvar::new(),
            delivered: Condvar::new(),
            auto,
        })
    }

    /// The fabric that connects over this network.
    pub fn fabric(&self) -> SimFabric {
        SimFabric::new(self.clone())
    }

    /// Delivers one randomly chosen item that may be delivered now; when all are held back, the
    /// one that is due first.
    pub fn step(&self) -> Step {
        let step = self.inner.lock().step();
        self.inner.delivered.notify_all();
        step
    }

    /// The connections that still have a handle on either side, oldest first.
    pub fn connections(&self) -> Vec<ConnectionId> {
        self.inner.lock().connections.keys().copied().collect()
    }

    /// Cuts a connection: in each direction, by chance, what is on its way is lost or still
    /// arrives; nothing posted later does. Each side notices (`Failed`) within
    /// `notice_steps_max` steps, at its own time; until then its calls succeed.
    pub fn cut(&self, connection: ConnectionId) {
        self.change(|state| state.cut(connection));
    }

    /// Stops delivery of everything that one side sends, its end included, until
    /// [`thaw`](Self::thaw): a stopped peer, or a partition in one direction. Nobody notices
    /// unless [`notice`](Self::notice) is called. What is frozen is not lost.
    pub fn freeze(&self, connection: ConnectionId, from: Side) {
        self.change(|state| state.freeze(connection, from, true));
    }

    /// Lets go on what [`freeze`](Self::freeze) stopped.
    pub fn thaw(&self, connection: ConnectionId, from: Side) {
        self.change(|state| state.freeze(connection, from, false));
    }

    /// Makes one side notice, within `notice_steps_max` steps, that the connection is over.
    pub fn notice(&self, connection: ConnectionId, side: Side, reason: CloseReason) {
        self.change(|state| state.notice_later(connection, side, reason));
    }

    /// Makes new connections fail (`true`) or succeed (`false`, the default).
    pub fn refuse_connections(&self, refuse: bool) {
        self.change(|state| state.refuse_connections = refuse);
    }

    /// Replaces the behaviour from now on; the number of streams stays as it was.
    pub fn configure(&self, config: SimConfig) {
        self.change(|state| {
            let streams = state.config.streams;
            state.config = SimConfig { streams, ..config };
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.inner.lock());
        self.inner.posted.notify_all();
        self.inner.delivered.notify_all();
        result
    }

    /// Tries until there is a result, or the timeout has passed; in manual mode tries once.
    fn wait<T>(&self, timeout: Duration, mut attempt: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut state = self.inner.lock();
        loop {
            let result = attempt(&mut state);
            if result.is_some() || !self.inner.auto {
                return result;
            }
            let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero())?;
            let waited = self.inner.delivered.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Steps until told to stop; lets go of the lock now and then so that others get it.
fn run(inner: &Inner, stop: &std::sync::atomic::AtomicBool) {
    const STEPS_AT_ONCE: usize = 16;
    loop {
        let mut state = inner.lock();
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        let idle = (0..STEPS_AT_ONCE).any(|_| state.step() == Step::Idle);
        inner.delivered.notify_all();
        if idle && !stop.load(std::sync::atomic::Ordering::Relaxed) {
            drop(inner.posted.wait(state));
        } else {
            drop(state);
            std::thread::yield_now();
        }
    }
}
