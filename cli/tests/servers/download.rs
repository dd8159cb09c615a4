//! A slow HTTP download whose content is known.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use romulus::demo::network;
use sha2::{Digest, Sha256};

/// Read at this rate, so that the download spans a failover.
const BYTES_PER_SECOND: f64 = 2_000_000.0;
/// Bytes in flight at most: what is not read stays with the server.
const RECEIVE_BUFFER_BYTES: usize = 128 << 10;

/// What `scripts/guest-init` has the server serve.
fn content() -> String {
    (1_000_000..3_000_000).fold(String::with_capacity(16_000_000), |all, number| all + &format!("{number}\n"))
}

/// A download under way.
pub struct Download(Receiver<Result<f64, String>>);

impl Download {
    /// Begins in the calling thread's network.
    pub fn start(limit: Duration) -> Self {
        let (ended, outcome) = channel();
        std::thread::spawn(move || {
            let _ = ended.send(download(limit));
        });
        Self(outcome)
    }

    /// Whether all was read, or it failed.
    pub fn has_ended(&self) -> bool {
        // Never sends before the end, so a message that is taken here fails the test in any case.
        !matches!(self.0.try_recv(), Err(TryRecvError::Empty))
    }

    /// Waits for the end; gives the rate in MB/s.
    pub fn finish(self, limit: Duration) -> f64 {
        self.0.recv_timeout(limit).expect("the download ends").unwrap_or_else(|e| panic!("download: {e}"))
    }
}

fn download(limit: Duration) -> Result<f64, String> {
    let text = |e: std::io::Error| e.to_string();
    let server = SocketAddr::from((network::GUEST, 80));
    let mut stream = TcpStream::connect_timeout(&server, limit).map_err(text)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, RECEIVE_BUFFER_BYTES)
        .map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(limit)).map_err(text)?;
    stream.write_all(b"GET /numbers HTTP/1.0\r\n\r\n").map_err(text)?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status).map_err(text)?;
    if !status.contains(" 200 ") {
        return Err(format!("the server says {status}"));
    }
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line).map_err(text)? == 0 {
            return Err("the connection ended within the header".into());
        }
    }
    let started = Instant::now();
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut buffer = [0; 16 << 10];
    loop {
        let read = reader.read(&mut buffer).map_err(|e| format!("after {bytes} bytes: {e}"))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read;
        let due = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    }
    let expected = content();
    if bytes != expected.len() || hash.finalize() != Sha256::digest(expected.as_bytes()) {
        return Err(format!("{bytes} bytes of {} came, or with another checksum", expected.len()));
    }
    Ok(bytes as f64 / started.elapsed().as_secs_f64() / 1e6)
}
