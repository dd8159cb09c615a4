//! From one thread's word to another's waking, the sleeper pinned to a core.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use romulus_host::pinning::usable_cores;
use rustix::event::{EventfdFlags, eventfd};

use super::command::{Found, LimitsCommand};
use crate::exit::{Failure, OrFail};
use crate::histogram::Latencies;
use crate::results::{Better, HistogramRecord, Labels, Measurement};

/// Between two words, so that the sleeper sleeps.
const REST: Duration = Duration::from_micros(200);

/// How a thread is woken.
trait Bell: Sync {
    /// Wakes the sleeper.
    fn ring(&self) -> io::Result<()>;
    /// Sleeps until it rings.
    fn wait(&self) -> io::Result<()>;
}

struct EventFd(std::os::fd::OwnedFd);

impl Bell for EventFd {
    fn ring(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        rustix::io::read(&self.0, &mut [0; 8])?;
        Ok(())
    }
}

/// A condition variable: a futex underneath.
#[derive(Default)]
struct Futex {
    rung: std::sync::Mutex<bool>,
    condition: std::sync::Condvar,
}

impl Bell for Futex {
    fn ring(&self) -> io::Result<()> {
        *self.rung.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
        self.condition.notify_one();
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let mut rung = self.rung.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while !std::mem::take(&mut *rung) {
            rung = self.condition.wait(rung).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        Ok(())
    }
}

/// Measures both ways.
pub fn measure(command: &LimitsCommand, found: &mut Found) -> Result<(), Failure> {
    let fd = EventFd(eventfd(0, EventfdFlags::CLOEXEC).or_fail("an eventfd")?);
    let futex = Futex::default();
    let bells: [(&str, &dyn Bell); 2] = [("eventfd", &fd), ("futex", &futex)];
    for (name, bell) in bells {
        let times = wake_ups(bell, command.time() * command.rounds as u32)?;
        let labels = Labels::default().with("by", name).with("pinned", true);
        for (figure, share) in [("wake_p50_us", 0.5), ("wake_p99_us", 0.99)] {
            let value = times.quantile_us(share);
            found.push(Measurement::single(figure, &labels, "us", Better::Lower, value));
        }
        found.histograms.push(HistogramRecord::of_ns("wake", &labels, times.histogram())?);
    }
    Ok(())
}

fn wake_ups(bell: &dyn Bell, time: Duration) -> Result<Latencies, Failure> {
    let core = usable_cores().last().copied();
    let epoch = Instant::now();
    let nanoseconds = || epoch.elapsed().as_nanos() as u64;
    let (rung_at, woken, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            if let Some(core) = core {
                // Whether it worked shows in the figures; where it is refused nothing is pinned.
                core_affinity::set_for_current(CoreId { id: core });
            }
            let mut times = Latencies::default();
            loop {
                bell.wait()?;
                let now = nanoseconds();
                if stop.load(Ordering::Acquire) {
                    return io::Result::Ok(times);
                }
                times.record(Duration::from_nanos(now.saturating_sub(rung_at.load(Ordering::Acquire))));
                woken.fetch_add(1, Ordering::Release);
            }
        });
        let begun = Instant::now();
        let mut rings = 0;
        let mut rung = Ok(());
        while rung.is_ok() && (rings == 0 || begun.elapsed() < time) {
            std::thread::sleep(REST);
            rung_at.store(nanoseconds(), Ordering::Release);
            rung = bell.ring();
            rings += 1;
            while rung.is_ok() && woken.load(Ordering::Acquire) < rings && !sleeper.is_finished() {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Release);
        rung.and_then(|()| bell.ring()).or_fail("waking a thread")?;
        let times = sleeper.join().map_err(|_| Failure::failed("the sleeper panicked"))?;
        times.or_fail("waiting to be woken")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_is_woken_both_ways() {
        let fd = EventFd(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        for bell in [&fd as &dyn Bell, &Futex::default()] {
            let times = wake_ups(bell, Duration::from_millis(5)).unwrap();
            assert!(times.count() > 0 && times.quantile_us(0.5) > 0.0);
        }
    }
}
