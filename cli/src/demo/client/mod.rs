//! A client of the guest: one TCP connection that it never replaces, requests at a fixed pace
//! whether or not answers come, and books that show whether the guest keeps to what it said.

pub mod ledger;
pub mod wire;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::netns::NetNs;
use crate::exit::Failure;
pub use ledger::{LatencyMs, Ledger, Phase};
use wire::{Answer, Record};

/// How long a question may wait for its answer before it is put anew.
const AUDIT_PATIENCE: Duration = Duration::from_secs(1);
/// How often a thread that reads looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a demonstration run says of its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct ClientReport {
    /// Connections opened.
    pub connections: u64,
    /// Of these, how many had every request answered to the end.
    pub survived: u64,
    /// Requests sent.
    pub requests: u64,
    /// Answers that the client had received and that the resumed guest did not know of.
    pub answers_taken_back: u64,
    /// Answers or requests that arrived twice.
    pub duplicates: u64,
    /// The longest time between two answers since protection began.
    pub longest_silence_ms: f64,
    /// What protection adds to the time from when a request was due to its answer.
    pub added_latency_ms: LatencyMs,
}

struct Shared {
    ledger: Mutex<Ledger>,
    started: Instant,
    stop: AtomicBool,
    /// Why the connection does not go on.
    ended: Mutex<Option<String>>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: String) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.get_or_insert(why);
    }

    fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client at work.
pub struct Client {
    id: u64,
    server: SocketAddr,
    stream: TcpStream,
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
}

