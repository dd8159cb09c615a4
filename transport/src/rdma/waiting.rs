//! Waiting for completions: spins for a while, then blocks.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFd;

use super::verbs::CompletionQueue;
use crate::stream::socket::{Signal, is_ready, readable, wait};

/// Signals that a waiter looks at beside its queue, at most.
const MAX_SIGNALS: usize = 3;

/// One thread's way to wait on a completion queue.
#[derive(Debug)]
pub(super) struct Waiter {
    pub queue: Arc<CompletionQueue>,
    spin: Duration,
    /// The queue will announce, or has announced, a completion that came after it was asked to.
    is_armed: bool,
}

impl Waiter {
    pub(super) fn new(queue: Arc<CompletionQueue>, spin: Duration) -> Self {
        Waiter { queue, spin, is_armed: false }
    }

    /// Waits until `look` finds something, one of the signals is raised, or the deadline has
    /// passed. May return early. `look` takes completions off the queue and says whether there is
    /// reason to go on; it found none just before this call. While spinning only `look` is asked,
    /// so it also says when the connection has ended.
    pub(super) fn wait(
        &mut self,
        signals: &[&Signal],
        deadline: Option<Instant>,
        mut look: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<()> {
        if !self.spin.is_zero() {
            let until = Instant::now() + self.spin;
            let until = deadline.map_or(until, |deadline| until.min(deadline));
            loop {
                if look()? {
                    return Ok(());
                }
                if Instant::now() >= until {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        if !self.is_armed {
            self.queue.arm()?;
            self.is_armed = true;
            // What came before it was armed is not announced.
            if look()? {
                return Ok(());
            }
        }
        let queue = &*self.queue;
        let mut fds: [PollFd<'_>; MAX_SIGNALS + 1] = std::array::from_fn(|_| readable(queue));
        for (fd, signal) in fds[1..].iter_mut().zip(signals) {
            *fd = readable(*signal);
        }
        let used = 1 + signals.len().min(MAX_SIGNALS);
        wait(&mut fds[..used], deadline)?;
        // There is one at most: it is armed again only after that was taken.
        if is_ready(&fds[0]) && self.queue.take_announcement() {
            self.is_armed = false;
        }
        Ok(())
    }
}
