//! The connection: sending, receiving, matching.

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde_json::{Value, json};

use super::line::{self, Event, Line, MigrationStatus, Reply};
use super::{MAX_LINE_BYTES, QmpError};

/// Room for the id in a prepared command.
const ID_WIDTH: usize = 20;
/// Events kept for [`Client::next_event`]; the oldest are dropped beyond.
const MAX_EVENTS: usize = 1024;
/// How often a full line in front of a monitor is looked at.
const LINE_POLL: Duration = Duration::from_millis(5);
/// Answers kept for tickets not yet waited for.
const MAX_REPLIES: usize = 64;

/// A command sent and not yet answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the answer has to be waited for"]
pub struct Ticket(u64);

/// A command serialized once and sent many times.
#[derive(Debug)]
pub struct Prepared {
    name: &'static str,
    bytes: Vec<u8>,
    id_at: usize,
}

impl Prepared {
    /// Serializes a command; `arguments` is an object or null.
    pub fn new(name: &'static str, arguments: &Value) -> Self {
        let mut bytes = b"{\"id\":".to_vec();
        let id_at = bytes.len();
        bytes.resize(id_at + ID_WIDTH, b' ');
        let arguments = if arguments.is_null() { json!({}) } else { arguments.clone() };
        let rest = format!(",\"execute\":{},\"arguments\":{arguments}}}\n", json!(name));
        bytes.extend_from_slice(rest.as_bytes());
        Self { name, bytes, id_at }
    }

    fn set_id(&mut self, id: u64) {
        let room = &mut self.bytes[self.id_at..self.id_at + ID_WIDTH];
        room.fill(b' ');
        let mut cursor = &mut room[..];
        // A u64 has at most 20 digits.
        write!(cursor, "{id}").expect("twenty digits fit");
    }
}

#[derive(Debug)]
enum Outcome {
    Returned(Option<Value>),
    Refused { class: String, text: String },
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    received: Vec<u8>,
    filled: usize,
    outgoing: Vec<u8>,
    events: VecDeque<Event>,
    replies: VecDeque<(u64, Outcome)>,
    migration: Option<MigrationStatus>,
    next_id: u64,
    closed: bool,
    timeout: Duration,
}

/// A monitor that serves somebody lets others wait in a line, and connecting does not return while that
/// is full.
fn connect_within(path: &Path, timeout: Duration) -> Result<UnixStream, QmpError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(std::io::Error::from)?;
    let address = SocketAddrUnix::new(path).map_err(std::io::Error::from)?;
    let deadline = Instant::now() + timeout;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(LINE_POLL),
            Err(Errno::AGAIN) => {
                return Err(QmpError::Timeout { what: "a connection".into(), waited: timeout });
            }
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
}

