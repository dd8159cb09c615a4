//! The server that clients talk to: counts requests in the guest's memory and answers each with
//! the counter.
//!
//! Lines of text over TCP. Fields are separated by one space; numbers are decimal:
//!
//! | line | answer | meaning |
//! |---|---|---|
//! | `+ CLIENT NUMBER` | `CLIENT NUMBER COUNTER` | count one request; COUNTER includes it |
//! | `? CLIENT` | `CLIENT LAST COUNTER DUPLICATES` | what is known of a client; counts nothing |
//!
//! CLIENT is a number that the client chooses, NUMBER counts its requests from 1. A NUMBER that is
//! not above the client's last is a duplicate: it is answered and counted as such, and the counter
//! stays. Any other line ends the connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Clients that are remembered at most; further ones are refused.
const MAX_CLIENTS: usize = 4_096;
/// Longest request line, in bytes.
const MAX_LINE_BYTES: u64 = 64;

#[derive(Clone, Copy, Default)]
struct Client {
    last: u64,
    duplicates: u64,
}

/// What the server knows. A copy of it for the console is kept where reading waits for nobody.
#[derive(Default)]
pub struct Counter {
    known: Mutex<Known>,
    shown: AtomicU64,
}

#[derive(Default)]
struct Known {
    counter: u64,
    clients: BTreeMap<u64, Client>,
}

impl Counter {
    /// Requests counted so far.
    pub fn now(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    /// Answers a line, without its end; `None` if it is no request.
    fn answer(&self, line: &str) -> Option<String> {
        let mut words = line.split(' ');
        let (kind, client) = (words.next()?, words.next()?.parse::<u64>().ok()?);
        let number = words.next().map(|word| word.parse::<u64>()).transpose().ok()?;
        if words.next().is_some() {
            return None;
        }
        let mut known = self.known();
        match (kind, number) {
            ("+", Some(number)) => {
                if known.clients.len() >= MAX_CLIENTS && !known.clients.contains_key(&client) {
                    return None;
                }
                let entry = known.clients.entry(client).or_default();
                if number > entry.last {
                    entry.last = number;
                    known.counter += 1;
                } else {
                    entry.duplicates += 1;
                }
                self.shown.store(known.counter, Ordering::Relaxed);
                Some(format!("{client} {number} {}\n", known.counter))
            }
            ("?", None) => {
                let entry = known.clients.get(&client).copied().unwrap_or_default();
                Some(format!("{client} {} {} {}\n", entry.last, known.counter, entry.duplicates))
            }
            _ => None,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves connections on this port without end, each on a thread of its own.
pub fn serve(port: u16, counter: &'static Counter) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    std::thread::Builder::new().name("server".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // Without a thread the client sees its connection end, and may come again.
            let _ = std::thread::Builder::new().name("connection".into()).spawn(move || {
                let _ = talk(&stream, counter);
            });
        }
    })?;
    Ok(())
}

fn talk(stream: &TcpStream, counter: &Counter) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut answers = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        let read = std::io::Read::take(&mut reader, MAX_LINE_BYTES).read_line(&mut line)?;
        let Some(request) = line.strip_suffix('\n').filter(|_| read > 0) else { return Ok(()) };
        let Some(answer) = counter.answer(request) else { return Ok(()) };
        answers.push_str(&answer);
        // What has arrived together is answered together.
        if !reader.buffer().contains(&b'\n') {
            let mut writer = stream;
            writer.write_all(answers.as_bytes())?;
            answers.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_and_duplicates_do_not() {
        let counter = Counter::default();
        let ask = |line: &str| counter.answer(line);
        assert_eq!(ask("+ 9 1").unwrap(), "9 1 1\n");
        assert_eq!(ask("+ 8 1").unwrap(), "8 1 2\n");
        assert_eq!(ask("+ 9 2").unwrap(), "9 2 3\n");
        assert_eq!(ask("+ 9 2").unwrap(), "9 2 3\n");
        assert_eq!(ask("? 9").unwrap(), "9 2 3 1\n");
        assert_eq!(ask("? 7").unwrap(), "7 0 3 0\n");
        assert_eq!(counter.now(), 3);
    }

    #[test]
    fn what_is_no_request_has_no_answer() {
        let counter = Counter::default();
        for line in ["", "+", "+ 1", "+ x 1", "+ 1 -1", "? 1 2", "+ 1 2 3", "- 1 1", "+  1 1"] {
            assert_eq!(counter.answer(line), None, "{line}");
        }
    }

    #[test]
    fn a_connection_is_answered_in_order_and_ended_by_nonsense() {
        static COUNTER: std::sync::LazyLock<Counter> = std::sync::LazyLock::new(Counter::default);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let talking = std::thread::spawn(move || talk(&server, &COUNTER));
        client.write_all(b"+ 1 1\n+ 1 2\n? 1\nnonsense\n").unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut client, &mut said).unwrap_or_default();
        talking.join().unwrap().unwrap();
        // The answers that were due when nonsense came may or may not have left.
        assert!("1 1 1\n1 2 2\n1 2 2 0\n".starts_with(&said), "{said}");
    }
}
