//! A fabric that stops its own process in the middle of an epoch, as `kill -STOP` at the worst
//! moment would: half of the epoch's writes are posted, the others only after SIGCONT, when the
//! process is a zombie that the backup has long replaced. What becomes of those is kept.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use romulus_checkpoint::PAGE_BYTES;
use romulus_transport::{
    Arena, Channel, CloseReason, Endpoint, Event, Fabric, Listener, Memory, MessageBuffer, RegionId,
    TransportError, Write,
};
use serde::Serialize;

/// Errors that are kept.
const MOST_ERRORS: usize = 8;

/// What the zombie met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Zombie {
    /// Bytes posted before the stop.
    pub bytes_before: u64,
    /// Bytes of the same epoch posted after it.
    pub bytes_after: u64,
    /// What the fabric said to those, or to the wait for their completion, and to what followed;
    /// the first of each kind.
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
            let text = format!("{what}: {error}");
            self.update(|zombie| {
                if zombie.errors.len() < MOST_ERRORS && !zombie.errors.contains(&text) {
                    zombie.errors.push(text);
                }
            });
        }
        result
    }

    /// Stops this process; returns once somebody has sent SIGCONT.
    fn stop(&self, before: u64, after: u64) {
        self.stopped.store(true, Ordering::Release);
        self.update(|zombie| (zombie.bytes_before, zombie.bytes_after) = (before, after));
        println!("stopping in epoch {} after {before} of {} bytes", self.epoch, before + after);
        // To this very thread, which so does not run on for a moment as it may with `kill`.
        if let Err(error) = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP) {
            tracing::error!(%error, "stopping this process");
        }
    }
}

/// The writes up to half of all bytes, and the rest; a write across the border is cut at a page.
fn halves(writes: &[Write]) -> (Vec<Write>, Vec<Write>) {
    let half = bytes_of(writes) / 2;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut posted = 0;
    for write in writes {
        let first_bytes = (half.saturating_sub(posted) / PAGE_BYTES * PAGE_BYTES).min(write.len_bytes);
        posted += write.len_bytes;
        let rest = Write {
            local_offset: write.local_offset + first_bytes,
            remote_offset: write.remote_offset + first_bytes,
            len_bytes: write.len_bytes - first_bytes,
            ..*write
        };
        before.extend((first_bytes > 0).then_some(Write { len_bytes: first_bytes, ..*write }));
        after.extend((rest.len_bytes > 0).then_some(rest));
    }
    (before, after)
}

fn bytes_of(writes: &[Write]) -> u64 {
    writes.iter().map(|write| write.len_bytes).sum()
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
        // An epoch may come in several calls, of which some have nothing to cut in half.
        if !self.halt.is_due() || bytes_of(writes) < 2 * PAGE_BYTES {
            return self.halt.note("writing", self.inner.write(writes));
        }
        let (before, after) = halves(writes);
        self.inner.write(&before)?;
        self.halt.stop(bytes_of(&before), bytes_of(&after));
        self.halt.note("writing the other half", self.inner.write(&after))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_all_of_the_writes_in_order() {
        let write = |at: u64, pages: u64| Write {
            region: RegionId(1),
            local_offset: at,
            remote_offset: 10 * at,
            len_bytes: pages * PAGE_BYTES,
        };
        for lengths in [vec![], vec![1], vec![2], vec![800], vec![1; 7], vec![5, 1, 1, 9], vec![9, 1]] {
            let writes: Vec<_> = lengths.iter().map(|pages| write(pages << 30, *pages)).collect();
            let (before, after) = halves(&writes);
            let (bytes, first) = (bytes_of(&writes), bytes_of(&before));
            assert_eq!(first + bytes_of(&after), bytes);
            assert!(first <= bytes / 2 && bytes / 2 - first < PAGE_BYTES, "{lengths:?}: {first}");
            let both = before.iter().chain(&after);
            assert!(both.clone().all(|write| write.len_bytes > 0));
            let mut at = writes.iter();
            let mut current: Option<Write> = None;
            for part in both {
                let whole = current.take().unwrap_or_else(|| *at.next().unwrap());
                assert_eq!(
                    (part.local_offset, part.remote_offset),
                    (whole.local_offset, whole.remote_offset)
                );
                current = (part.len_bytes < whole.len_bytes).then(|| Write {
                    local_offset: whole.local_offset + part.len_bytes,
                    remote_offset: whole.remote_offset + part.len_bytes,
                    len_bytes: whole.len_bytes - part.len_bytes,
                    ..whole
                });
            }
            assert!(current.is_none() && at.next().is_none());
        }
    }
}
