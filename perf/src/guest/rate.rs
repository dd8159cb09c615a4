//! How fast a guest works, by what it counts on its console and by this host's clock.

use std::time::{Duration, Instant};

use romulus::demo::check_interrupted;
use romulus::demo::qemu::Console;

use crate::exit::{Failure, OrFail};

/// How often the console is looked at: what the times of its lines are known to.
const LOOK: Duration = Duration::from_millis(2);
/// A guest that works says something far more often.
const SILENCE: Duration = Duration::from_secs(20);

/// Follows a guest's count.
pub struct WorkRate {
    console: Console,
}

impl WorkRate {
    /// From now on; waits until something is done.
    pub fn follow(console: Console) -> Result<Self, Failure> {
        let mut rate = Self { console };
        while rate.next()?.1 == 0 {}
        Ok(rate)
    }

    /// Waits for the next line: when it came, and the count on it. (Of lines that came together
    /// the last one.)
    fn next(&mut self) -> Result<(Instant, u64), Failure> {
        let before = self.console.last;
        let began = Instant::now();
        loop {
            check_interrupted().or_fail("waiting for the guest")?;
            self.console.poll();
            if let Some(complaint) = self.console.complaints.first() {
                return Err(Failure::failed(format!("the guest says: {complaint}")));
            }
            if let Some(last) = self.console.last.filter(|_| self.console.last != before) {
                return Ok((Instant::now(), last.counter));
            }
            if began.elapsed() > SILENCE {
                return Err(Failure::failed(format!("the guest has said nothing for {SILENCE:?}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Units a second over the next so many seconds. It waits for a line at both ends, so that the
    /// time between lines counts on neither.
    pub fn measure(&mut self, seconds: f64) -> Result<f64, Failure> {
        let (began, first) = self.next()?;
        loop {
            let (now, count) = self.next()?;
            let elapsed = (now - began).as_secs_f64();
            if elapsed >= seconds {
                return Ok((count - first.min(count)) as f64 / elapsed);
            }
        }
    }

    /// The count now, without waiting.
    pub fn count(&mut self) -> Option<u64> {
        self.console.poll();
        self.console.last.map(|report| report.counter)
    }
}
