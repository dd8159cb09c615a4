//! What the threads of a primary share, and how the machine's actions are carried out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use romulus_transport::{Fabric, Memory};

use super::jobs::{Jobs, SlotMemory};
use super::link::Link;
use super::options::PrimaryOptions;
use super::staging::{PIECE_BYTES, Staging};
use super::status::{PrimaryOutcome, Refusal, SyncProgress, state_name};
use crate::PAGE_BYTES;
use crate::arbiter::{Arbiter, Record};
use crate::driver::Clock;
use crate::driver::borders::Borders;
use crate::driver::journal::Journal;
use crate::driver::signal::{Signal, lock};
use crate::gate::OutputGate;
use crate::ids::{Epoch, Identity, Time};
use crate::layout::{ArenaShape, GuestLayout};
use crate::metrics::{Counter, Metrics, Phase, Quantity};
use crate::primary::{Actions, Primary, PrimaryAction, PrimaryReport, PrimaryState};
use crate::wire::message::{ByeReason, Message, encode};

/// Room for the actions of a few steps without allocation.
const ACTIONS: usize = 64;

/// What the arbiter's thread is asked.
pub(super) enum Question {
    /// See [`PrimaryAction::Swap`].
    Swap(Option<Record>, Record),
    /// See [`PrimaryAction::ReadRecord`].
    Read,
}

/// The machine and the list that its calls append to.
pub(super) struct Machine {
    pub primary: Primary,
    pub actions: Actions,
}

/// Orders to `capture`, which alone touches the guest.
#[derive(Debug, Default)]
pub(super) struct GuestOrders {
    /// The backup owns the guest.
    pub destroy: AtomicBool,
    /// A last checkpoint's pause is over.
    pub resume: AtomicBool,
}

/// What status tells and no machine or metric knows.
#[derive(Debug, Default)]
pub(super) struct View {
    pub journal: Journal,
    pub last_dirty_pages: u64,
    pub pieced_epochs: u64,
    pub connections: u64,
    pub overflows: u64,
    pub bytes_of_closed_links: u64,
    /// The backup's last refusal, until an epoch is acked.
    pub refusal: Option<Refusal>,
    /// Why the last attempt to connect failed.
    pub obstacle: Option<String>,
    /// The pause of the last acked epoch.
    pub acked_pause: Option<Time>,
    /// When the Commit of epoch n was posted, at n modulo the length.
    pub posted: [(Epoch, Time); 16],
}

/// Everything that more than one thread uses.
pub(super) struct Shared {
    pub options: PrimaryOptions,
    pub shape: ArenaShape,
    pub borders: Borders,
    pub guest_memory: Vec<Memory>,
    pub registrable: bool,
    pub gate: Arc<dyn OutputGate>,
    pub arbiter: Arc<dyn Arbiter>,
    pub fabric: Arc<dyn Fabric>,
    pub pause_flag: Arc<dyn Fn(bool) + Send + Sync>,
    pub staging: Staging,
    pub slots: SlotMemory,
    pub jobs: Jobs,
    pub clock: Clock,
    pub metrics: Metrics,
    pub orders: GuestOrders,
    pub view: Mutex<View>,
    pub sync_round: AtomicU64,
    pub sync_done: AtomicU64,
    pub sync_total: AtomicU64,
    /// The connection, from its establishment to the machine's knowledge of its end.
    pub link: Mutex<Option<Arc<Link>>>,
    pub wake_capture: Signal,
    pub wake_control: Signal,
    /// All threads are to end.
    pub over: AtomicBool,
    /// Whoever waits for that. Not `wake_capture`: that one wakes for each message.
    pub ended: Signal,
    pub outcome: Mutex<Option<PrimaryOutcome>>,
    pub questions: Mutex<Option<Sender<Question>>>,
    machine: Mutex<Machine>,
    queue: Mutex<VecDeque<PrimaryAction>>,
    performing: Mutex<Vec<u8>>,
}

/// The parts of [`Shared`] that are made elsewhere.
pub(super) struct Base {
    pub options: PrimaryOptions,
    pub layout: GuestLayout,
    pub shape: ArenaShape,
    pub guest_memory: Vec<Memory>,
    pub registrable: bool,
    pub gate: Arc<dyn OutputGate>,
    pub arbiter: Arc<dyn Arbiter>,
    pub fabric: Arc<dyn Fabric>,
    pub pause_flag: Arc<dyn Fn(bool) + Send + Sync>,
    pub staging: Staging,
    pub slots: SlotMemory,
    pub jobs: Jobs,
    pub clock: Clock,
    pub questions: Sender<Question>,
    pub primary: Primary,
}

