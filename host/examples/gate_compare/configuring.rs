//! Marks while somebody else configures interfaces: a container that starts, a network manager.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::gate_lab::run;
use crate::way::Kind;
use crate::world::World;

const MARKS: u64 = 200;
const BETWEEN: Duration = Duration::from_millis(5);

/// How long marks took, in microseconds; or why the way cannot be set up.
pub fn marks_us(kind: Kind) -> Result<Histogram<u64>, String> {
    let _world = World::new();
    let way = kind.set_up()?;
    let over = AtomicBool::new(false);
    let mut times = Histogram::new(3).expect("fixed precision is good");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                run("ip", "link add other0 type veth peer name other1");
                run("ip", "link del other0");
            }
        });
        for mark in 1..=MARKS {
            std::thread::sleep(BETWEEN);
            let begun = Instant::now();
            way.mark(mark);
            times.record(begun.elapsed().as_micros() as u64).expect("it grows");
            way.release(mark);
        }
        over.store(true, Ordering::Relaxed);
    });
    Ok(times)
}
