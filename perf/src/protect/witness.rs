//! The world outside, as far as a synthetic guest has one: a socket on the backup's host that
//! hears the guest's output, and knows whether any ran ahead of what was committed (I1).
//!
//! Output is a datagram of sixteen bytes: a magic number and the number of the pause that ends the
//! output's epoch. 0 says that output is held from now on; `u64::MAX` is output without a bound, of
//! a guest that runs alone.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::exit::{Failure, OrFail};

const MAGIC: u64 = 0x526f_6d75_6c75_734f;
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// The bytes of one output.
pub fn encode(pause: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..].copy_from_slice(&pause.to_le_bytes());
    bytes
}

/// The pause of an output; `None` for a stranger's bytes.
pub fn decode(bytes: &[u8]) -> Option<u64> {
    let (magic, pause) = (bytes.get(..8)?, bytes.get(8..16)?);
    let sound = bytes.len() == 16 && magic == MAGIC.to_le_bytes();
    sound.then(|| u64::from_le_bytes(pause.try_into().unwrap_or_default()))
}

#[derive(Debug, Default)]
struct Heard {
    last_pause: AtomicU64,
    outputs: AtomicU64,
    stop: AtomicBool,
}

impl Heard {
    fn hear(&self, pause: u64) {
        if pause == 0 {
            self.last_pause.store(0, Ordering::Release);
        } else {
            self.last_pause.fetch_max(pause, Ordering::AcqRel);
            self.outputs.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Hears a guest's output.
#[derive(Debug)]
pub struct Witness {
    heard: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Listens at this address, on the UDP port of this number.
    pub fn listen(address: SocketAddr) -> Result<Self, Failure> {
        let socket = UdpSocket::bind(address).or_fail(format!("hearing output at {address}, UDP"))?;
        socket.set_read_timeout(Some(LOOK)).or_fail("a socket option")?;
        let heard = Arc::new(Heard::default());
        let own = Arc::clone(&heard);
        let listen = move || {
            let mut bytes = [0; 64];
            while !own.stop.load(Ordering::Acquire) {
                match socket.recv(&mut bytes) {
                    Ok(len) => decode(&bytes[..len]).into_iter().for_each(|pause| own.hear(pause)),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => tracing::warn!(%error, "hearing the guest's output"),
                }
            }
        };
        let thread = std::thread::Builder::new().name("witness".into()).spawn(listen);
        Ok(Self { heard, thread: Some(thread.or_fail("starting a thread")?) })
    }

    /// The latest pause whose output was heard, since output is held.
    pub fn last_pause(&self) -> u64 {
        self.heard.last_pause.load(Ordering::Acquire)
    }

    /// How many outputs were heard.
    pub fn outputs(&self) -> u64 {
        self.heard.outputs.load(Ordering::Acquire)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.heard.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_told_from_the_bytes_of_strangers() {
        for pause in [0, 1, 77, u64::MAX] {
            assert_eq!(decode(&encode(pause)), Some(pause));
        }
        let bytes = encode(5);
        assert_eq!(decode(&bytes[..15]), None);
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(decode(&[0; 16]), None);
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn the_latest_pause_counts_until_output_is_held_anew() {
        let heard = Heard::default();
        [3, 5, 4].into_iter().for_each(|pause| heard.hear(pause));
        assert_eq!(heard.last_pause.load(Ordering::Acquire), 5);
        [0, 2].into_iter().for_each(|pause| heard.hear(pause));
        assert_eq!(heard.last_pause.load(Ordering::Acquire), 2);
        assert_eq!(heard.outputs.load(Ordering::Acquire), 4);
    }
}
