//! What the harness itself sees of every epoch, counted from when the epoch was due.
//!
//! The engine times what it does. That leaves out what it did not come to do: while one epoch takes
//! 300 ms at an interval of 10 ms, 29 others do not begin, and are in no histogram (coordinated
//! omission). Here each instant at which an epoch was due has its own pause and its own commit: that
//! of the first epoch that began at or after it, counted from the instant.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use romulus_checkpoint::{Extent, GateMark};

use crate::histogram::Latencies;

/// Epochs on their way at the most; a driver's depth is far below.
const ROOM: usize = 256;
/// Instants of one epoch that are counted at the most: an hour's stall at a millisecond.
const MOST_DUE: u64 = 3_600_000;
/// Epochs whose pages are kept for the memcpy beside them.
const SAMPLES: usize = 32;

/// The instants at which an epoch was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The first.
    pub first: Instant,
    /// How many, `step` apart.
    pub count: u64,
    /// The interval.
    pub step: Duration,
}

impl Due {
    fn record(&self, until: Instant, into: &mut Latencies) {
        for number in 0..self.count {
            let due = self.first + self.step.mul_f64(number as f64);
            into.record(until.saturating_duration_since(due));
        }
    }
}

/// When epochs are due: as the engine has it, an interval after the last one, and when one was an
/// interval late or more, an interval after it began.
#[derive(Debug, Default)]
pub struct Schedule {
    anchor: Option<Instant>,
}

impl Schedule {
    /// An epoch begins.
    pub fn begin(&mut self, now: Instant, interval: Duration) -> Due {
        let first = self.anchor.map_or(now, |anchor| anchor + interval);
        if first >= now {
            // The first of all, or one that was ended early.
            self.anchor = Some(now);
            return Due { first: now, count: 1, step: interval };
        }
        let behind = (now - first).as_nanos() / interval.as_nanos().max(1);
        let count = (behind as u64).saturating_add(1).min(MOST_DUE);
        self.anchor = Some(if count == 1 { first } else { now });
        Due { first, count, step: interval }
    }

    /// What has become due since the last epoch began; none of it has begun.
    fn waiting(&self, now: Instant, interval: Duration) -> Option<Due> {
        let first = self.anchor? + interval;
        let behind = now.checked_duration_since(first).filter(|behind| !behind.is_zero())?;
        let count = behind.as_nanos().div_ceil(interval.as_nanos().max(1));
        Some(Due { first, count: (count as u64).min(MOST_DUE), step: interval })
    }
}

#[derive(Debug)]
struct Books {
    schedule: Schedule,
    /// The epoch that is being captured, and when its pause began.
    present: Option<(Due, Instant)>,
    /// Captured and not acked.
    flights: VecDeque<(GateMark, Due)>,
    pause: Latencies,
    commit: Latencies,
    /// Time that the guest stood still.
    paused: Duration,
    samples: Vec<Vec<Extent>>,
}

/// Shared by the wrapped guest, the gate and the harness.
#[derive(Debug)]
pub struct Observer {
    interval_ns: AtomicU64,
    sampling: AtomicBool,
    pauses: AtomicU64,
    books: Mutex<Books>,
}

/// What was seen since [`Observer::reset`].
#[derive(Clone, Debug)]
pub struct Seen {
    /// From when an epoch was due to the guest running on.
    pub pause: Latencies,
    /// From when an epoch was due to its output let go.
    pub commit: Latencies,
    /// Time that the guest stood still.
    pub paused: Duration,
}

