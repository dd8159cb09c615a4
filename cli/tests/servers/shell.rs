//! An interactive shell over telnet that counts in a variable of its own: each line typed is
//! answered with the next number, so a shell that went back, or a line that ran twice, is seen.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use romulus::demo::network;

/// First byte of telnet's three-byte commands; options are neither asked for nor granted.
const COMMAND: u8 = 255;

/// A shell in use.
pub struct Shell {
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    typist: JoinHandle<Result<(), String>>,
}

impl Shell {
    /// Connects in the calling thread's network and begins to type.
    pub fn start(limit: Duration) -> Self {
        let (answers, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let typist = std::thread::spawn({
            let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
            move || type_lines(&answers, &stop, limit)
        });
        Self { answers, stop, typist }
    }

    /// Lines answered so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Types no more; gives the lines answered.
    pub fn finish(self, limit: Duration) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + limit;
        while !self.typist.is_finished() {
            assert!(Instant::now() < deadline, "shell: no answer after line {}", self.answers());
            std::thread::sleep(Duration::from_millis(5));
        }
        let answers = self.answers();
        self.typist.join().expect("the typist ends").unwrap_or_else(|e| panic!("shell, line {answers}: {e}"));
        answers
    }
}

fn type_lines(answers: &AtomicU64, stop: &AtomicBool, limit: Duration) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let server = SocketAddr::from((network::GUEST, 23));
    let mut stream = TcpStream::connect_timeout(&server, limit).map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    stream.set_read_timeout(Some(limit)).map_err(text)?;
    let mut screen = Screen::default();
    while !stop.load(Ordering::Relaxed) {
        let line = answers.load(Ordering::Relaxed) + 1;
        // The terminal's echo of the line holds no number.
        stream.write_all(b"n=$((n+1)); echo \"[$n]\"\r").map_err(text)?;
        let number = loop {
            if let Some(number) = screen.next_number() {
                break number;
            }
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes).map_err(text)?;
            if read == 0 {
                return Err("the connection ended".into());
            }
            screen.show(&bytes[..read]);
        };
        if number != line {
            return Err(format!("answered {number}"));
        }
        answers.store(line, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What came and was not looked at yet.
#[derive(Default)]
struct Screen {
    text: String,
    command_bytes_left: usize,
}

impl Screen {
    fn show(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.command_bytes_left > 0 {
                self.command_bytes_left -= 1;
            } else if byte == COMMAND {
                self.command_bytes_left = 2;
            } else {
                self.text.push(char::from(byte));
            }
        }
    }

    /// The next `[NUMBER]`.
    fn next_number(&mut self) -> Option<u64> {
        loop {
            let begin = self.text.find('[')?;
            let end = begin + self.text[begin..].find(']')?;
            let number = self.text[begin + 1..end].parse();
            self.text.drain(..=end);
            if let Ok(number) = number {
                return Some(number);
            }
        }
    }
}
