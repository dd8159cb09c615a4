//! An established connection over a simulated network.

use std::time::Duration;

use super::Side;
use super::connection::{Arrived, Connection, End};
use super::fabric::Handle;
use super::lane::{Fragment, Source};
use super::random::Random;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Endpoint, Event, MAX_MESSAGE_BYTES, MessageBuffer, RegionId, Write};
use crate::memory::Memory;

pub(super) struct SimEndpoint {
    handle: Handle,
}

impl SimEndpoint {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

fn check_open(end: &End) -> Result<(), TransportError> {
    match &end.ended {
        Some(reason) => Err(reason.clone().into()),
        None => Ok(()),
    }
}

/// Refuses a write that leaves its region or the peer's arena.
fn check_write(connection: &Connection, side: Side, write: &Write) -> Result<(), TransportError> {
    let region = connection.end(side).regions.get(write.region.0 as usize);
    let region = region.ok_or_else(|| TransportError::Invalid(format!("unknown {:?}", write.region)))?;
    let inside = |offset: u64, limit: u64| {
        offset.checked_add(write.len_bytes).is_some_and(|end| offset <= limit && end <= limit)
    };
    if !inside(write.local_offset, region.len_bytes() as u64) {
        return Err(TransportError::Invalid(format!("{write:?} leaves its region of {region:?}")));
    }
    let chunks = connection.chunks.as_deref().filter(|_| side == Side::Initiator).unwrap_or_default();
    let fits = |(base, len_bytes): &(u64, u64)| {
        write.remote_offset.checked_sub(*base).is_some_and(|offset| inside(offset, *len_bytes))
    };
    if !chunks.iter().any(fits) {
        return Err(TransportError::Invalid(format!("{write:?} leaves the peer's arena or one chunk of it")));
    }
    Ok(())
}

/// Puts a write on one random stream, or its two parts on two.
fn post(end: &mut End, random: &mut Random, write: &Write) {
    let memory =
        end.regions[write.region.0 as usize].part(write.local_offset as usize, write.len_bytes as usize);
    let batch = end.count_fragment();
    let mut fragment = Fragment { source: Source::Local(memory), remote_offset: write.remote_offset, batch };
    let streams = end.streams.len();
    if fragment.len_bytes() > 1 && random.chance(1, 4) {
        let rest = fragment.split_off(1 + random.index(fragment.len_bytes() - 1));
        end.count_fragment();
        if !end.dead {
            end.streams[random.index(streams)].post(rest);
        }
    }
    if !end.dead {
        end.streams[random.index(streams)].post(fragment);
    }
}

impl Endpoint for SimEndpoint {
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError> {
        self.handle.with(|connection, _| {
            let end = connection.end_mut(self.handle.side);
            end.regions.push(memory);
            Ok(RegionId(end.regions.len() as u32 - 1))
        })
    }

    fn write(&self, writes: &[Write]) -> Result<(), TransportError> {
        let side = self.handle.side;
        self.handle.with(|connection, random| {
            check_open(connection.end(side))?;
            for write in writes {
                check_write(connection, side, write)?;
            }
            let end = connection.end_mut(side);
            for write in writes.iter().filter(|write| write.len_bytes > 0) {
                post(end, random, write);
                end.bytes_written += write.len_bytes;
            }
            Ok(())
        })
    }

    fn mark(&self, marker: u64) -> Result<(), TransportError> {
        let side = self.handle.side;
        if side == Side::Responder {
            return Err(TransportError::Invalid("only the initiator marks".into()));
        }
        self.handle.with(|connection, _| {
            let end = connection.end_mut(side);
            check_open(end)?;
            if marker == 0 || marker == u64::MAX {
                return Err(TransportError::Invalid(format!("marker {marker} is reserved")));
            }
            if end.is_pending(marker) {
                return Err(TransportError::Invalid(format!("marker {marker} is still on its way")));
            }
            end.count_marker(marker);
            if !end.dead {
                end.streams.iter_mut().for_each(|stream| stream.mark(marker));
            }
            Ok(())
        })
    }

    fn completed(&self, marker: u64, timeout: Duration) -> Result<u64, TransportError> {
        let (id, side) = (self.handle.id, self.handle.side);
        let reached = self.handle.network.wait(timeout, |state| {
            let end = state.connections.get(&id)?.end(side);
            match check_open(end) {
                _ if marker == end.completed => Some(Ok(marker)),
                Ok(()) if !end.is_pending(marker) => Some(Ok(end.completed)),
                Err(error) => Some(Err(error)),
                Ok(()) => None,
            }
        });
        reached.unwrap_or_else(|| self.handle.with(|connection, _| Ok(connection.end(side).completed)))
    }

    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(TransportError::Invalid(format!("a message of {} bytes", message.len())));
        }
        self.handle.with(|connection, _| {
            let end = connection.end_mut(self.handle.side);
            check_open(end)?;
            if !end.dead {
                end.messages.queue.push_back(message.to_vec());
            }
            Ok(())
        })
    }

    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError> {
        let (id, side) = (self.handle.id, self.handle.side);
        let event = self.handle.network.wait(timeout, |state| {
            let end = state.connections.get_mut(&id)?.end_mut(side);
            if end.closed {
                end.arrived.clear();
            }
            match end.arrived.pop_front() {
                Some(Arrived::Fenced(marker)) => Some(Event::Fenced { marker }),
                Some(Arrived::Message(bytes)) => Some(take_message(message, &bytes)),
                None => end.ended.clone().map(Event::Closed),
            }
        });
        if let Some(Event::Closed(reason @ CloseReason::Violation(_))) = &event {
            self.handle.with(|connection, _| {
                connection.learn(side, reason.clone());
                Ok(())
            })?;
        }
        Ok(event.unwrap_or(Event::Idle))
    }

    fn close(&self) {
        self.handle.network.change(|state| state.close(self.handle.id, self.handle.side));
    }

    fn bytes_written(&self) -> u64 {
        let side = self.handle.side;
        self.handle.with(|connection, _| Ok(connection.end(side).bytes_written)).unwrap_or(0)
    }

    fn streams(&self) -> usize {
        let side = self.handle.side;
        self.handle.with(|connection, _| Ok(connection.end(side).streams.len())).unwrap_or(0)
    }
}

/// Hands a message over. One that does not fit was sent by a peer that broke the rules.
fn take_message(into: &mut MessageBuffer, bytes: &[u8]) -> Event {
    let Some(room) = into.room().get_mut(..bytes.len()) else {
        let what = format!("a message of {} bytes", bytes.len());
        return Event::Closed(CloseReason::Violation(what));
    };
    room.copy_from_slice(bytes);
    into.set_len_bytes(bytes.len());
    Event::Message
}
