//! The output gate of a synthetic guest, which makes one output an epoch: the number of its pause,
//! sent to the witness on the backup's host when the gate lets it go.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::synthetic::SyntheticGuestControl;

use super::witness::encode;
use crate::exit::{Failure, OrFail};

/// Epochs that are held at the most; a driver's depth is far below.
const ROOM: usize = 256;

#[derive(Debug)]
struct Books {
    /// Marks and the pauses that they were made in.
    held: VecDeque<(GateMark, u64)>,
    released_pause: u64,
    opened: bool,
}

/// The gate.
#[derive(Debug)]
pub struct WitnessedGate {
    guest: SyntheticGuestControl,
    socket: UdpSocket,
    books: Mutex<Books>,
}

impl WitnessedGate {
    /// For this guest, with the witness at this address.
    pub fn new(guest: SyntheticGuestControl, witness: SocketAddr) -> Result<Self, Failure> {
        let any: SocketAddr = match witness {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any).or_fail("a socket for output")?;
        socket.set_nonblocking(true).or_fail("a socket option")?;
        socket.connect(witness).or_fail(format!("output to {witness}"))?;
        let books = Books { held: VecDeque::with_capacity(ROOM), released_pause: 0, opened: false };
        Ok(Self { guest, socket, books: Mutex::new(books) })
    }

    /// The latest pause whose output has left.
    pub fn released_pause(&self) -> u64 {
        self.books().released_pause
    }

    /// Whether all output was let go: the guest ran alone.
    pub fn was_opened(&self) -> bool {
        self.books().opened
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn output(&self, pause: u64) {
        // Like any packet it may be lost.
        let _ = self.socket.send(&encode(pause));
    }
}

impl OutputGate for WitnessedGate {
    fn hold(&self) -> Result<(), GateError> {
        self.output(0);
        Ok(())
    }

    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        let mut books = self.books();
        if books.held.len() == ROOM {
            return Err(GateError(format!("{ROOM} epochs are held: none is released any more")));
        }
        books.held.push_back((mark, self.guest.pauses()));
        Ok(())
    }

    fn release(&self, token: &ReleaseToken) {
        let mut books = self.books();
        if token.opens_gate() {
            books.opened = true;
            books.held.clear();
            return self.output(u64::MAX);
        }
        let mut released = None;
        while let Some((_, pause)) = books.held.front().copied().filter(|(mark, _)| *mark <= token.through())
        {
            books.held.pop_front();
            released = Some(pause);
        }
        if let Some(pause) = released {
            books.released_pause = pause;
            self.output(pause);
        }
    }

    fn level(&self) -> GateLevel {
        let packets = self.books().held.len() as u64;
        GateLevel { packets, bytes: 16 * packets }
    }

    fn bound_bytes(&self) -> u64 {
        u64::MAX
    }

    fn detach(&self) -> Result<(), GateError> {
        Ok(())
    }
}
