//! A client of redis that checks every reply.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use romulus::demo::network;

const KEY: &str = "checked";

/// A client at work.
pub struct Redis {
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<(), String>>,
}

/// A connection that knows redis's inline commands and its one-line replies.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(limit: Duration) -> Result<Self, String> {
        let server = SocketAddr::from((network::GUEST, 6379));
        let stream = TcpStream::connect_timeout(&server, limit).map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The reply to a command; of a string reply the string.
    fn ask(&mut self, command: &str) -> Result<String, String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).map_err(|e| e.to_string())?;
        let reply = self.line()?;
        if reply.starts_with('$') && reply != "$-1" { self.line() } else { Ok(reply) }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err("the connection ended".into()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }
}

impl Redis {
    /// Connects in the calling thread's network and begins.
    pub fn start(limit: Duration) -> Self {
        let (answers, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let worker = std::thread::spawn({
            let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
            move || work(&answers, &stop, limit)
        });
        Self { answers, stop, worker }
    }

    /// Increments answered so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Asks over a second connection, in the calling thread's network, whether redis still has
    /// all that it had acknowledged.
    pub fn knows_what_it_said(&self, limit: Duration) {
        let told = self.answers();
        let mut connection = Connection::open(limit).expect("redis accepts");
        let knows: u64 = connection.ask(&format!("GET {KEY}")).expect("a reply").parse().expect("a number");
        assert!(knows >= told, "redis had told {told} and knows {knows}");
        let value = connection.ask(&format!("GET {KEY}:{told}")).expect("a reply");
        assert_eq!(value, format!("value-{told}"));
    }

    /// Ends the work; gives the increments answered.
    pub fn finish(self, limit: Duration) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + limit;
        while !self.worker.is_finished() {
            assert!(Instant::now() < deadline, "redis: no reply after {}", self.answers());
            std::thread::sleep(Duration::from_millis(5));
        }
        let answers = self.answers();
        self.worker.join().expect("the worker ends").unwrap_or_else(|e| panic!("redis, step {answers}: {e}"));
        answers
    }
}

/// Each step sets a key of its own and counts it; every reply is known beforehand.
fn work(answers: &AtomicU64, stop: &AtomicBool, limit: Duration) -> Result<(), String> {
    let mut connection = Connection::open(limit)?;
    while !stop.load(Ordering::Relaxed) {
        let step = answers.load(Ordering::Relaxed) + 1;
        let set = connection.ask(&format!("SET {KEY}:{step} value-{step}"))?;
        let counted = connection.ask(&format!("INCR {KEY}"))?;
        if set != "+OK" || counted != format!(":{step}") {
            return Err(format!("replied {set} and {counted}"));
        }
        answers.store(step, Ordering::Relaxed);
    }
    Ok(())
}

/// This counter has exactly this value, asked in the calling thread's network.
pub fn counts(key: &str, value: u64, limit: Duration) {
    let counter = Connection::open(limit).and_then(|mut connection| connection.ask(&format!("GET {key}")));
    assert_eq!(counter, Ok(value.to_string()), "counter {key}");
}