impl Shared {
    pub fn new(base: Base) -> Self {
        let spin = base.options.spin;
        Self {
            borders: Borders::new(&base.layout),
            options: base.options,
            shape: base.shape,
            guest_memory: base.guest_memory,
            registrable: base.registrable,
            gate: base.gate,
            arbiter: base.arbiter,
            fabric: base.fabric,
            pause_flag: base.pause_flag,
            staging: base.staging,
            slots: base.slots,
            jobs: base.jobs,
            clock: base.clock,
            metrics: Metrics::new(),
            orders: GuestOrders::default(),
            view: Mutex::default(),
            sync_round: AtomicU64::new(0),
            sync_done: AtomicU64::new(0),
            sync_total: AtomicU64::new(0),
            link: Mutex::new(None),
            wake_capture: Signal::new(spin),
            wake_control: Signal::new(Duration::ZERO),
            over: AtomicBool::new(false),
            ended: Signal::new(Duration::ZERO),
            outcome: Mutex::new(None),
            questions: Mutex::new(Some(base.questions)),
            machine: Mutex::new(Machine { primary: base.primary, actions: Vec::with_capacity(ACTIONS) }),
            queue: Mutex::new(VecDeque::with_capacity(ACTIONS)),
            performing: Mutex::new(Vec::with_capacity(romulus_transport::fabric::MAX_MESSAGE_BYTES)),
        }
    }

    /// Calls the machine; what it asks for is queued for [`perform`](Self::perform).
    pub fn call<R>(&self, step: impl FnOnce(&mut Primary, Time, &mut Actions) -> R) -> R {
        let mut machine = lock(&self.machine);
        let Machine { primary, actions } = &mut *machine;
        let result = step(primary, self.clock.now(), actions);
        if !actions.is_empty() {
            // Queued under the machine's lock: the queue is in the machine's order.
            lock(&self.queue).extend(actions.drain(..));
        }
        result
    }

    /// Calls the machine, carries out what it asks for, and lets `capture` look again.
    pub fn step<R>(&self, step: impl FnOnce(&mut Primary, Time, &mut Actions) -> R) -> R {
        let result = self.call(step);
        self.perform();
        self.wake_capture.notify();
        result
    }

    /// Carries out all queued actions in order. On return everything queued before the call has
    /// been carried out, by this thread or another.
    pub fn perform(&self) {
        let mut bytes = lock(&self.performing);
        loop {
            let Some(action) = lock(&self.queue).pop_front() else { return };
            self.perform_one(action, &mut bytes);
        }
    }

    fn perform_one(&self, action: PrimaryAction, bytes: &mut Vec<u8>) {
        match action {
            PrimaryAction::Send(identity, message) => {
                if matches!(message, Message::Bye { reason: ByeReason::Failover }) {
                    self.gate.flush();
                }
                self.send(&identity, &message, bytes);
            }
            PrimaryAction::Release(token) => {
                self.metrics.record_quantity(Quantity::HeldPackets, self.gate.level().packets);
                self.gate.release(&token);
            }
            PrimaryAction::HoldOutput => {
                let outcome = self.gate.hold().map_err(|error| error.to_string());
                self.call(|primary, now, actions| primary.handle_held(outcome, now, actions));
            }
            PrimaryAction::CloseConnection(why) => {
                if let Some(link) = self.link() {
                    self.close_link(&link, &why);
                }
            }
            PrimaryAction::Swap { expected, new } => self.ask(Question::Swap(expected, new)),
            PrimaryAction::ReadRecord => self.ask(Question::Read),
            PrimaryAction::DestroyGuest => self.orders.destroy.store(true, Ordering::Release),
            PrimaryAction::ResumeGuest => self.orders.resume.store(true, Ordering::Release),
            PrimaryAction::Report(report) => self.report(&report),
        }
    }

    fn send(&self, identity: &Identity, message: &Message, bytes: &mut Vec<u8>) {
        // A message of a connection that is gone has nowhere to go.
        let Some(link) = self.link_of(identity) else { return };
        bytes.clear();
        encode(identity, message, bytes);
        if let Err(error) = link.endpoint.send(bytes) {
            tracing::debug!(%error, "sending a message failed");
            link.endpoint.close();
        }
    }

    fn ask(&self, question: Question) {
        let questions = lock(&self.questions);
        if questions.as_ref().is_none_or(|questions| questions.send(question).is_err()) {
            tracing::warn!("the arbiter's thread is gone");
        }
    }

