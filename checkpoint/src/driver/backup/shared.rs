//! What the threads of a backup share, and how the machine's actions are carried out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use romulus_transport::{Endpoint, Memory};

use super::arena::{ArenaProvider, BackupArena};
use super::homes::Homes;
use super::options::{BackupOptions, BackupParts};
use super::status::{BackupOutcome, TakeoverStatus, state_name};
use crate::arbiter::{Arbiter, Record};
use crate::backup::{Actions, Backup, BackupAction, BackupReport, BackupState};
use crate::driver::Clock;
use crate::driver::journal::Journal;
use crate::driver::signal::{Signal, lock};
use crate::driver::threads::ThreadSetup;
use crate::extent::Transfer;
use crate::ids::{Epoch, Identity, Time};
use crate::layout::{ArenaShape, GuestLayout};
use crate::metrics::{Counter, Metrics, Phase};
use crate::placement::committed::HomingCopy;
use crate::standby::Standby;
use crate::wire::message::{MachineIdentity, Message, encode};
use crate::wire::slot::{self, SlotHeader};

/// Room for the actions of a few steps without allocation.
const ACTIONS: usize = 64;
/// Slots whose place of the state is remembered.
const SLOTS_SEEN: usize = 8;

/// What the `takeover` thread is asked.
pub(super) enum Errand {
    /// See [`BackupAction::Swap`].
    Swap(Option<Record>, Record),
    /// See [`BackupAction::ReadRecord`].
    Read,
    /// See [`BackupAction::TakeOver`].
    TakeOver(Epoch, Vec<HomingCopy>),
}

/// What the `standby` thread is asked.
pub(super) enum StandbyErrand {
    /// See [`BackupAction::Trial`]; the state, copied.
    Trial(Result<Vec<u8>, String>),
    /// See [`BackupAction::Abandon`]; the memory lent to the session that ended.
    Abandon(Option<Arc<Lent>>),
}

/// An established connection from a primary.
pub(super) struct Link {
    pub identity: Identity,
    pub endpoint: Arc<dyn Endpoint>,
    pub peer: SocketAddr,
}

/// The memory lent to the present session.
pub(super) struct Lent {
    pub shape: ArenaShape,
    pub layout: GuestLayout,
    pub machine: MachineIdentity,
    pub memory: BackupArena,
    pub arena: romulus_transport::Arena,
    pub homes: Homes,
    /// The guest may have run on the image: it is not the committed guest any more.
    pub spoiled: AtomicBool,
}

impl Lent {
    /// The guest may have run on this image.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Release);
    }

    /// Whether nothing may be started over this image any more.
    pub fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Acquire)
    }

    /// The slot of an epoch.
    pub fn slot(&self, epoch: Epoch) -> Memory {
        let offset = (epoch.0 % self.shape.slots) * self.shape.slot_bytes;
        self.memory.slots.part(offset as usize, self.shape.slot_bytes as usize)
    }
}

/// Scratch of whoever carries out actions.
#[derive(Default)]
pub(super) struct Performer {
    bytes: Vec<u8>,
    transfers: Vec<Transfer>,
}

/// What status tells and no machine or metric knows.
#[derive(Default)]
pub(super) struct View {
    pub guest: String,
    pub journal: Journal,
    pub last_dirty_pages: u64,
    pub connections: u64,
    pub takeover: Option<TakeoverStatus>,
    /// When the takeover's present step began.
    pub step_began: Time,
    /// The primary's last sign of life before the takeover.
    pub last_sign: Option<Time>,
}

struct Machine {
    backup: Backup,
    actions: Actions,
}