impl Client {
    /// Connects from this namespace and begins to ask once each `pace`; tries to connect for
    /// `limit`.
    pub fn start(from: &NetNs, server: SocketAddr, pace: Duration, limit: Duration) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("the client's connection to {server}: {e}"));
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|e| Failure::failed(format!("drawing a client's number: {e}")))?;
        let id = u64::from_le_bytes(id);
        let stream = from.run(|| connect(server, Instant::now() + limit))?.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(LOOK_EVERY)).map_err(failed)?;
        let shared = Arc::new(Shared {
            ledger: Mutex::new(Ledger::new(id)),
            started: Instant::now(),
            stop: AtomicBool::new(false),
            ended: Mutex::new(None),
        });
        let mut client = Self {
            id,
            server,
            stream: stream.try_clone().map_err(failed)?,
            shared,
            sender: None,
            receiver: None,
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).map_err(failed)
        };
        let (shared, writer) = (Arc::clone(&client.shared), stream.try_clone().map_err(failed)?);
        client.receiver = Some(spawn("receiver", {
            let shared = Arc::clone(&shared);
            Box::new(move || receive(stream, &shared))
        })?);
        client.sender = Some(spawn("sender", Box::new(move || send(writer, id, pace, &shared)))?);
        Ok(client)
    }

    /// Latencies count for this phase from now on.
    pub fn set_phase(&self, phase: Phase) {
        self.shared.ledger().set_phase(phase);
    }

    /// Answers received so far.
    pub fn answered(&self) -> u64 {
        self.shared.ledger().answered()
    }

    /// Latencies of a phase so far.
    pub fn latency(&self, phase: Phase) -> LatencyMs {
        self.shared.ledger().latency(phase)
    }

    /// The longest time between two answers so far; what is reported at the end is measured from
    /// now on.
    pub fn take_silence(&self) -> Duration {
        self.shared.ledger().take_silence(self.shared.started.elapsed())
    }

    /// Answers taken back, as far as is known.
    pub fn taken_back(&self) -> u64 {
        self.shared.ledger().taken_back()
    }

    /// Asks the guest over a second connection what it knows, and checks that it is all that this
    /// client was told. Tries for `limit`.
    pub fn audit(&self, from: &NetNs, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            // What is told after this may be more than the guest answers.
            let highest = self.shared.ledger().highest();
            match from.run(|| ask(self.server, self.id, deadline))? {
                Ok(record) => {
                    self.shared.ledger().audit(record, highest);
                    return Ok(());
                }
                Err(e) if Instant::now() >= deadline => {
                    return Err(Failure::failed(format!(
                        "the guest does not tell what it knows within {limit:?}: {e}"
                    )));
                }
                Err(_) => super::check_interrupted()?,
            }
        }
    }

    /// Waits until an answer comes to a request that was due after now. Tells whether one came.
    pub fn hears(&self, limit: Duration) -> bool {
        let (deadline, number) = (Instant::now() + limit, self.shared.ledger().requests() + 1);
        while Instant::now() < deadline && self.shared.ended().is_none() {
            if self.answered() >= number {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Sends no more, waits for the answers that are due, and closes the books. The strings say
    /// what went wrong.
    pub fn finish(mut self, limit: Duration) -> (ClientReport, Vec<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + limit;
        // A request that was noted and not yet written is waited for as well.
        while self.shared.ledger().outstanding() > 0
            && self.shared.ended().is_none()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.hang_up();
        let mut ledger = self.shared.ledger();
        ledger.close(self.shared.started.elapsed());
        let mut complaints = ledger.complaints().to_vec();
        let survived = ledger.outstanding() == 0 && self.shared.ended().is_none();
        if let Some(why) = self.shared.ended() {
            complaints.push(format!("the client's connection ended: {why}"));
        } else if !survived {
            complaints.push(format!("{} requests have no answer after {limit:?}", ledger.outstanding()));
        }
        if ledger.taken_back() > 0 {
            complaints.push(format!("{} answers were taken back", ledger.taken_back()));
        }
        if ledger.duplicates() > 0 {
            complaints.push(format!("{} answers or requests came twice", ledger.duplicates()));
        }
        let report = ClientReport {
            connections: 1,
            survived: u64::from(survived),
            requests: ledger.requests(),
            answers_taken_back: ledger.taken_back(),
            duplicates: ledger.duplicates(),
            longest_silence_ms: ledger.longest_silence().as_micros() as f64 / 1_000.0,
            added_latency_ms: ledger.added_latency(),
        };
        (report, complaints)
    }

    /// Ends both threads. What they find wrong because of it is not the connection's fault.
    fn hang_up(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.shared.ended();
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in [self.sender.take(), self.receiver.take()].into_iter().flatten() {
            let _ = thread.join();
        }
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner) = ended;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.hang_up();
    }
}

fn connect(server: SocketAddr, deadline: Instant) -> std::io::Result<TcpStream> {
    loop {
        match TcpStream::connect_timeout(&server, AUDIT_PATIENCE) {
            Err(e) if Instant::now() >= deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
            Ok(stream) => return Ok(stream),
        }
    }
}

/// One question on a connection of its own.
fn ask(server: SocketAddr, client: u64, deadline: Instant) -> std::io::Result<Record> {
    let mut stream = connect(server, deadline)?;
    stream.set_read_timeout(Some(AUDIT_PATIENCE))?;
    stream.write_all(wire::question(client).as_bytes())?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Record::parse(line.trim_end()).ok_or_else(|| {
        std::io::Error::new(ErrorKind::InvalidData, format!("'{}' is no answer", line.trim_end()))
    })
}

/// Sends a request once each `pace`, counted from the start: one that comes late is still due when
/// it was due.
fn send(mut stream: TcpStream, client: u64, pace: Duration, shared: &Shared) {
    let mut due = shared.started.elapsed();
    while !shared.stop.load(Ordering::Relaxed) {
        let now = shared.started.elapsed();
        if due > now {
            std::thread::sleep((due - now).min(LOOK_EVERY));
            continue;
        }
        let number = shared.ledger().request(due);
        if let Err(e) = stream.write_all(wire::request(client, number).as_bytes()) {
            shared.end(format!("sending: {e}"));
            return;
        }
        due += pace;
    }
}

fn receive(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        // After a time-out `line` keeps what has come of it.
        match reader.read_line(&mut line) {
            Ok(0) => return shared.end("the guest closed it".into()),
            Ok(_) => {
                let now = shared.started.elapsed();
                match Answer::parse(line.trim_end()) {
                    Some(answer) => shared.ledger().answer(answer, now),
                    None => return shared.end(format!("'{}' is no answer", line.trim_end())),
                }
                line.clear();
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.stop.load(Ordering::Relaxed) && shared.ledger().outstanding() == 0 {
                    return;
                }
            }
            Err(e) => return shared.end(format!("receiving: {e}")),
        }
    }
}
