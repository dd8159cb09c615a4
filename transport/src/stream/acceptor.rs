//! The listening port: one thread that sorts connections by their preface.
//!
//! Nobody can make it wait: sockets are non-blocking, a connection that has not shown a whole
//! preface in time is dropped, and so is the oldest one when there are too many.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFd;

use super::StreamConfig;
use super::control::is_passing;
use super::link::lock;
use super::socket::{Signal, configure, deadline_after, is_ready, readable, receive_now, wait};
use super::wire::{Magic, PREFACE_BYTES, Preface, Token, WireError, decode_preface};
use crate::error::TransportError;

/// Control connections that showed their preface but were not taken by `accept`.
const READY_MAX: usize = 64;
/// How long to leave the listening socket alone when accepting fails (out of descriptors).
const BACK_OFF: Duration = Duration::from_millis(20);

/// A connection whose data streams are expected.
struct Expected {
    token: Token,
    streams: Vec<Option<TcpStream>>,
    arrived: Arc<Signal>,
}

#[derive(Default)]
struct Shared {
    expected: Mutex<Vec<Expected>>,
    ready: Mutex<VecDeque<(TcpStream, SocketAddr)>>,
    ready_grew: Condvar,
    /// The listener is gone; only data streams are still let in.
    listener_gone: AtomicBool,
}

/// The accepting thread; lives as long as the listener or a channel that expects data streams.
pub(crate) struct Acceptor {
    shared: Arc<Shared>,
    stop: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.raise();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic there has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Acceptor {
    /// Lets data streams with this token in.
    pub(crate) fn expect(self: &Arc<Self>, token: Token, streams: usize) -> io::Result<Expectation> {
        let arrived = Arc::new(Signal::new()?);
        let streams = (0..streams).map(|_| None).collect();
        lock(&self.shared.expected).push(Expected { token, streams, arrived: Arc::clone(&arrived) });
        Ok(Expectation { acceptor: Arc::clone(self), token, arrived })
    }
}

/// A connection's right to its data streams, until dropped.
pub(crate) struct Expectation {
    acceptor: Arc<Acceptor>,
    token: Token,
    /// Raised when a stream has arrived.
    pub arrived: Arc<Signal>,
}

impl Expectation {
    /// All data streams, once all are here.
    pub(crate) fn take(&self) -> Option<Vec<TcpStream>> {
        let mut expected = lock(&self.acceptor.shared.expected);
        let index = expected.iter().position(|expected| expected.token == self.token)?;
        if expected[index].streams.iter().any(Option::is_none) {
            return None;
        }
        Some(expected.swap_remove(index).streams.into_iter().flatten().collect())
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        lock(&self.acceptor.shared.expected).retain(|expected| expected.token != self.token);
    }
}

/// A connection that has not shown its whole preface.
struct Stranger {
    socket: TcpStream,
    address: SocketAddr,
    preface: [u8; PREFACE_BYTES],
    received: usize,
    deadline: Instant,
}

/// What reading from a stranger came to.
enum Verdict {
    Wait,
    Drop(String),
    Known(Preface),
}

impl Stranger {
    fn read(&mut self, magic: Magic) -> Verdict {
        while self.received < PREFACE_BYTES {
            match receive_now(&self.socket, &mut self.preface[self.received..]) {
                Ok(0) => return Verdict::Drop("left before its preface was complete".into()),
                Ok(count) => self.received += count,
                Err(error) if is_passing(&error) => return Verdict::Wait,
                Err(error) => return Verdict::Drop(error.to_string()),
            }
        }
        match decode_preface(magic, &self.preface) {
            Ok(preface) => Verdict::Known(preface),
            Err(error) => {
                if error == WireError::Magic && self.preface.starts_with(b"ROM-") {
                    let [theirs, ours] = [&self.preface[..8], &magic].map(|magic| magic.escape_ascii());
                    let peer = self.address;
                    tracing::warn!(%peer, %theirs, %ours, "dropped: the peer is set to another fabric");
                }
                Verdict::Drop(error.to_string())
            }
        }
    }
}

struct Sorter {
    listener: TcpListener,
    config: StreamConfig,
    magic: Magic,
    shared: Arc<Shared>,
    stop: Arc<Signal>,
    strangers: VecDeque<Stranger>,
    /// The listening socket is left alone until then.
    back_off: Option<Instant>,
}

impl Sorter {
    fn run(mut self) {
        loop {
            let mut fds = vec![readable(&self.stop)];
            fds.extend(self.strangers.iter().map(|stranger| readable(&stranger.socket)));
            if self.back_off.is_none() {
                fds.push(readable(&self.listener));
            }
            let deadlines = self.strangers.iter().map(|stranger| stranger.deadline);
            if let Err(error) = wait(&mut fds, deadlines.chain(self.back_off).min()) {
                // Most likely too many descriptors for this process's limit, or too little memory: with
                // fewer to look at it may work again, and nobody else would accept for it.
                tracing::error!(%error, "the accepting thread cannot wait: it drops all strangers");
                drop::<Vec<PollFd<'_>>>(fds);
                self.strangers.clear();
                let until = Instant::now() + BACK_OFF;
                self.back_off = Some(until);
                let mut stop = [readable(&self.stop)];
                match wait(&mut stop, Some(until)) {
                    Ok(_) if is_ready(&stop[0]) => return,
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(BACK_OFF),
                }
                continue;
            }
            if is_ready(&fds[0]) {
                return;
            }
            let ready: Vec<bool> = fds.iter().skip(1).map(is_ready).collect();
            drop::<Vec<PollFd<'_>>>(fds);
            self.sort_strangers(&ready);
            self.back_off = self.back_off.filter(|until| Instant::now() < *until);
            if self.back_off.is_none() {
                self.accept_all();
            }
        }
    }

