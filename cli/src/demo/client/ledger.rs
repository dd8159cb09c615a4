//! What a client was told, and whether the guest keeps to it.
//!
//! Pure bookkeeping: times are given, nothing is sent or read here.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::wire::{Answer, Record};

/// Descriptions of wrong answers that are kept at most.
const MAX_COMPLAINTS: usize = 8;

/// What latencies are measured for. A request counts for the phase in which it was due, if its
/// answer comes in the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest is not protected.
    Unprotected,
    /// Checkpoints commit.
    Protected,
    /// Anything between; not measured.
    Other,
}

/// The books of one client.
#[derive(Debug)]
pub struct Ledger {
    client: u64,
    phase: Phase,
    /// Requests without an answer, oldest first: when each was due, and in which phase.
    outstanding: VecDeque<(Duration, Phase)>,
    /// Requests sent.
    requests: u64,
    /// Answers in order so far.
    answered: u64,
    /// The guest's counter before the first request; nobody else makes requests.
    base: Option<u64>,
    /// The highest counter that an answer told and that the guest has not been seen to take back.
    highest: u64,
    taken_back: u64,
    duplicates: u64,
    guest_duplicates: u64,
    heard: Option<Duration>,
    longest_silence: Duration,
    unprotected_us: Histogram<u64>,
    protected_us: Histogram<u64>,
    complaints: Vec<String>,
}

