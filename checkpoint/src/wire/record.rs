//! Recordings of sessions: every message in both directions, every commit slot without its state,
//! every marker, appended to a file that `scripts/verify_protocol.py` checks against
//! `docs/protocol.md` (section "Recordings" describes the format).
//!
//! A recorder is made only when somebody asks for one. It keeps whole records in a buffer and
//! appends them to the file in large writes; it never fails its caller: after an error, or beyond
//! its length limit, it says so once in the log and records nothing more.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use romulus_transport::Memory;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::slot;
use crate::ids::ConnectionNumber;

/// First bytes of a recording.
const MAGIC: [u8; 4] = *b"RMLR";
/// Version of the recording's format.
const FORMAT_VERSION: u16 = 1;
/// Most bytes of a record's payload.
pub const MAX_PAYLOAD_BYTES: usize = 512 << 20;
/// Records are appended to the file in writes of about this length.
const BUFFER_BYTES: usize = 256 * 1024;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FileHeaderBytes {
    magic: [u8; 4],
    version: U16,
    role: U16,
    reserved: [u8; 4],
    header_checksum: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RecordHeaderBytes {
    kind: U16,
    reserved: [u8; 2],
    len_bytes: U32,
    time_ns: U64,
    payload_checksum: U32,
    header_checksum: U32,
}

const _: () = assert!(size_of::<FileHeaderBytes>() == 16);
const _: () = assert!(size_of::<RecordHeaderBytes>() == 24);

/// On which host a recording was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The primary.
    Primary,
    /// The backup.
    Backup,
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A message this host is about to send: its bytes.
    Sent,
    /// A message this host received: its bytes.
    Received,
    /// A commit slot, written here (primary) or read here (backup): the CRC-32 of its state as
    /// it is in memory, four zeros, header, extents and padding.
    Slot,
    /// A marker posted (primary) or seen on every stream (backup): its number.
    Marker,
    /// A connection begins: its number (0: not known yet).
    Connected,
    /// The connection has ended. Empty.
    Disconnected,
    /// The recording reached its length limit and ends here. Empty.
    LimitReached,
}

impl RecordKind {
    const ALL: [RecordKind; 7] = [
        RecordKind::Sent,
        RecordKind::Received,
        RecordKind::Slot,
        RecordKind::Marker,
        RecordKind::Connected,
        RecordKind::Disconnected,
        RecordKind::LimitReached,
    ];

    fn number(self) -> u16 {
        match self {
            RecordKind::Sent => 1,
            RecordKind::Received => 2,
            RecordKind::Slot => 3,
            RecordKind::Marker => 4,
            RecordKind::Connected => 5,
            RecordKind::Disconnected => 6,
            RecordKind::LimitReached => 7,
        }
    }
}

/// Writes a recording. Callers share it by reference; records keep the order of the calls.
#[derive(Debug)]
pub struct Recorder {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    buffer: Vec<u8>,
    left_bytes: u64,
    ended: bool,
}

impl Recorder {
    /// Creates (or empties) the file at `path`. The recording ends at `limit_bytes`.
    pub fn create(path: &Path, role: Role, limit_bytes: u64) -> io::Result<Self> {
        let mut header = FileHeaderBytes {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            role: match role {
                Role::Primary => 1.into(),
                Role::Backup => 2.into(),
            },
            reserved: [0; 4],
            header_checksum: 0.into(),
        };
        header.header_checksum = crc32fast::hash(&header.as_bytes()[..12]).into();
        let mut buffer = Vec::with_capacity(BUFFER_BYTES + 64 * 1024);
        buffer.extend_from_slice(header.as_bytes());
        let inner = Inner {
            file: File::create(path)?,
            left_bytes: limit_bytes.saturating_sub(buffer.len() as u64),
            buffer,
            ended: false,
        };
        Ok(Self { started: Instant::now(), inner: Mutex::new(inner) })
    }

    /// A connection begins.
    pub fn connected(&self, connection: ConnectionNumber) {
        self.append(RecordKind::Connected, &[&connection.0.to_le_bytes()]);
    }

    /// The connection has ended.
    pub fn disconnected(&self) {
        self.append(RecordKind::Disconnected, &[]);
    }

    /// A message is about to be sent. Call before sending it, so that an answer cannot come
    /// first in the recording.
    pub fn sent(&self, message: &[u8]) {
        self.append(RecordKind::Sent, &[message]);
    }

    /// A message was received.
    pub fn received(&self, message: &[u8]) {
        self.append(RecordKind::Received, &[message]);
    }

    /// A marker was posted, or was seen on every stream.
    pub fn marker(&self, marker: u64) {
        self.append(RecordKind::Marker, &[&marker.to_le_bytes()]);
    }