    fn sort_strangers(&mut self, ready: &[bool]) {
        for index in 0..self.strangers.len() {
            let Some(stranger) = self.strangers.pop_front() else { return };
            self.sort(stranger, ready.get(index) == Some(&true));
        }
    }

    /// Reads a stranger's preface, and lets it in, keeps or drops it.
    fn sort(&mut self, mut stranger: Stranger, is_readable: bool) {
        let verdict = if is_readable { stranger.read(self.magic) } else { Verdict::Wait };
        match verdict {
            Verdict::Wait if Instant::now() >= stranger.deadline => {
                tracing::debug!(peer = %stranger.address, "dropped: no preface in time");
            }
            Verdict::Wait => self.strangers.push_back(stranger),
            Verdict::Drop(why) => tracing::debug!(peer = %stranger.address, why, "dropped"),
            Verdict::Known(preface) => self.admit(stranger, &preface),
        }
    }

    fn admit(&self, stranger: Stranger, preface: &Preface) {
        if let Err(error) = configure(&stranger.socket, &self.config) {
            tracing::debug!(peer = %stranger.address, %error, "dropped");
            return;
        }
        match preface {
            Preface::Control if self.shared.listener_gone.load(Ordering::Acquire) => {}
            Preface::Control => {
                let mut ready = lock(&self.shared.ready);
                if ready.len() >= READY_MAX {
                    ready.pop_front();
                }
                ready.push_back((stranger.socket, stranger.address));
                self.shared.ready_grew.notify_one();
            }
            Preface::Data { stream, token } => {
                let mut all = lock(&self.shared.expected);
                let expected = all.iter_mut().find(|expected| is_same(&expected.token, token));
                let slot = expected.and_then(|expected| {
                    let slot = expected.streams.get_mut(usize::from(*stream))?;
                    slot.is_none().then_some((slot, &expected.arrived))
                });
                match slot {
                    Some((slot, arrived)) => {
                        *slot = Some(stranger.socket);
                        arrived.raise();
                    }
                    None => tracing::debug!(peer = %stranger.address, stream, "an unexpected data stream"),
                }
            }
        }
    }

    fn accept_all(&mut self) {
        // Bounded, so that a flood cannot keep the others from being read.
        for _ in 0..self.config.strangers_max.max(1) {
            let (socket, address) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) if is_passing(&error) => return,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    self.strangers.pop_front();
                    self.back_off = Some(Instant::now() + BACK_OFF);
                    return;
                }
            };
            let deadline = deadline_after(self.config.preface_timeout);
            // Most show their preface at once, and need not be kept at all.
            self.sort(Stranger { socket, address, preface: [0; PREFACE_BYTES], received: 0, deadline }, true);
            while self.strangers.len() > self.config.strangers_max {
                self.strangers.pop_front();
            }
        }
    }
}

/// Compares tokens in the same time wherever they differ.
fn is_same(left: &Token, right: &Token) -> bool {
    left.iter().zip(right).fold(0, |different, (left, right)| different | (left ^ right)) == 0
}

/// Listens on one port for connections that begin with a fabric's magic.
pub(crate) struct StreamListener {
    acceptor: Arc<Acceptor>,
    address: SocketAddr,
}

impl StreamListener {
    pub(crate) fn bind(
        address: SocketAddr,
        magic: Magic,
        config: &StreamConfig,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Io { what: format!("listening on {address}"), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(Signal::new().map_err(failed)?);
        let sorter = Sorter {
            listener,
            config: config.clone(),
            magic,
            shared: Arc::clone(&shared),
            stop: Arc::clone(&stop),
            strangers: VecDeque::new(),
            back_off: None,
        };
        let thread = config.spawn("rom-accept".into(), move || sorter.run()).map_err(failed)?;
        let acceptor = Arc::new(Acceptor { shared, stop, thread: Mutex::new(Some(thread)) });
        Ok(StreamListener { acceptor, address })
    }

    /// The next control connection, or `None` after `timeout`.
    pub(crate) fn accept(&mut self, timeout: Duration) -> Option<(TcpStream, SocketAddr)> {
        let shared = &self.acceptor.shared;
        let ready =
            shared.ready_grew.wait_timeout_while(lock(&shared.ready), timeout, |ready| ready.is_empty());
        ready.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    /// The accepting thread, for a channel that expects data streams.
    pub(crate) fn acceptor(&self) -> &Arc<Acceptor> {
        &self.acceptor
    }

    /// The address bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StreamListener {
    fn drop(&mut self) {
        self.acceptor.shared.listener_gone.store(true, Ordering::Release);
        lock(&self.acceptor.shared.ready).clear();
    }
}
