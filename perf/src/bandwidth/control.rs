//! What client and server of the fabric command say to each other: a line of JSON each way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::limits::perftest::Run;
use crate::exit::{Failure, OrFail};
use crate::fabrics::Kind;
use crate::machine::Machine;

/// Both ends must be of one build of this protocol.
pub const VERSION: u32 = 2;
/// Longest line in bytes.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// Longest wait for an answer: a program has to be started, memory to be registered.
const PATIENCE: Duration = Duration::from_secs(120);

/// The client's orders.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// First of all.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The fabric to be measured.
        fabric: Kind,
    },
    /// Accept one connection of the fabric, with an arena of so many bytes.
    Lend {
        /// Length of the arena.
        arena_bytes: u64,
    },
    /// Receive from so many plain TCP streams.
    Plain {
        /// How many.
        streams: u64,
        /// Memory of all together, walked through over and over.
        window_bytes: u64,
        /// Bytes of a call.
        span_bytes: u64,
    },
    /// Start the server of a program of perftest.
    Perftest(Run),
    /// Wait for the end of that program.
    Reap {
        /// End it at once instead.
        kill: bool,
    },
}

/// The server's answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Order::Hello`].
    Hello {
        /// What the server runs on.
        machine: Machine,
    },
    /// What was ordered listens here.
    Listening {
        /// The address.
        address: SocketAddr,
    },
    /// The program has ended well.
    Done,
    /// The order could not be carried out.
    Failed {
        /// Why.
        why: String,
    },
}

/// One end of the control connection.
pub struct Control {
    reader: BufReader<TcpStream>,
    peer: SocketAddr,
}

impl Control {
    /// Over this connection.
    pub fn new(stream: TcpStream) -> Result<Self, Failure> {
        stream.set_nodelay(true).or_fail("a socket option")?;
        let peer = stream.peer_addr().or_fail("the peer's address")?;
        Ok(Self { reader: BufReader::new(stream), peer })
    }

    /// Client: reaches the server, trying for as long as `patience`.
    pub fn connect(peer: SocketAddr, patience: Duration) -> Result<Self, Failure> {
        let begun = Instant::now();
        let stream = loop {
            match TcpStream::connect_timeout(&peer, Duration::from_secs(2)) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() >= patience => {
                    return Err(Failure::failed(format!(
                        "no server at {peer} within {patience:?}: {error}; start `romulus-perf fabric --role \
                         server --listen {peer}` there"
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).or_fail("a socket option")?;
        Self::new(stream)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Sends a line.
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(message).or_fail("JSON")? + "\n";
        self.reader.get_mut().write_all(line.as_bytes()).or_fail(format!("sending to {}", self.peer))
    }

    /// Receives a line; `None` when the other end has gone.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        let mut line = String::new();
        let read = (&mut self.reader).take(MAX_LINE_BYTES).read_line(&mut line);
        if read.or_fail(format!("receiving from {}", self.peer))? == 0 {
            return Ok(None);
        }
        let message = serde_json::from_str(&line);
        message.map(Some).or_fail(format!("{} sent what is no message of romulus-perf", self.peer))
    }

    /// Client: an order and its answer.
    pub fn order(&mut self, order: &Order) -> Result<Answer, Failure> {
        self.send(order)?;
        match self.receive()? {
            Some(Answer::Failed { why }) => Err(Failure::failed(format!("the server: {why}"))),
            Some(answer) => Ok(answer),
            None => Err(Failure::failed(format!("the server at {} has gone", self.peer))),
        }
    }

    /// As [`order`](Self::order), where the answer is an address.
    pub fn order_listening(&mut self, order: &Order) -> Result<SocketAddr, Failure> {
        match self.order(order)? {
            Answer::Listening { address } => Ok(address),
            other => Err(Failure::failed(format!("the server answered {other:?} to {order:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn garbage_and_endless_lines_are_refused() {
        for bytes in [b"hello\n".to_vec(), vec![b'x'; 1 << 20], b"{\"Lend\":{}}\n".to_vec()] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut control = Control::new(listener.accept().unwrap().0).unwrap();
            let writing = std::thread::spawn(move || drop(stranger.write_all(&bytes)));
            assert!(control.receive::<Order>().is_err());
            drop(control);
            writing.join().unwrap();
        }
    }

    #[test]
    fn orders_survive_the_way() {
        let run = Run::sample();
        for order in [Order::Lend { arena_bytes: 5 }, Order::Perftest(run), Order::Reap { kill: true }] {
            let text = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
        }
    }
}
