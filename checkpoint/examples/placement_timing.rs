//! Times placement: `cargo run --release -p romulus-checkpoint --example placement_timing`.
//! For each guest size 10,000 scattered dirty pages an epoch, with homing under way.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use romulus_checkpoint::placement::committed::CommittedMap;
use romulus_checkpoint::placement::planner::Planner;
use romulus_checkpoint::{ArenaShape, Epoch, Extent, PageIndex, Transfer};

const EPOCHS: usize = 400;

/// The durations of one kind of call.
#[derive(Default)]
struct Timings(Vec<Duration>);

impl Timings {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = call();
        self.0.push(begin.elapsed());
        result
    }

    fn min_p50_p99_us(&mut self) -> (f64, f64, f64) {
        self.0.sort_unstable();
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        (at(0.0), at(0.5), at(0.99))
    }
}

fn scattered(seed: &mut u64, pages: u64, count: u64, dirty: &mut Vec<Extent>) {
    dirty.clear();
    let step = pages / count;
    for index in 0..count {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        dirty.push(Extent { first: PageIndex(index * step + (*seed >> 33) % step), pages: 1 });
    }
}

fn measure(guest_gib: u64, spares: u64, count: u64) {
    let pages = guest_gib << 18;
    let shape = ArenaShape { pages, spares, slots: 3, slot_bytes: 1 << 20, copy_only_homes: false };
    let mut planner = Planner::new(shape, spares / 2);
    let mut map = CommittedMap::new(shape);
    let (mut place, mut commit, mut acked, mut home) = Default::default();
    let (mut dirty, mut transfers, mut homings) = (Vec::new(), Vec::new(), ArrayVec::new());
    let (mut seed, mut large_writes, mut homed) = (1, 0, 0);
    for number in 1..=EPOCHS as u64 {
        scattered(&mut seed, pages, count, &mut dirty);
        transfers.clear();
        let (epoch, h) = (Epoch(number), map.homed_through());
        Timings::time(&mut place, || planner.place(epoch, &dirty, &mut transfers)).expect("fits");
        planner.commit_sent(epoch);
        Timings::time(&mut commit, || map.commit(&transfers, number == 1)).expect("rule 3");
        Timings::time(&mut acked, || planner.acked(epoch, h));
        Timings::time(&mut home, || {
            while let Some(first) = planner.next_homings(&mut homings) {
                map.take_homings(first, &homings).expect("in sequence");
                while let Some(copy) = map.next_copy() {
                    map.copy_finished(copy.sequence);
                    homed += 1;
                }
                planner.acked(epoch, map.homed_through());
            }
        });
        let continues = |pair: &[Transfer]| pair[0].first_frame.0 + pair[0].pages == pair[1].first_frame.0;
        large_writes += 1 + transfers.windows(2).filter(|pair| !continues(pair)).count();
    }
    print!("{guest_gib:5} GiB, {spares:8} spares, {count:6} pages:");
    for (name, timings) in
        [("place", &mut place), ("commit", &mut commit), ("acked", &mut acked), ("homings", &mut home)]
    {
        let (min, p50, p99) = timings.min_p50_p99_us();
        print!("  {name} {min:.0}/{p50:.0}/{p99:.0} us");
    }
    println!("  {} writes, {} homings an epoch", large_writes / EPOCHS, homed / EPOCHS);
}

fn main() {
    println!("min/p50/p99 of {EPOCHS} epochs");
    measure(1, 1 << 15, 10_000);
    measure(4, 1 << 16, 10_000);
    measure(64, 1 << 18, 10_000);
    measure(1024, 1 << 20, 10_000);
    measure(1024, 1 << 15, 100);
}