    /// The connection, if there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        lock(&self.link).clone()
    }

    /// The connection, if what is placed or said under `identity` may be sent on it.
    pub fn link_of(&self, identity: &Identity) -> Option<Arc<Link>> {
        self.link().filter(|link| link.carries(identity))
    }

    /// Ends a connection for good; `control` sees the end and tells the machine.
    pub fn close_link(&self, link: &Link, why: &str) {
        self.note(&format!("closing the connection: {why}"));
        link.endpoint.close();
    }

    /// A line for people.
    pub fn note(&self, text: &str) {
        tracing::info!(guest = %self.options.machine.guest, "{text}");
        lock(&self.view).journal.add(self.clock.now(), text);
    }

    fn report(&self, report: &PrimaryReport) {
        match report {
            PrimaryReport::State(state, why) => {
                self.note(&format!("{}: {why}", state_name(*state)));
                lock(&self.view).journal.state_reason.clone_from(why);
            }
            PrimaryReport::Acked { epoch, commit_latency } => self.count_ack(*epoch, *commit_latency),
            PrimaryReport::Overflow { pages } => {
                self.metrics.count(Counter::Overflows, 1);
                lock(&self.view).overflows += 1;
                let spares = self.shape.spares;
                self.note(&format!(
                    "an epoch of {pages} pages exceeds the {spares} spare frames of the backup: \
                     synchronizing anew, unprotected meanwhile"
                ));
            }
            PrimaryReport::Resumed { at, pages } => {
                self.metrics.count(Counter::DeltaSyncs, 1);
                self.note(&format!("goes on from epoch {at} without a full copy, {pages} pages to repeat"));
            }
            // Told as the failure to connect, or as the end of the connection.
            PrimaryReport::Refused { code, text } => {
                lock(&self.view).refusal = Some(Refusal { code: format!("{code:?}"), text: text.clone() });
            }
        }
    }

    fn count_ack(&self, epoch: Epoch, commit_latency: Duration) {
        let now = self.clock.now();
        self.metrics.count(Counter::EpochsCommitted, 1);
        self.metrics.record(Phase::CommitLatency, commit_latency);
        let mut view = lock(&self.view);
        let pause = now.nanoseconds.saturating_sub(commit_latency.as_nanos() as u64);
        view.acked_pause = Some(Time { nanoseconds: pause });
        view.refusal = None;
        let (posted_epoch, posted) = view.posted[epoch.0 as usize % view.posted.len()];
        drop(view);
        if posted_epoch == epoch {
            self.metrics.record(Phase::Ack, now.since(posted));
        }
    }

    /// Remembers when a Commit was posted.
    pub fn count_posted(&self, epoch: Epoch) {
        let now = self.clock.now();
        let mut view = lock(&self.view);
        let place = epoch.0 as usize % view.posted.len();
        view.posted[place] = (epoch, now);
    }

    /// Where the machine stands.
    pub fn state(&self) -> PrimaryState {
        lock(&self.machine).primary.state()
    }

    /// Last acked epoch and epochs on their way.
    pub fn progress(&self) -> (PrimaryState, Epoch, u64) {
        let machine = lock(&self.machine);
        (machine.primary.state(), machine.primary.acked(), machine.primary.unacked())
    }

    /// The progress of the synchronization.
    pub fn sync_progress(&self) -> SyncProgress {
        SyncProgress {
            round: self.sync_round.load(Ordering::Relaxed),
            pages_done: self.sync_done.load(Ordering::Relaxed),
            pages_total: self.sync_total.load(Ordering::Relaxed),
        }
    }

    /// Sets how it ended; the first to say so wins.
    pub fn conclude(&self, outcome: PrimaryOutcome) {
        lock(&self.outcome).get_or_insert(outcome);
    }

    /// It ended in a failure, whatever else was said before.
    pub fn conclude_failed_also(&self, text: &str) {
        let mut outcome = lock(&self.outcome);
        *outcome = Some(PrimaryOutcome::Failed(match outcome.take() {
            Some(PrimaryOutcome::Failed(before)) => format!("{before}; {text}"),
            _ => text.to_owned(),
        }));
    }

    /// From how many pages on an epoch is sent from the paused guest's memory, as far as that goes.
    pub fn send_now_from_pages(&self) -> u64 {
        self.options.send_now_from_pages.unwrap_or_else(|| {
            let staging_pages = self.staging.count() as u64 * PIECE_BYTES / PAGE_BYTES;
            staging_pages / self.options.machine.depth + 1
        })
    }

    /// Whether all threads are to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends all threads.
    pub fn finish(&self) {
        self.over.store(true, Ordering::Release);
        *lock(&self.questions) = None;
        self.wake_capture.notify();
        self.wake_control.notify();
        self.jobs.wake_sender.notify();
        self.ended.notify();
    }

    /// Something that cannot be gone on from: all threads end, `capture` looks after the guest.
    pub fn fail(&self, text: String) {
        tracing::error!(guest = %self.options.machine.guest, "{text}");
        self.conclude(PrimaryOutcome::Failed(text));
        self.finish();
    }
}
