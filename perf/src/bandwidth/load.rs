//! What the client does with a connection: writes as fast as they complete, and single fences and
//! messages one at a time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::driver::anonymous_mapping;
use romulus_transport::{Endpoint, Event, Fabric, MessageBuffer, RegionId, Write};

use super::limits::plain;
use crate::exit::{Failure, OrFail};
use crate::histogram::Latencies;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// A marker with this bit asks the server for an acknowledgement.
const ACK: u64 = 1 << 62;
/// Batches of writes on their way at a time, a marker behind each.
const BATCHES: u64 = 2;

/// Whether a marker asks for an acknowledgement.
pub fn wants_ack(marker: u64) -> bool {
    marker & ACK != 0
}

/// What was moved in what time.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first post to the word that the last byte is placed.
    pub seconds: f64,
    /// Processor time of this process meanwhile, in seconds.
    pub cpu_seconds: f64,
}

impl Moved {
    /// Millions of bytes a second.
    pub fn mb_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }
}

/// Processor time of this process.
pub fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Where the writes of a measurement go, one after the other. No write begins where the one
/// before it ended, so that a fabric cannot make one of two.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    size_bytes: u64,
    places: u64,
    next: u64,
}

impl Places {
    /// Within `window_bytes`; one place where that has no room for three.
    pub fn new(size_bytes: u64, window_bytes: u64) -> Self {
        let places = window_bytes / size_bytes;
        Self { size_bytes, places: if places < 3 { 1 } else { places }, next: 0 }
    }

    /// Bytes that they cover.
    pub fn len_bytes(&self) -> u64 {
        self.size_bytes * self.places
    }

    /// The offset of the next write.
    pub fn next(&mut self) -> u64 {
        let place = self.next;
        // All even places, then all odd ones.
        self.next = match place + 2 {
            next if next < self.places => next,
            _ if place.is_multiple_of(2) && self.places > 1 => 1,
            _ => 0,
        };
        place * self.size_bytes
    }
}

/// A connection to a server's arena, with memory to write from.
pub struct Session {
    endpoint: Arc<dyn Endpoint>,
    region: RegionId,
    places: Places,
    message: MessageBuffer,
    marker: u64,
}

impl Session {
    /// Connects to a server that lends an arena of `places.len_bytes()`.
    pub fn connect(fabric: &dyn Fabric, address: SocketAddr, places: Places) -> Result<Self, Failure> {
        let mut channel = fabric.connect(address, PATIENCE).or_fail(format!("connecting to {address}"))?;
        let offer = channel.offer().or_fail("offering")?;
        channel.send(&offer).or_fail("offering")?;
        let answer = channel.receive(PATIENCE).or_fail("the server's answer")?;
        let endpoint = channel.establish(Some(&answer), PATIENCE).or_fail("establishing")?;
        let memory = anonymous_mapping(places.len_bytes() as usize).or_fail("mapping memory")?;
        plain::touch(&memory);
        let region = endpoint.register(memory).or_fail("registering memory")?;
        Ok(Self { endpoint, region, places, message: MessageBuffer::default(), marker: 0 })
    }

    fn write(&mut self) -> Write {
        let at = self.places.next();
        Write { region: self.region, local_offset: at, remote_offset: at, len_bytes: self.places.size_bytes }
    }

    /// Posts `count` writes and a marker behind them; returns it.
    fn post(&mut self, count: u64, ack: bool, writes: &mut Vec<Write>) -> Result<u64, Failure> {
        writes.clear();
        for _ in 0..count {
            writes.push(self.write());
        }
        self.endpoint.write(writes).or_fail("writing")?;
        self.marker += 1;
        let marker = self.marker | if ack { ACK } else { 0 };
        self.endpoint.mark(marker).or_fail("marking")?;
        Ok(marker)
    }

    fn expect_message(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.endpoint.next_event(&mut self.message, PATIENCE).or_fail("waiting for the server")? {
                Event::Message => return Ok(()),
                Event::Closed(reason) => {
                    return Err(Failure::failed(format!("the connection ended: {reason}")));
                }
                _ if Instant::now() < deadline => {}
                event => {
                    return Err(Failure::failed(format!("no answer within {PATIENCE:?}, last {event:?}")));
                }
            }
        }
    }

    /// Writes for so long, with `depth` writes on their way at a time.
    pub fn bandwidth(&mut self, depth: u64, time: Duration) -> Result<Moved, Failure> {
        let batch = (depth / BATCHES).max(1);
        let mut writes = Vec::with_capacity(batch as usize);
        let mut on_their_way = VecDeque::new();
        let mut posted = 0;
        let (cpu, begun) = (cpu_seconds(), Instant::now());
        loop {
            let last = begun.elapsed() >= time;
            on_their_way.push_back(self.post(batch, last, &mut writes)?);
            posted += batch;
            if last {
                break;
            }
            while on_their_way.len() as u64 >= BATCHES {
                let oldest = on_their_way[0];
                let done = self.endpoint.completed(oldest, PATIENCE).or_fail("waiting for completions")?;
                let Some(position) = on_their_way.iter().position(|marker| *marker == done) else {
                    return Err(Failure::failed(format!("nothing completed within {PATIENCE:?}")));
                };
                on_their_way.drain(..=position);
            }
        }
        self.expect_message()?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Moved { bytes: posted * self.places.size_bytes, seconds, cpu_seconds: cpu_seconds() - cpu })
    }

    /// One write, its fence and the server's acknowledgement, again and again: what an epoch's
    /// commit waits for at the least.
    pub fn fences(&mut self, time: Duration) -> Result<Latencies, Failure> {
        let mut writes = Vec::with_capacity(1);
        self.repeat(time, |session| {
            session.post(1, true, &mut writes)?;
            session.expect_message()
        })
    }

    /// A message there and back, again and again.
    pub fn messages(&mut self, time: Duration) -> Result<Latencies, Failure> {
        self.repeat(time, |session| {
            session.endpoint.send(b"there and back").or_fail("sending")?;
            session.expect_message()
        })
    }

    fn repeat(
        &mut self,
        time: Duration,
        mut once: impl FnMut(&mut Self) -> Result<(), Failure>,
    ) -> Result<Latencies, Failure> {
        let mut latencies = Latencies::default();
        let begun = Instant::now();
        while begun.elapsed() < time || latencies.count() == 0 {
            let before = Instant::now();
            once(self)?;
            latencies.record(before.elapsed());
        }
        Ok(latencies)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.endpoint.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_cover_the_window_and_never_touch_in_order() {
        for window in [1, 2, 3, 4, 5, 6, 100, 101] {
            let mut places = Places::new(10, window * 10);
            let count = if window < 3 { 1 } else { window };
            assert_eq!(places.len_bytes(), count * 10);
            let mut seen = vec![0; count as usize];
            let mut last = None;
            for _ in 0..3 * count {
                let at = places.next();
                seen[(at / 10) as usize] += 1;
                assert_ne!(last, Some(at), "window {window}: a write would continue the one before");
                last = Some(at + 10);
            }
            assert_eq!(seen, vec![3; count as usize], "window {window}");
        }
    }
}