impl Observer {
    /// For epochs of this length.
    pub fn new(interval: Duration) -> Self {
        let books = Books {
            schedule: Schedule::default(),
            present: None,
            flights: VecDeque::with_capacity(ROOM),
            pause: Latencies::default(),
            commit: Latencies::default(),
            paused: Duration::ZERO,
            samples: Vec::with_capacity(SAMPLES),
        };
        let observer = Self {
            interval_ns: AtomicU64::new(0),
            sampling: AtomicBool::new(false),
            pauses: AtomicU64::new(0),
            books: Mutex::new(books),
        };
        observer.set_interval(interval);
        observer
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the next epoch on.
    pub fn set_interval(&self, interval: Duration) {
        self.interval_ns.store(interval.as_nanos() as u64, Ordering::Release);
    }

    /// Measuring begins: what was seen so far is forgotten.
    pub fn reset(&self) {
        let mut books = self.books();
        books.pause = Latencies::default();
        books.commit = Latencies::default();
        books.paused = Duration::ZERO;
        books.samples.clear();
        self.pauses.store(0, Ordering::Release);
        self.sampling.store(true, Ordering::Release);
    }

    /// What was seen since measuring began. What has waited for an interval or longer counts as if it
    /// ended now: else a stall that lasts to the end would not be seen at all. What has waited for less
    /// does not: it says nothing of how long it will take.
    pub fn seen(&self, now: Instant) -> Seen {
        let interval = self.interval();
        let books = self.books();
        let mut seen =
            Seen { pause: books.pause.clone(), commit: books.commit.clone(), paused: books.paused };
        let stalls = |due: &Due| now.saturating_duration_since(due.first) >= interval;
        for (_, due) in books.flights.iter().filter(|(_, due)| stalls(due)) {
            due.record(now, &mut seen.commit);
        }
        if let Some((_, began)) = books.present {
            seen.paused += now.saturating_duration_since(began);
        }
        if let Some((due, _)) = books.present.filter(|(due, _)| stalls(due)) {
            due.record(now, &mut seen.pause);
            if books.flights.back().is_none_or(|(_, last)| *last != due) {
                due.record(now, &mut seen.commit);
            }
        }
        if let Some(due) = books.schedule.waiting(now, interval).filter(stalls) {
            due.record(now, &mut seen.pause);
            due.record(now, &mut seen.commit);
        }
        seen
    }

    fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns.load(Ordering::Acquire))
    }

    /// The pages of some epochs.
    pub fn samples(&self) -> Vec<Vec<Extent>> {
        self.books().samples.clone()
    }

    /// The guest is about to be paused; the number of the pause since measuring began.
    pub fn pause_begins(&self, now: Instant) -> u64 {
        let interval = self.interval();
        let mut books = self.books();
        books.present = Some((books.schedule.begin(now, interval), now));
        self.pauses.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the present or last pause since measuring began.
    pub fn pause_number(&self) -> u64 {
        self.pauses.load(Ordering::Acquire)
    }

    /// The guest runs again after a pause that began at `began`.
    pub fn pause_ends(&self, began: Instant, now: Instant) {
        let books = &mut *self.books();
        books.paused += now.saturating_duration_since(began);
        if let Some((due, _)) = books.present.take() {
            due.record(now, &mut books.pause);
        }
    }

    /// The epoch being captured has this mark.
    pub fn marked(&self, mark: GateMark) {
        let mut books = self.books();
        if let Some((due, _)) = books.present.filter(|_| books.flights.len() < ROOM) {
            books.flights.push_back((mark, due));
        }
    }

    /// Output up to this mark may leave.
    pub fn released(&self, through: GateMark, now: Instant) {
        let books = &mut *self.books();
        while let Some((_, due)) = books.flights.front().copied().filter(|(mark, _)| *mark <= through) {
            books.flights.pop_front();
            due.record(now, &mut books.commit);
        }
    }

    /// The pages of an epoch; a few are kept.
    pub fn collected(&self, dirty: &[Extent]) {
        if dirty.is_empty() || !self.sampling.load(Ordering::Acquire) {
            return;
        }
        let mut books = self.books();
        books.samples.push(dirty.to_vec());
        if books.samples.len() >= SAMPLES {
            self.sampling.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Epochs every 10 ms with pauses of 1 ms and commits after 2 ms; the 50th pause takes 300 ms.
    /// Gives the end.
    fn play(observer: &Observer) -> Instant {
        let mut at = Instant::now();
        for epoch in 1..=100u64 {
            let pause = if epoch == 50 { 300 * MS } else { MS };
            observer.pause_begins(at);
            observer.marked(GateMark(epoch));
            observer.pause_ends(at, at + pause);
            observer.released(GateMark(epoch), at + pause + MS);
            at += pause.max(10 * MS);
        }
        at
    }

    #[test]
    fn a_stall_counts_for_every_epoch_that_it_left_out() {
        let observer = Observer::new(10 * MS);
        let end = play(&observer);
        let seen = observer.seen(end);
        // 99 that were in time, and those that were due while the 50th went on: the first 10 ms of
        // its 300 are its own interval.
        assert_eq!((seen.pause.count(), seen.commit.count()), (100 + 29, 100 + 29));
        // What a clock around each pause would say: 1 of 100 was slow.
        assert!(seen.pause.quantile_us(0.75) < 1100.0);
        // What those who waited say: a fifth was.
        assert!(seen.pause.quantile_us(0.85) > 50_000.0, "{}", seen.pause.line());
        assert!(seen.commit.quantile_us(0.85) > 50_000.0, "{}", seen.commit.line());
        assert_eq!(seen.paused, 99 * MS + 300 * MS);
    }

    #[test]
    fn a_stall_that_lasts_to_the_end_counts_as_one_that_ends_there() {
        let end_after = 295 * MS;
        let seen = |ends: bool, marked: bool| {
            let observer = Observer::new(10 * MS);
            let begun = play(&observer);
            let end = begun + end_after;
            observer.pause_begins(begun);
            if marked || ends {
                observer.marked(GateMark(101));
            }
            if ends {
                observer.pause_ends(begun, end);
                observer.released(GateMark(101), end);
            }
            observer.seen(end)
        };
        let ended = seen(true, true);
        assert_eq!(ended.pause.count(), 129 + 1 + 29);
        for marked in [false, true] {
            let lasts = seen(false, marked);
            assert_eq!(lasts.paused, ended.paused);
            for (lasts, ended) in [(&lasts.pause, &ended.pause), (&lasts.commit, &ended.commit)] {
                assert_eq!(lasts.count(), ended.count());
                assert_eq!(lasts.quantile_us(1.0), ended.quantile_us(1.0));
                assert_eq!(lasts.quantile_us(0.9), ended.quantile_us(0.9));
            }
        }
    }

    #[test]
    fn epochs_that_are_not_acked_at_the_end_have_waited_until_then() {
        let observer = Observer::new(10 * MS);
        let begun = play(&observer);
        observer.pause_begins(begun);
        observer.marked(GateMark(101));
        observer.pause_ends(begun, begun + MS);
        let seen = observer.seen(begun + 18 * MS);
        assert_eq!((seen.pause.count(), seen.commit.count()), (130, 130));
        // Before it has waited for an interval nothing is said of it.
        let early = observer.seen(begun + 8 * MS);
        assert_eq!((early.pause.count(), early.commit.count()), (130, 129));
        // And it is said of that moment only.
        observer.released(GateMark(101), begun + 18 * MS);
        assert_eq!(observer.seen(begun + 19 * MS).commit.count(), 130);
    }

    #[test]
    fn epochs_in_time_are_counted_once_and_from_when_they_were_due() {
        let mut schedule = Schedule::default();
        let start = Instant::now();
        let first = schedule.begin(start, 10 * MS);
        assert_eq!(first, Due { first: start, count: 1, step: 10 * MS });
        // 3 ms late: counted from when it was due, and the next is due 10 ms after that.
        let late = schedule.begin(start + 13 * MS, 10 * MS);
        assert_eq!((late.first, late.count), (start + 10 * MS, 1));
        let next = schedule.begin(start + 20 * MS, 10 * MS);
        assert_eq!((next.first, next.count), (start + 20 * MS, 1));
        // Ended early: due when it began.
        let early = schedule.begin(start + 24 * MS, 10 * MS);
        assert_eq!((early.first, early.count), (start + 24 * MS, 1));
        // More than an interval late: all that were due, and the rhythm begins anew.
        let stalled = schedule.begin(start + 65 * MS, 10 * MS);
        assert_eq!((stalled.first, stalled.count), (start + 34 * MS, 4));
        let after = schedule.begin(start + 75 * MS, 10 * MS);
        assert_eq!((after.first, after.count), (start + 75 * MS, 1));
    }

    #[test]
    fn what_was_seen_before_measuring_is_forgotten() {
        let observer = Observer::new(10 * MS);
        let end = play(&observer);
        observer.reset();
        assert_eq!(observer.seen(end).pause.count(), 0);
        assert_eq!(observer.pause_begins(Instant::now()), 1);
    }
}
