//! What the threads of one established connection share: its sockets, and how it ends.

use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::socket::{Signal, receive_now};
use crate::error::CloseReason;

/// How long the other streams may go on after one of them has ended, so that what the peer sent
/// before its end is still received.
pub(crate) const LINGER: Duration = Duration::from_millis(200);

/// Locks, also after a panic elsewhere: no state here is left half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Fate {
    /// A stream has ended by itself.
    lost: Option<(CloseReason, Instant)>,
    /// The connection has ended.
    ended: Option<CloseReason>,
}

/// A connection's sockets and its end.
///
/// It ends in up to three steps. *Lost*: a stream has ended, the others linger. *Ended*: all
/// sockets are shut down, what the kernel has received can still be read. *Closed*: nobody reads
/// any more.
#[derive(Debug)]
pub(crate) struct Link {
    pub control: TcpStream,
    pub data: Vec<TcpStream>,
    /// Raised when `next_event` should look again.
    pub wake: Signal,
    /// Raised for good when the connection has ended.
    pub ended: Signal,
    fate: Mutex<Fate>,
    is_lost: AtomicBool,
    is_ended: AtomicBool,
    is_closed: AtomicBool,
    receivers: AtomicUsize,
}

impl Link {
    pub(crate) fn new(control: TcpStream, data: Vec<TcpStream>) -> io::Result<Self> {
        Ok(Link {
            control,
            data,
            wake: Signal::new()?,
            ended: Signal::new()?,
            fate: Mutex::default(),
            is_lost: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            receivers: AtomicUsize::new(0),
        })
    }

    /// A stream has ended by itself.
    pub(crate) fn lose(&self, reason: CloseReason) {
        lock(&self.fate).lost.get_or_insert_with(|| (reason, Instant::now()));
        self.is_lost.store(true, Ordering::Release);
        self.wake.raise();
    }

    /// When the streams that are left must end too, and why.
    pub(crate) fn lost(&self) -> Option<(CloseReason, Instant)> {
        if !self.is_lost.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.fate).lost.clone().map(|(reason, since)| (reason, since + LINGER))
    }

    /// Ends the connection; the first reason stays. Shuts all sockets down, which wakes every
    /// thread that waits on one.
    pub(crate) fn end(&self, reason: CloseReason) -> CloseReason {
        let reason = lock(&self.fate).ended.get_or_insert(reason).clone();
        self.is_ended.store(true, Ordering::Release);
        for socket in [&self.control].into_iter().chain(&self.data) {
            // It fails when the peer has gone already, which is as good. It waits for a thread
            // that is in the middle of receiving, so the control stream comes first.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        self.ended.raise();
        self.wake.raise();
        reason
    }

    /// Whether the connection has ended.
    #[cfg(feature = "rdma")]
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire)
    }

    /// Why the connection has ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<CloseReason> {
        if !self.is_ended.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.fate).ended.clone()
    }

    /// Empties the control socket, as the last thing: with unread bytes in it, the kernel would
    /// answer the last close with a reset that can overtake the goodbye.
    pub(crate) fn discard_received(&self) {
        let mut bytes = [0; 4096];
        for _ in 0..64 {
            match receive_now(&self.control, &mut bytes) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }

    /// From now on nobody reads what was received.
    pub(crate) fn set_closed(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// A receiving thread is about to start.
    pub(crate) fn receiver_starts(&self) {
        self.receivers.fetch_add(1, Ordering::AcqRel);
    }

    /// A receiving thread will place nothing any more.
    pub(crate) fn receiver_finished(&self) {
        self.receivers.fetch_sub(1, Ordering::AcqRel);
        self.wake.raise();
    }

    /// Whether all receiving threads have finished.
    pub(crate) fn receivers_finished(&self) -> bool {
        self.receivers.load(Ordering::Acquire) == 0
    }
}

/// The reason that a failed system call on a socket stands for.
pub(crate) fn reason_of(error: &io::Error, what: &str) -> CloseReason {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            CloseReason::Peer(format!("{what}: {error}"))
        }
        _ => CloseReason::Failed(format!("{what}: {error}")),
    }
}
