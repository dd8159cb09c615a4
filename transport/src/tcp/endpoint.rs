//! An established connection over TCP.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFd;

use super::sender::Poster;
use super::wire::{ControlKind, MAX_STREAMS};
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Endpoint, Event, MAX_MESSAGE_BYTES, MessageBuffer, RegionId, Write};
use crate::memory::Memory;
use crate::stream::control::{Frame, Reader, Writer, is_passing};
use crate::stream::fence::Fences;
use crate::stream::link::{Link, lock, reason_of};
use crate::stream::socket::{deadline_after, hung_up, is_ready, readable, wait};

/// What has been received but not handed out.
struct Inbox {
    reader: Reader,
    /// The control stream has ended.
    ended: bool,
    /// The peer said that it closes on purpose.
    goodbye: bool,
}

pub(super) struct TcpEndpoint {
    link: Arc<Link>,
    fences: Option<Arc<Fences>>,
    inbox: Mutex<Inbox>,
    writer: Arc<Mutex<Writer>>,
    poster: Mutex<Poster>,
    bytes_written: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl TcpEndpoint {
    /// `fences` are the responder's; the initiator posts and has none.
    pub(super) fn new(
        link: Arc<Link>,
        reader: Reader,
        writer: Arc<Mutex<Writer>>,
        poster: Poster,
        fences: Option<Arc<Fences>>,
    ) -> Self {
        TcpEndpoint {
            link,
            fences,
            inbox: Mutex::new(Inbox { reader, ended: false, goodbye: false }),
            writer,
            poster: Mutex::new(poster),
            bytes_written: AtomicU64::new(0),
            threads: Mutex::default(),
        }
    }

    /// Hands over a thread to be joined by `close`.
    pub(super) fn adopt(&self, thread: JoinHandle<()>) {
        lock(&self.threads).push(thread);
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match self.link.end_reason() {
            Some(reason) => Err(reason.into()),
            None => Ok(()),
        }
    }

    fn post(&self, writes: &[Write], marker: Option<u64>) -> Result<(), TransportError> {
        self.check_open()?;
        let written = lock(&self.poster).post(&self.link, writes, marker)?;
        self.bytes_written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }

    /// What can be handed out without waiting.
    fn take_event(&self, inbox: &mut Inbox, message: &mut MessageBuffer) -> Option<Event> {
        if self.link.is_closed() {
            return self.link.end_reason().map(Event::Closed);
        }
        if let Some(marker) = self.fences.as_ref().and_then(|fences| fences.take()) {
            return Some(Event::Fenced { marker });
        }
        loop {
            match inbox.reader.next_frame(MAX_MESSAGE_BYTES) {
                Ok(Some(Frame::Message(bytes))) => {
                    message.room()[..bytes.len()].copy_from_slice(bytes);
                    message.set_len_bytes(bytes.len());
                    return Some(Event::Message);
                }
                Ok(Some(Frame::Heartbeat)) => {}
                Ok(Some(Frame::Goodbye)) => inbox.goodbye = true,
                Ok(None) => return None,
                Err(error) => {
                    // What follows cannot be told apart any more.
                    inbox.ended = true;
                    inbox.reader = Reader::new();
                    self.link.end(CloseReason::Violation(error.to_string()));
                    return None;
                }
            }
        }
    }

    /// Reads the control stream, without waiting.
    fn fill(&self, inbox: &mut Inbox) {
        let reason = match inbox.reader.fill(&self.link.control) {
            Ok(0) => CloseReason::Peer("its end of the control stream went away".into()),
            Ok(_) => return,
            Err(error) if is_passing(&error) => return,
            Err(error) => reason_of(&error, "receiving messages"),
        };
        inbox.ended = true;
        self.link.lose(reason);
    }

    /// Whether everything that was received before the end is in the queues.
    fn is_drained(&self, inbox: &Inbox) -> bool {
        inbox.ended && self.link.receivers_finished()
    }

    /// The end, once the queues are empty.
    fn finish(&self, inbox: &Inbox) -> CloseReason {
        let lost = self.link.lost().map(|(reason, _)| reason);
        let goodbye = inbox.goodbye.then(|| CloseReason::Peer("closed".into()));
        self.link.end(goodbye.or(lost).unwrap_or(CloseReason::Local))
    }

    /// Waits until something may have happened, and reads the control stream if it did there.
    fn wait_and_fill(&self, inbox: &mut Inbox, mut deadline: Instant) -> Result<(), TransportError> {
        let link = &*self.link;
        let lost = link.lost();
        let has_ended = link.end_reason().is_some();
        if let (Some((_, linger)), false) = (&lost, has_ended) {
            deadline = deadline.min(*linger);
        }
        let mut fds: [PollFd<'_>; MAX_STREAMS + 2] = std::array::from_fn(|_| readable(&link.wake));
        let mut used = 1;
        if !inbox.ended {
            fds[1] = readable(&link.control);
            used = 2;
        }
        let first_data = used;
        if self.fences.is_none() && lost.is_none() && !has_ended {
            for socket in &link.data {
                fds[used] = hung_up(socket);
                used += 1;
            }
        }
        wait(&mut fds[..used], Some(deadline))
            .map_err(|source| TransportError::Io { what: "waiting for events".into(), source })?;
        if is_ready(&fds[0]) {
            link.wake.clear();
        }
        if let Some(stream) = fds[first_data..used].iter().position(is_ready) {
            link.lose(CloseReason::Peer(format!("data stream {stream} has ended")));
        }
        if !inbox.ended && is_ready(&fds[1]) {
            self.fill(inbox);
        }
        if let (Some((reason, linger)), false) = (lost, has_ended)
            && Instant::now() >= linger
        {
            link.end(reason);
        }
        Ok(())
    }
}

impl Endpoint for TcpEndpoint {
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError> {
        lock(&self.poster).register(memory)
    }

    fn write(&self, writes: &[Write]) -> Result<(), TransportError> {
        self.post(writes, None)
    }

    fn write_and_mark(&self, writes: &[Write], marker: u64) -> Result<(), TransportError> {
        self.post(writes, Some(marker))
    }

    fn write_now(&self, writes: &[Write]) -> Result<usize, TransportError> {
        self.check_open()?;
        let mut poster = match self.poster.try_lock() {
            Ok(poster) => poster,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(0),
        };
        let (taken, bytes) = poster.write_now(&self.link, writes)?;
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        Ok(taken)
    }

    fn mark(&self, marker: u64) -> Result<(), TransportError> {
        self.post(&[], Some(marker))
    }

    fn completed(&self, marker: u64, _timeout: Duration) -> Result<u64, TransportError> {
        // The kernel has copied whatever `write` and `mark` returned from.
        let last = lock(&self.poster).last_marker();
        if last != marker {
            self.check_open()?;
        }
        Ok(last)
    }

    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_MESSAGE_BYTES {
            let what = format!("a message of {} bytes, at most {MAX_MESSAGE_BYTES}", message.len());
            return Err(TransportError::Invalid(what));
        }
        self.check_open()?;
        let sent = lock(&self.writer).send(&self.link.control, message, &self.link.ended, None);
        sent.map_err(|error| {
            TransportError::Closed(match self.link.end_reason() {
                Some(reason) => reason,
                None => self.link.end(reason_of(&error, "sending a message")),
            })
        })
    }

    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError> {
        let deadline = deadline_after(timeout);
        let mut inbox = lock(&self.inbox);
        let mut last_look = false;
        loop {
            // Looked at before the queues: what comes into them later is not missed.
            let is_drained = self.is_drained(&inbox);
            if let Some(event) = self.take_event(&mut inbox, message) {
                return Ok(event);
            }
            if is_drained {
                return Ok(Event::Closed(self.finish(&inbox)));
            }
            if last_look {
                return Ok(Event::Idle);
            }
            self.wait_and_fill(&mut inbox, deadline)?;
            last_look = Instant::now() >= deadline;
        }
    }

    fn close(&self) {
        self.link.set_closed();
        if self.link.end_reason().is_none()
            && let Ok(mut writer) = self.writer.try_lock()
        {
            // The peer learns of the end anyway, only not that it was on purpose.
            let _ = writer.send_if_room(&self.link.control, ControlKind::Goodbye, &[]);
        }
        self.link.end(CloseReason::Local);
        // Held while joining, so that a second caller returns no sooner.
        let mut threads = lock(&self.threads);
        for thread in threads.drain(..) {
            // A panic there has been reported by the panic hook already.
            let _ = thread.join();
        }
    }

    fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    fn streams(&self) -> usize {
        self.link.data.len()
    }
}

impl Drop for TcpEndpoint {
    fn drop(&mut self) {
        self.close();
        self.link.discard_received();
    }
}