impl Client {
    /// Connects to the socket at `path` and negotiates. `timeout` holds for the connection, for the
    /// greeting and for each later command.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        Self::over(connect_within(path, timeout)?, path, timeout)
    }

    /// As [`connect`](Self::connect), over a socket that is already connected.
    pub fn over(stream: UnixStream, path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        stream.set_nonblocking(true)?;
        let mut client = Self {
            path: path.to_owned(),
            stream,
            received: vec![0; 16 * 1024],
            filled: 0,
            outgoing: Vec::with_capacity(4096),
            events: VecDeque::with_capacity(MAX_EVENTS),
            replies: VecDeque::with_capacity(MAX_REPLIES),
            migration: None,
            next_id: 1,
            closed: false,
            timeout,
        };
        client.negotiate()?;
        Ok(client)
    }

    fn negotiate(&mut self) -> Result<(), QmpError> {
        let deadline = Instant::now() + self.timeout;
        let offered = loop {
            if let Some(offered) = self.take_greeting()? {
                break offered;
            }
            if !self.receive(deadline)? {
                return Err(QmpError::Timeout { what: "the greeting".into(), waited: self.timeout });
            }
        };
        // With `oob` QEMU reads commands ahead, so that a second command sent together with the
        // first needs no further trip through its I/O thread.
        let enable = if offered { json!({"enable": ["oob"]}) } else { json!({}) };
        self.execute("qmp_capabilities", enable)?;
        Ok(())
    }

    fn take_greeting(&mut self) -> Result<Option<bool>, QmpError> {
        let Some(length) = self.line_length(0) else { return Ok(None) };
        let offered = match line::parse(&self.received[..length]) {
            Ok(Line::Greeting { out_of_band }) => out_of_band,
            Ok(other) => return Err(QmpError::Protocol(format!("a greeting was due, not {other:?}"))),
            Err(why) => return Err(QmpError::Protocol(why)),
        };
        self.consume(length + 1);
        Ok(Some(offered))
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket, for polling and for asking who is at its other end.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether QEMU has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Executes a command and returns its value.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None)
    }

    /// Executes a command that takes a descriptor along (`getfd`, `add-fd`).
    pub fn execute_with_descriptor(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, Some(descriptor))
    }

    fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let id = self.take_id();
        let text = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        self.flush()?;
        self.outgoing.extend_from_slice(text.as_bytes());
        self.outgoing.push(b'\n');
        self.flush_with(descriptor)?;
        match self.outcome(Ticket(id), command, self.timeout)? {
            Outcome::Returned(value) => Ok(value.unwrap_or_else(|| json!({}))),
            Outcome::Refused { class, text } => {
                Err(QmpError::Refused { command: command.into(), class, text })
            }
        }
    }

    /// Executes a human monitor command and returns what it prints.
    pub fn human(&mut self, command: &str) -> Result<String, QmpError> {
        let value = self.execute("human-monitor-command", json!({"command-line": command}))?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// Queues a prepared command; [`flush`](Self::flush) sends what is queued in one piece.
    pub fn enqueue(&mut self, command: &mut Prepared) -> Ticket {
        let id = self.take_id();
        command.set_id(id);
        self.outgoing.extend_from_slice(&command.bytes);
        Ticket(id)
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<(), QmpError> {
        self.flush_with(None)
    }

    /// Waits for the answer to a queued command whose value does not matter.
    pub fn wait(&mut self, ticket: Ticket, command: &Prepared) -> Result<(), QmpError> {
        match self.outcome(ticket, command.name, self.timeout)? {
            Outcome::Returned(_) => Ok(()),
            Outcome::Refused { class, text } => {
                Err(QmpError::Refused { command: command.name.into(), class, text })
            }
        }
    }

    /// Reads what has arrived, waiting up to `timeout` for something. Whether something came.
    pub fn pump(&mut self, timeout: Duration) -> Result<bool, QmpError> {
        let arrived = self.receive(Instant::now() + timeout)?;
        self.dispatch()?;
        Ok(arrived)
    }

    /// The oldest event not yet taken.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The migration status reported last, since it was taken last. Needs QEMU's migration
    /// capability `events`.
    pub fn take_migration_status(&mut self) -> Option<MigrationStatus> {
        self.migration.take()
    }

    /// How long a command may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn outcome(&mut self, ticket: Ticket, command: &str, timeout: Duration) -> Result<Outcome, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.dispatch()?;
            // QEMU answers in order: answers to earlier commands that nobody waited for go.
            while let Some((id, outcome)) = self.replies.pop_front() {
                if id == ticket.0 {
                    return Ok(outcome);
                }
                if id > ticket.0 {
                    self.replies.push_front((id, outcome));
                    break;
                }
            }
            if !self.receive(deadline)? {
                return Err(QmpError::Timeout { what: command.into(), waited: timeout });
            }
        }
    }

    fn flush_with(&mut self, descriptor: Option<BorrowedFd<'_>>) -> Result<(), QmpError> {
        let deadline = Instant::now() + self.timeout;
        let mut sent = 0;
        while sent < self.outgoing.len() {
            let bytes = &self.outgoing[sent..];
            let outcome = match descriptor.filter(|_| sent == 0) {
                None => rustix::net::send(&self.stream, bytes, SendFlags::NOSIGNAL),
                Some(descriptor) => send_with_descriptor(&self.stream, bytes, descriptor),
            };
            match outcome {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !wait_for(&self.stream, PollFlags::OUT, deadline)? {
                        self.outgoing.clear();
                        return Err(QmpError::Timeout { what: "sending".into(), waited: self.timeout });
                    }
                }
                Err(errno) => {
                    self.outgoing.clear();
                    self.closed |= matches!(errno, Errno::PIPE | Errno::CONNRESET);
                    return Err(if self.closed { QmpError::Closed } else { errno.into() });
                }
            }
        }
        self.outgoing.clear();
        Ok(())
    }

    /// Reads once; `false` when nothing came before the deadline.
    fn receive(&mut self, deadline: Instant) -> Result<bool, QmpError> {
        if self.closed {
            return Err(QmpError::Closed);
        }
        if self.filled == self.received.len() {
            if self.received.len() >= MAX_LINE_BYTES {
                return Err(QmpError::Protocol(format!("a line longer than {MAX_LINE_BYTES} bytes")));
            }
            self.received.resize(self.received.len() * 2, 0);
        }
        loop {
            let room = &mut self.received[self.filled..];
            match rustix::net::recv(&self.stream, room, RecvFlags::empty()) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => {
                    self.closed = true;
                    return Err(QmpError::Closed);
                }
                Ok((_, count)) => {
                    self.filled += count;
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !wait_for(&self.stream, PollFlags::IN, deadline)? {
                        return Ok(false);
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn line_length(&self, start: usize) -> Option<usize> {
        self.received[start..self.filled].iter().position(|byte| *byte == b'\n')
    }

    fn consume(&mut self, count: usize) {
        self.received.copy_within(count..self.filled, 0);
        self.filled -= count;
    }

    /// Sorts all complete lines into events and replies.
    fn dispatch(&mut self) -> Result<(), QmpError> {
        let mut start = 0;
        let mut outcome = Ok(());
        while let Some(length) = self.line_length(start) {
            let bytes = self.received[start..start + length].trim_ascii();
            start += length + 1;
            if bytes.is_empty() {
                continue;
            }
            match line::parse(bytes) {
                Ok(Line::Event(Event::Other) | Line::Greeting { .. }) => {}
                Ok(Line::Event(Event::Migration(status))) => self.migration = Some(status),
                Ok(Line::Event(event)) => {
                    if self.events.len() == MAX_EVENTS {
                        self.events.pop_front();
                    }
                    self.events.push_back(event);
                }
                Ok(Line::Reply { id, reply }) => {
                    if self.replies.len() == MAX_REPLIES {
                        self.replies.pop_front();
                    }
                    // An error without an id is the parser's, about what was sent last.
                    let id = id.unwrap_or(self.next_id - 1);
                    self.replies.push_back((id, keep(reply)));
                }
                Err(why) => {
                    outcome = Err(QmpError::Protocol(why));
                    break;
                }
            }
        }
        if start > 0 {
            self.consume(start);
        }
        outcome
    }
}

fn keep(reply: Reply<'_>) -> Outcome {
    match reply {
        Reply::Returned("{}") => Outcome::Returned(None),
        Reply::Returned(text) => Outcome::Returned(serde_json::from_str(text).ok()),
        Reply::Refused { class, text } => Outcome::Refused { class, text },
    }
}

fn send_with_descriptor(
    stream: &UnixStream,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> Result<usize, Errno> {
    let descriptors = [descriptor];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(pushed, "the space is made for one descriptor");
    rustix::net::sendmsg(stream, &[std::io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
}

/// Waits for `flags` or an error condition; `false` at the deadline.
fn wait_for(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        let mut fds = [PollFd::new(&fd, flags)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_whose_line_is_full_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)
            .expect("a socket that listens");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        // Nobody accepts: the first ones stand in the line, without a greeting.
        let waits_for = || match Client::connect(&path, Duration::from_millis(20)) {
            Err(QmpError::Timeout { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(waits_for(), "the greeting");
        assert!((0..9).any(|_| waits_for() == "a connection"));
    }
}