/// The middle and the tail of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct LatencyMs {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Ledger {
    /// Empty books of this client.
    pub fn new(client: u64) -> Self {
        // 1 us to 1,000 s with three digits: fixed bounds that the constructor accepts.
        let histogram = || Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("fixed bounds");
        Self {
            client,
            phase: Phase::Other,
            outstanding: VecDeque::new(),
            requests: 0,
            answered: 0,
            base: None,
            highest: 0,
            taken_back: 0,
            duplicates: 0,
            guest_duplicates: 0,
            heard: None,
            longest_silence: Duration::ZERO,
            unprotected_us: histogram(),
            protected_us: histogram(),
            complaints: Vec::new(),
        }
    }

    /// From now on another phase.
    pub fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Notes a request that was due at this time, and gives its number.
    pub fn request(&mut self, due: Duration) -> u64 {
        self.outstanding.push_back((due, self.phase));
        self.requests += 1;
        self.requests
    }

    /// Checks an answer that came at this time.
    pub fn answer(&mut self, answer: Answer, now: Duration) {
        if let Some(heard) = self.heard.replace(now) {
            self.longest_silence = self.longest_silence.max(now.saturating_sub(heard));
        }
        if answer.client != self.client || answer.number == 0 || answer.number > self.requests {
            self.complain(format!("an answer to nothing that was asked: {answer:?}"));
            return;
        }
        if answer.number <= self.answered {
            self.duplicates += 1;
            return;
        }
        if answer.number > self.answered + 1 {
            self.complain(format!(
                "{} answers are missing before {answer:?}",
                answer.number - self.answered - 1
            ));
        }
        while self.answered < answer.number {
            self.answered += 1;
            self.settle(now);
        }
        self.check_counter(answer);
    }

    /// The oldest request has its answer.
    fn settle(&mut self, now: Duration) {
        let Some((due, phase)) = self.outstanding.pop_front() else { return };
        if phase != self.phase {
            return;
        }
        let us = u64::try_from(now.saturating_sub(due).as_micros()).unwrap_or(u64::MAX);
        match phase {
            Phase::Unprotected => self.unprotected_us.saturating_record(us),
            Phase::Protected => self.protected_us.saturating_record(us),
            Phase::Other => {}
        }
    }

    fn check_counter(&mut self, answer: Answer) {
        let base = *self.base.get_or_insert(answer.counter.saturating_sub(answer.number));
        let expected = base.saturating_add(answer.number);
        if self.highest > 0 && answer.counter <= self.highest {
            self.take_back(answer.counter.saturating_sub(1));
        } else if answer.counter != expected {
            self.complain(format!("{answer:?} should tell the counter {expected}"));
        }
        self.highest = answer.counter;
    }

    /// The guest's counter stands, or stood, at `known` where more was told.
    fn take_back(&mut self, known: u64) {
        self.taken_back += self.highest - known;
        self.highest = known;
    }

    /// The highest counter told so far. What the guest is asked **after** this was read must not
    /// be less.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Checks what the guest says that it knows, asked when `highest` was told.
    pub fn audit(&mut self, record: Record, highest: u64) {
        self.guest_duplicates = self.guest_duplicates.max(record.duplicates);
        if record.client != self.client {
            self.complain(format!("asked for client {}, told {record:?}", self.client));
        } else if record.counter < highest.min(self.highest) {
            self.take_back(record.counter);
        }
    }

    /// Requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Requests sent.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Requests answered, in order.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Answers that the client had received and that the guest does not know of.
    pub fn taken_back(&self) -> u64 {
        self.taken_back
    }

    /// Answers that came twice, and requests that reached the guest twice.
    pub fn duplicates(&self) -> u64 {
        self.duplicates + self.guest_duplicates
    }

    /// The longest time between two answers since [`take_silence`](Self::take_silence), and at the
    /// end of the books until then.
    pub fn longest_silence(&self) -> Duration {
        self.longest_silence
    }

    /// The longest silence so far; from now on it is measured anew.
    pub fn take_silence(&mut self, now: Duration) -> Duration {
        self.close(now);
        self.heard = self.heard.map(|_| now);
        std::mem::take(&mut self.longest_silence)
    }

    /// Closes the books: a silence that lasts counts as well.
    pub fn close(&mut self, now: Duration) {
        if let Some(heard) = self.heard.filter(|_| !self.outstanding.is_empty()) {
            self.longest_silence = self.longest_silence.max(now.saturating_sub(heard));
        }
    }

    /// Latencies of a phase; zeros if none was measured.
    pub fn latency(&self, phase: Phase) -> LatencyMs {
        let histogram = match phase {
            Phase::Unprotected => &self.unprotected_us,
            Phase::Protected => &self.protected_us,
            Phase::Other => return LatencyMs::default(),
        };
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        LatencyMs { p50: ms(0.5), p99: ms(0.99) }
    }

    /// What protection adds to each percentile, rounded to a microsecond; never below zero.
    pub fn added_latency(&self) -> LatencyMs {
        let (with, without) = (self.latency(Phase::Protected), self.latency(Phase::Unprotected));
        let added = |with: f64, without: f64| ((with - without).max(0.0) * 1_000.0).round() / 1_000.0;
        LatencyMs { p50: added(with.p50, without.p50), p99: added(with.p99, without.p99) }
    }

    /// Answers that no order of events explains.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: u64 = 5;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A client whose first `count` requests were answered in order, one each 10 ms.
    fn after(count: u64) -> Ledger {
        let mut ledger = Ledger::new(CLIENT);
        for number in 1..=count {
            assert_eq!(ledger.request(ms(number * 10)), number);
            ledger.answer(Answer { client: CLIENT, number, counter: 100 + number }, ms(number * 10 + 1));
        }
        ledger
    }

    fn record(last: u64, counter: u64) -> Record {
        Record { client: CLIENT, last, counter, duplicates: 0 }
    }

    #[test]
    fn a_guest_that_keeps_to_its_word() {
        let mut ledger = after(10);
        ledger.audit(record(10, 110), ledger.highest());
        ledger.close(ms(5_000));
        assert_eq!((ledger.requests(), ledger.answered(), ledger.outstanding()), (10, 10, 0));
        assert_eq!((ledger.taken_back(), ledger.duplicates()), (0, 0));
        assert_eq!(ledger.longest_silence(), ms(10));
        assert_eq!(ledger.complaints(), [""; 0]);
    }

    #[test]
    fn a_guest_that_went_back_is_found_by_the_next_answer() {
        let mut ledger = after(10);
        ledger.request(ms(200));
        ledger.answer(Answer { client: CLIENT, number: 11, counter: 108 }, ms(201));
        // 108, 109 and 110 were told before.
        assert_eq!(ledger.taken_back(), 3);
    }

    #[test]
    fn a_guest_that_went_back_is_found_by_asking_and_counted_once() {
        let mut ledger = after(10);
        ledger.audit(record(6, 106), ledger.highest());
        assert_eq!(ledger.taken_back(), 4);
        ledger.audit(record(6, 106), ledger.highest());
        assert_eq!(ledger.taken_back(), 4);
    }

    #[test]
    fn an_answer_that_overtakes_the_audit_is_no_violation() {
        let mut ledger = after(10);
        let highest = ledger.highest();
        ledger.request(ms(200));
        ledger.answer(Answer { client: CLIENT, number: 11, counter: 111 }, ms(201));
        ledger.audit(record(10, 110), highest);
        assert_eq!(ledger.taken_back(), 0);
    }

    #[test]
    fn silence_is_measured_anew_from_where_it_was_taken() {
        let mut ledger = after(2);
        ledger.request(ms(30));
        assert_eq!(ledger.take_silence(ms(221)), ms(200));
        ledger.answer(Answer { client: CLIENT, number: 3, counter: 103 }, ms(251));
        assert_eq!(ledger.longest_silence(), ms(30));
    }

    #[test]
    fn answers_that_come_twice_skip_or_were_never_asked_for() {
        let mut ledger = after(4);
        ledger.answer(Answer { client: CLIENT, number: 4, counter: 104 }, ms(50));
        assert_eq!(ledger.duplicates(), 1);
        ledger.audit(Record { client: CLIENT, last: 4, counter: 104, duplicates: 2 }, ledger.highest());
        assert_eq!(ledger.duplicates(), 3);
        ledger.answer(Answer { client: CLIENT, number: 9, counter: 109 }, ms(60));
        ledger.answer(Answer { client: CLIENT + 1, number: 1, counter: 105 }, ms(61));
        assert_eq!(ledger.complaints().len(), 2);
        for due in 0..2 {
            ledger.request(ms(70 + due));
        }
        ledger.answer(Answer { client: CLIENT, number: 6, counter: 106 }, ms(80));
        assert_eq!(ledger.complaints().len(), 3, "{:?}", ledger.complaints());
        ledger.request(ms(90));
        // Counted twice by the guest.
        ledger.answer(Answer { client: CLIENT, number: 7, counter: 108 }, ms(91));
        assert_eq!(ledger.complaints().len(), 4, "{:?}", ledger.complaints());
        assert_eq!(ledger.taken_back(), 0);
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due_and_only_within_its_phase() {
        let exchange = |ledger: &mut Ledger, at: u64, takes: u64| {
            let number = ledger.request(ms(at));
            ledger.answer(Answer { client: CLIENT, number, counter: number }, ms(at + takes));
        };
        let mut ledger = Ledger::new(CLIENT);
        ledger.set_phase(Phase::Unprotected);
        exchange(&mut ledger, 0, 2);
        ledger.request(ms(5));
        ledger.set_phase(Phase::Protected);
        // Due before the change: counts nowhere.
        ledger.answer(Answer { client: CLIENT, number: 2, counter: 2 }, ms(905));
        exchange(&mut ledger, 1_000, 20);
        exchange(&mut ledger, 1_100, 20);
        let added = ledger.added_latency();
        assert!((added.p50 - 18.0).abs() < 0.1 && (added.p99 - 18.0).abs() < 0.1, "{added:?}");
        assert_eq!(ledger.longest_silence(), ms(903));
        ledger.request(ms(1_200));
        ledger.close(ms(4_120));
        assert_eq!(ledger.longest_silence(), ms(3_000));
    }
}