/// Everything that more than one thread uses.
pub(super) struct Shared {
    pub options: BackupOptions,
    pub arbiter: Arc<dyn Arbiter>,
    pub threads: Arc<dyn ThreadSetup>,
    pub clock: Clock,
    pub metrics: Metrics,
    pub view: Mutex<View>,
    pub local_address: SocketAddr,
    /// The connection, from its establishment to the machine's knowledge of its end.
    pub link: Mutex<Option<Arc<Link>>>,
    pub lent: Mutex<Option<Arc<Lent>>>,
    pub arenas: Mutex<Box<dyn ArenaProvider>>,
    pub standby: Mutex<Box<dyn Standby>>,
    /// Held by `committer` while it handles an event, and by a handshake while it replaces the
    /// connection.
    pub committing: Mutex<()>,
    /// Held by a handshake from the exposure of the arena until the connection is in `link`: a
    /// fence that has held it knows all connections.
    pub exposing: Mutex<()>,
    /// One handshake beyond the Hello at a time.
    pub admitting: Mutex<()>,
    /// Nanoseconds of the clock at the last event from the primary; 0: none yet.
    pub last_heard: AtomicU64,
    pub wake_committer: Signal,
    pub wake_homing: Signal,
    pub homing_done: Signal,
    pub stopping: AtomicBool,
    pub over: AtomicBool,
    pub ended: Signal,
    pub outcome: Mutex<Option<BackupOutcome>>,
    pub errands: Mutex<Option<Sender<Errand>>>,
    pub standby_errands: Mutex<Option<Sender<StandbyErrand>>>,
    slots_seen: Mutex<[Option<SlotHeader>; SLOTS_SEEN]>,
    trial_state: Mutex<Option<Result<Vec<u8>, String>>>,
    machine: Mutex<Machine>,
    queue: Mutex<VecDeque<BackupAction>>,
    performing: Mutex<Performer>,
}

impl Shared {
    pub fn new(
        options: BackupOptions,
        parts: BackupParts,
        local_address: SocketAddr,
        errands: Sender<Errand>,
        standby_errands: Sender<StandbyErrand>,
    ) -> Self {
        let clock = Clock::default();
        let backup = Backup::new(options.machine.clone(), clock.now());
        let bytes = Vec::with_capacity(romulus_transport::fabric::MAX_MESSAGE_BYTES);
        let signal = || Signal::new(std::time::Duration::ZERO);
        Self {
            options,
            arbiter: parts.arbiter,
            threads: parts.threads,
            arenas: Mutex::new(parts.arenas),
            clock,
            metrics: Metrics::new(),
            view: Mutex::default(),
            local_address,
            link: Mutex::new(None),
            lent: Mutex::new(None),
            standby: Mutex::new(parts.standby),
            committing: Mutex::new(()),
            exposing: Mutex::new(()),
            admitting: Mutex::new(()),
            last_heard: AtomicU64::new(0),
            wake_committer: signal(),
            wake_homing: signal(),
            homing_done: signal(),
            stopping: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ended: signal(),
            outcome: Mutex::new(None),
            errands: Mutex::new(Some(errands)),
            standby_errands: Mutex::new(Some(standby_errands)),
            slots_seen: Mutex::new([None; SLOTS_SEEN]),
            trial_state: Mutex::new(None),
            machine: Mutex::new(Machine { backup, actions: Vec::with_capacity(ACTIONS) }),
            queue: Mutex::new(VecDeque::with_capacity(ACTIONS)),
            performing: Mutex::new(Performer { bytes, transfers: Vec::new() }),
        }
    }

    /// Calls the machine; what it asks for is queued for [`perform`](Self::perform).
    pub fn call<R>(&self, step: impl FnOnce(&mut Backup, Time, &mut Actions) -> R) -> R {
        let mut machine = lock(&self.machine);
        let Machine { backup, actions } = &mut *machine;
        let result = step(backup, self.clock.now(), actions);
        if !actions.is_empty() {
            for action in actions.iter() {
                if let BackupAction::Trial { epoch } = action {
                    // Copied before anything is acked: the primary cannot write this slot yet.
                    *lock(&self.trial_state) = Some(self.read_state(*epoch));
                }
            }
            // Queued under the machine's lock: the queue is in the machine's order.
            lock(&self.queue).extend(actions.drain(..));
        }
        result
    }

    /// Calls the machine and carries out what it asks for.
    pub fn step<R>(&self, step: impl FnOnce(&mut Backup, Time, &mut Actions) -> R) -> R {
        let result = self.call(step);
        self.perform();
        result
    }

    /// Carries out all queued actions in order. On return everything queued before the call has
    /// been carried out, by this thread or another.
    pub fn perform(&self) {
        let mut performer = lock(&self.performing);
        loop {
            let Some(action) = lock(&self.queue).pop_front() else { return };
            self.perform_one(action, &mut performer);
        }
    }

