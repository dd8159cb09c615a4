//! A wake-up that is never lost: waiters name the state they have seen.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Counts events. Whoever waits says which count it has seen, so an event between looking and
/// waiting wakes it at once. Waiting spins for a configured time, then blocks. An event that nobody
/// is blocked for costs no system call.
#[derive(Debug)]
pub(crate) struct Signal {
    count: AtomicU64,
    /// Threads that are blocked, or are about to look a last time.
    blocked: AtomicU32,
    lock: Mutex<()>,
    condition: Condvar,
    spin: Duration,
}

impl Signal {
    pub(crate) fn new(spin: Duration) -> Self {
        Self {
            count: AtomicU64::new(0),
            blocked: AtomicU32::new(0),
            lock: Mutex::new(()),
            condition: Condvar::new(),
            spin,
        }
    }

    /// The count to pass to [`wait`](Self::wait), read before looking at what it signals.
    pub(crate) fn seen(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Something happened.
    pub(crate) fn notify(&self) {
        // Sequentially consistent, as in `block`: either this sees the thread that blocks, or that
        // sees this event.
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.blocked.load(Ordering::SeqCst) > 0 {
            // Taking the lock orders this after a waiter's last look at the count.
            drop(lock(&self.lock));
            self.condition.notify_all();
        }
    }

    /// Waits until something happened after `seen`, at most for `timeout`. Says whether it did.
    pub(crate) fn wait(&self, seen: u64, timeout: Duration) -> bool {
        if self.seen() != seen {
            return true;
        }
        let start = Instant::now();
        let spin = self.spin.min(timeout);
        while !spin.is_zero() {
            if self.seen() != seen {
                return true;
            }
            if start.elapsed() >= spin {
                break;
            }
            std::hint::spin_loop();
        }
        self.blocked.fetch_add(1, Ordering::SeqCst);
        let happened = self.block(seen, start, timeout);
        self.blocked.fetch_sub(1, Ordering::SeqCst);
        happened
    }

    fn block(&self, seen: u64, start: Instant, timeout: Duration) -> bool {
        let mut guard = lock(&self.lock);
        loop {
            if self.count.load(Ordering::SeqCst) != seen {
                return true;
            }
            let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
                return false;
            };
            guard = self.condition.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Locks also what a panicking thread left behind: the drivers keep no half-changed state across
/// calls that can panic, and the guest must be looked after in any case.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_before_the_wait_is_not_lost() {
        let signal = Signal::new(Duration::ZERO);
        let seen = signal.seen();
        signal.notify();
        assert!(signal.wait(seen, Duration::from_secs(3600)));
        assert!(!signal.wait(signal.seen(), Duration::ZERO));
    }

    #[test]
    fn no_event_is_lost_between_two_threads_that_answer_each_other() {
        let signals = [Signal::new(Duration::ZERO), Signal::new(Duration::ZERO)];
        let rounds = 20_000;
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (mine, other) = (&signals[me], &signals[1 - me]);
                scope.spawn(move || {
                    for round in 0..rounds {
                        if me == 0 {
                            other.notify();
                        }
                        assert!(mine.wait(round, Duration::from_secs(3600)));
                        if me == 1 {
                            other.notify();
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_waiter_is_woken_by_another_thread() {
        for spin in [Duration::ZERO, Duration::from_millis(1)] {
            let signal = Signal::new(spin);
            let seen = signal.seen();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| signal.wait(seen, Duration::from_secs(3600)));
                signal.notify();
                assert!(waiter.join().expect("the waiter does not panic"));
            });
        }
    }
}
