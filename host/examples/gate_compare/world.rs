//! The set-up that all ways share: a bridge with the guest's tap and the client's.

use std::time::{Duration, Instant};

use romulus_host::gate::Tap;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::gate_lab::run;
use crate::load::Load;

/// Room for everything that a release lets go at once; Linux 6.1 refuses a tap twice as much.
pub const CLIENT_QUEUE_PACKETS: u32 = 16_384;
const COMING_UP: Duration = Duration::from_secs(30);
const LONGEST_FRAME_BYTES: usize = 66_000;

/// Gone when dropped, the taps with it.
pub struct World {
    pub guest: Tap,
    pub client: Tap,
}

impl World {
    /// On return the bridge forwards.
    pub fn new() -> Self {
        run("ip", "link add br0 type bridge");
        // The client takes large segments as they are.
        let (guest, client) = (Tap::create("guest0").expect("a tap"), Tap::create("client0").expect("a tap"));
        for tap in ["guest0", "client0"] {
            let queue = format!("txqueuelen {CLIENT_QUEUE_PACKETS}");
            run("ip", &format!("link set {tap} addrgenmode none master br0 {queue} up"));
        }
        run("ip", "link set br0 addrgenmode none up");
        let world = Self { guest, client };
        let (begun, mut buffer) = (Instant::now(), buffer());
        // The kernel tells of its ports a moment later.
        while world.receive(Load::Small, &mut buffer, Duration::from_millis(2)).is_none() {
            assert!(begun.elapsed() < COMING_UP, "the bridge does not forward");
            world.send(Load::Small, 0);
        }
        while world.receive(Load::Small, &mut buffer, Duration::ZERO).is_some() {}
        world
    }

    /// The guest sends a numbered frame.
    pub fn send(&self, load: Load, number: u64) {
        let mut frame = load.frame();
        load.set_number(&mut frame, number);
        assert!(self.guest.write(&frame).expect("sending"), "a tap takes a frame");
    }

    /// The number and the length of the next frame that the client gets; `None`: none came in time.
    pub fn receive(&self, load: Load, buffer: &mut [u8], patience: Duration) -> Option<(u64, usize)> {
        let deadline = Instant::now() + patience;
        loop {
            match self.client.read(buffer).expect("receiving") {
                Some(length) => {
                    if let Some(number) = load.number(&buffer[..length]) {
                        return Some((number, length));
                    }
                }
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.wait(left);
                }
            }
        }
    }

    /// Waits until there may be something for the client.
    pub fn wait(&self, at_most: Duration) {
        let timeout = Timespec::try_from(at_most).expect("a short time");
        let mut polled = [PollFd::new(&self.client, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, Some(&timeout));
    }
}

/// Room for the longest frame.
pub fn buffer() -> Vec<u8> {
    vec![0; LONGEST_FRAME_BYTES]
}

impl Drop for World {
    fn drop(&mut self) {
        run("ip", "link del br0");
    }
}