    /// The slot in `memory`, state included, is complete: record what it says. A slot whose
    /// lengths make no sense is recorded as its header alone.
    pub fn slot(&self, memory: &Memory) {
        let len_bytes = memory.len_bytes();
        let mut bytes = vec![0; slot::HEADER_BYTES.min(len_bytes)];
        memory.read(0, &mut bytes);
        let (state_offset, state_bytes) = slot::claimed_state(&bytes)
            .filter(|(offset, state)| offset.saturating_add(*state) <= len_bytes as u64)
            .map_or((bytes.len(), 0), |(offset, state)| (offset as usize, state as usize));
        bytes.resize(state_offset, 0);
        let copied = slot::HEADER_BYTES.min(state_offset);
        memory.read(copied, &mut bytes[copied..]);
        let checksum = slot::checksum(memory, state_offset, state_bytes);
        self.append(RecordKind::Slot, &[&checksum.to_le_bytes(), &[0; 4], &bytes]);
    }

    /// Writes out what is buffered.
    pub fn flush(&self) {
        self.lock().flush();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, kind: RecordKind, payload: &[&[u8]]) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        let time_ns = self.started.elapsed().as_nanos() as u64;
        let len_bytes: usize = payload.iter().map(|part| part.len()).sum();
        let whole = (size_of::<RecordHeaderBytes>() + len_bytes) as u64;
        let end_record = size_of::<RecordHeaderBytes>() as u64;
        if whole + end_record > inner.left_bytes || len_bytes > MAX_PAYLOAD_BYTES {
            tracing::warn!("the recording has reached its length limit and ends here");
            inner.put(RecordKind::LimitReached, time_ns, &[]);
            inner.flush();
            inner.ended = true;
            return;
        }
        inner.put(kind, time_ns, payload);
        inner.left_bytes -= whole;
        if inner.buffer.len() >= BUFFER_BYTES {
            inner.flush();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Inner {
    fn put(&mut self, kind: RecordKind, time_ns: u64, payload: &[&[u8]]) {
        let mut hasher = crc32fast::Hasher::new();
        payload.iter().for_each(|part| hasher.update(part));
        let len_bytes: usize = payload.iter().map(|part| part.len()).sum();
        let mut header = RecordHeaderBytes {
            kind: kind.number().into(),
            reserved: [0; 2],
            len_bytes: (len_bytes as u32).into(),
            time_ns: time_ns.into(),
            payload_checksum: hasher.finalize().into(),
            header_checksum: 0.into(),
        };
        header.header_checksum = crc32fast::hash(&header.as_bytes()[..20]).into();
        self.buffer.extend_from_slice(header.as_bytes());
        payload.iter().for_each(|part| self.buffer.extend_from_slice(part));
    }

    fn flush(&mut self) {
        if self.ended {
            return;
        }
        if let Err(error) = self.file.write_all(&self.buffer) {
            tracing::warn!(%error, "the recording could not be written and ends here");
            self.ended = true;
        }
        self.buffer.clear();
    }
}

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it holds.
    pub kind: RecordKind,
    /// Nanoseconds since the recording began.
    pub time_ns: u64,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Reads a recording record by record, for tools and tests.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    role: Role,
}

impl<R: Read> Reader<R> {
    /// Reads and checks the file's header.
    pub fn new(mut source: R) -> io::Result<Self> {
        let mut bytes = [0; size_of::<FileHeaderBytes>()];
        source.read_exact(&mut bytes)?;
        let header = FileHeaderBytes::read_from_bytes(&bytes).map_err(|_| invalid("file header"))?;
        if header.magic != MAGIC || header.version.get() != FORMAT_VERSION || header.reserved != [0; 4] {
            return Err(invalid("file header: no recording of this format version"));
        }
        if header.header_checksum.get() != crc32fast::hash(&bytes[..12]) {
            return Err(invalid("file header: checksum"));
        }
        let role = match header.role.get() {
            1 => Role::Primary,
            2 => Role::Backup,
            _ => return Err(invalid("file header: role")),
        };
        Ok(Self { source, role })
    }

    /// Where the recording was made.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The next record; `None` at the end of the file.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        let mut bytes = [0; size_of::<RecordHeaderBytes>()];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.source.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let header = RecordHeaderBytes::read_from_bytes(&bytes).map_err(|_| invalid("record header"))?;
        if header.header_checksum.get() != crc32fast::hash(&bytes[..20]) || header.reserved != [0; 2] {
            return Err(invalid("record header: checksum or reserved bytes"));
        }
        let number = header.kind.get();
        let Some(kind) = RecordKind::ALL.into_iter().find(|kind| kind.number() == number) else {
            return Err(invalid("record header: kind"));
        };
        let len_bytes = header.len_bytes.get() as usize;
        if len_bytes > MAX_PAYLOAD_BYTES {
            return Err(invalid("record header: length"));
        }
        // Grows with what is really there, not with what the length claims.
        let mut payload = Vec::new();
        if self.source.by_ref().take(len_bytes as u64).read_to_end(&mut payload)? != len_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if header.payload_checksum.get() != crc32fast::hash(&payload) {
            return Err(invalid("record: payload checksum"));
        }
        Ok(Some(Record { kind, time_ns: header.time_ns.get(), payload }))
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