    fn perform_one(&self, action: BackupAction, performer: &mut Performer) {
        match action {
            BackupAction::Send(identity, message) => self.send(&identity, &message, performer),
            BackupAction::ReadSlot { identity, epoch } => self.read_slot(&identity, epoch, performer),
            BackupAction::WakeHoming => self.wake_homing.notify(),
            BackupAction::CloseConnection(why) => {
                if let Some(link) = self.link() {
                    self.note(&format!("closing the connection: {why}"));
                    link.endpoint.close();
                }
            }
            BackupAction::Fence => self.fence(),
            BackupAction::Swap { expected, new } => self.send_errand(Errand::Swap(expected, new)),
            BackupAction::ReadRecord => self.send_errand(Errand::Read),
            BackupAction::Trial { .. } => {
                let state = lock(&self.trial_state).take();
                let state = state.unwrap_or_else(|| Err("the state was not copied".into()));
                self.send_standby_errand(StandbyErrand::Trial(state));
            }
            BackupAction::TakeOver { epoch, displaced } => {
                self.send_errand(Errand::TakeOver(epoch, displaced));
            }
            BackupAction::Abandon => self.send_standby_errand(StandbyErrand::Abandon(self.lent())),
            BackupAction::Report(report) => self.report(&report),
        }
    }

    fn send(&self, identity: &Identity, message: &Message, performer: &mut Performer) {
        let Some(link) = self.link().filter(|link| link.identity.connection == identity.connection) else {
            return;
        };
        performer.bytes.clear();
        encode(identity, message, &mut performer.bytes);
        if let Err(error) = link.endpoint.send(&performer.bytes) {
            tracing::debug!(%error, "sending a message failed");
            link.endpoint.close();
        }
    }

    fn read_slot(&self, identity: &Identity, epoch: Epoch, performer: &mut Performer) {
        let began = std::time::Instant::now();
        let Some(lent) = self.lent() else { return };
        let slot = lent.slot(epoch);
        // Room for whatever a slot can hold, once: no later epoch makes it grow.
        let most = slot::max_transfers(slot.len_bytes() as u64, 0);
        performer.transfers.clear();
        performer.transfers.reserve_exact(most as usize);
        let found = slot::decode(&slot, identity, epoch, &mut performer.transfers);
        if let Ok(header) = &found {
            lock(&self.slots_seen)[epoch.0 as usize % SLOTS_SEEN] = Some(*header);
        }
        let transfers = &performer.transfers[..];
        // What is refused is answered by actions of the machine.
        if self.call(|backup, now, actions| backup.handle_slot(found, transfers, now, actions)).is_ok() {
            self.metrics.record(Phase::BackupCommit, began.elapsed());
        }
    }

    /// Nothing the primary sends can land any more, and no homing copy runs.
    fn fence(&self) {
        let now = self.clock.now();
        {
            let last_sign = self.last_sign();
            let mut view = lock(&self.view);
            let detection_ms = last_sign.map_or(0.0, |sign| milliseconds(now.since(sign)));
            view.takeover = Some(TakeoverStatus { detection_ms, ..TakeoverStatus::default() });
            view.last_sign = last_sign;
            self.metrics
                .record(Phase::Detection, last_sign.map_or_else(Default::default, |sign| now.since(sign)));
        }
        let exposed = lock(&self.exposing);
        if let Some(link) = lock(&self.link).take() {
            link.endpoint.close();
        }
        drop(exposed);
        self.quiesce_homing();
        let fenced = self.clock.now();
        {
            let mut view = lock(&self.view);
            view.step_began = fenced;
            if let Some(takeover) = &mut view.takeover {
                takeover.fence_ms = milliseconds(fenced.since(now));
            }
        }
        self.metrics.record(Phase::Fence, fenced.since(now));
        self.call(|backup, _, actions| backup.handle_fenced(actions));
    }

    /// Waits until no homing copy runs, or the driver is over: then nothing is begun any more that
    /// counts on it.
    pub fn quiesce_homing(&self) {
        loop {
            let seen = self.homing_done.seen();
            if self.call(|backup, _, _| backup.quiesce_homing()) || self.is_over() {
                return;
            }
            self.homing_done.wait(seen, std::time::Duration::from_millis(10));
        }
    }

    fn send_errand(&self, errand: Errand) {
        if lock(&self.errands).as_ref().is_none_or(|errands| errands.send(errand).is_err()) {
            tracing::warn!("the takeover thread is gone");
        }
    }

    fn send_standby_errand(&self, errand: StandbyErrand) {
        if lock(&self.standby_errands).as_ref().is_none_or(|errands| errands.send(errand).is_err()) {
            tracing::warn!("the standby thread is gone");
        }
    }

    /// The state of a committed epoch, copied out of its slot. The copy is checked against the header
    /// as it was when the epoch was committed: the primary could write to the slot since then.
    pub fn read_state(&self, epoch: Epoch) -> Result<Vec<u8>, String> {
        let header = lock(&self.slots_seen)[epoch.0 as usize % SLOTS_SEEN];
        let header = header.filter(|header| header.epoch == epoch);
        let (Some(header), Some(lent)) = (header, self.lent()) else {
            return Err(format!("the state of epoch {epoch} is not here"));
        };
        slot::read_state(&lent.slot(epoch), &header).map_err(|error| {
            format!(
                "the state of epoch {epoch} was changed in this host's memory after it was committed, and \
                 nothing is started from it ({error}): look for faulty memory here and for a faulty primary"
            )
        })
    }

    fn report(&self, report: &BackupReport) {
        match report {
            BackupReport::State(state, why) => {
                self.note(&format!("{}: {why}", state_name(*state)));
                lock(&self.view).journal.state_reason.clone_from(why);
            }
            BackupReport::Committed { pages, .. } => {
                self.metrics.count(Counter::EpochsCommitted, 1);
                lock(&self.view).last_dirty_pages = *pages;
            }
            BackupReport::Refused(code, text) => {
                self.metrics.count(Counter::Refusals, 1);
                self.note(&format!("refused ({code:?}): {text}"));
            }
        }
    }

    /// The connection, if there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        lock(&self.link).clone()
    }

    /// The memory of the present session.
    pub fn lent(&self) -> Option<Arc<Lent>> {
        lock(&self.lent).clone()
    }

    /// Lets go of it. To unmap what large guests have takes long, and nobody is to wait for that.
    pub fn forget_lent(&self) {
        let lent = lock(&self.lent).take();
        drop(lent);
    }

    /// The connection is gone: makes sure of it, then tells the machine, once.
    pub fn disconnect(&self, link: &Arc<Link>, why: &str) {
        link.endpoint.close();
        {
            let mut current = lock(&self.link);
            if !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
                return;
            }
            *current = None;
        }
        self.note(&format!("connection lost: {why}"));
        self.step(|backup, now, actions| backup.handle_disconnected(why, now, actions));
    }

    /// When the primary was last heard.
    pub fn last_sign(&self) -> Option<Time> {
        match self.last_heard.load(Ordering::Acquire) {
            0 => None,
            nanoseconds => Some(Time { nanoseconds }),
        }
    }

    /// The primary was heard.
    pub fn heard(&self) {
        self.last_heard.store(self.clock.now().nanoseconds.max(1), Ordering::Release);
    }

    /// Where the machine stands, and C.
    pub fn progress(&self) -> (BackupState, Epoch) {
        let machine = lock(&self.machine);
        (machine.backup.state(), machine.backup.committed())
    }

    /// A line for people.
    pub fn note(&self, text: &str) {
        tracing::info!("{text}");
        lock(&self.view).journal.add(self.clock.now(), text);
    }

    /// Whether all threads are to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends all threads; the first outcome given wins.
    pub fn finish(&self, outcome: BackupOutcome) {
        lock(&self.outcome).get_or_insert(outcome);
        self.over.store(true, Ordering::Release);
        *lock(&self.errands) = None;
        *lock(&self.standby_errands) = None;
        self.wake_committer.notify();
        self.wake_homing.notify();
        self.ended.notify();
    }
}

/// In milliseconds.
pub(super) fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
