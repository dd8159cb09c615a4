//! The gate for cards whose back end is a kernel interface.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use romulus_checkpoint::GateMark;
use romulus_checkpoint::arbiter::SoloGrant;
use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::release::ReleaseToken;
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use super::lock;
use super::netlink::Netlink;
use super::nic::{BATCH, Nic, Stopped};
use super::plumbing::{self, Left, NicSpec, Plumbing};
use super::ring::{Consumer, ring};
use super::status::{GateStatus, percentiles};
use crate::ThreadSetup;

/// Longest wait for held packets to get away before their shortcut is opened, or the gate taken
/// away: they only leave out of order, or not at all, if this is not enough.
const EMPTYING_LIMIT: Duration = Duration::from_millis(500);
const EMPTYING_POLL: Duration = Duration::from_micros(200);
/// Cards of one gate at most.
const MOST_NICS: usize = 64;
/// How often it is looked whether the filters are still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Before an outlet without room is tried again.
const OUTLET_RETRY: Duration = Duration::from_millis(1);

/// Settings of a [`RedirectGate`].
#[derive(Clone)]
pub struct RedirectOptions {
    /// Memory for held packets of each card, in bytes, used as it is needed. The epoch ends early
    /// when half of it is in use.
    pub memory_bytes: u64,
    /// Called at the start of the gate's threads.
    pub threads: ThreadSetup,
}

impl Default for RedirectOptions {
    /// 256 MiB for each card.
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, threads: crate::no_thread_setup() }
    }
}

/// Holds the packets that taps receive from their guest. See [`super`] for how.
///
/// Dropped without [`OutputGate::detach`] it leaves the guest's packets held: they go nowhere.
pub struct RedirectGate {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    nics: Vec<(Plumbing, Nic)>,
    losses: Vec<Losses>,
    wake: OwnedFd,
    over: AtomicBool,
    links: Mutex<Links>,
    links_changed: Condvar,
    netlink: Netlink,
}

/// What was lost of a card's output while its filter was away.
#[derive(Debug, Default)]
struct Losses {
    times: AtomicU64,
    at_most_ms: AtomicU64,
    /// Something is away and could not be set again; said once.
    lasts: AtomicBool,
}

/// How the taps are to be, and are.
#[derive(Debug, Default)]
struct Links {
    closed: bool,
    want_open: bool,
    /// Everything may leave: a tap without its filter is as it should be.
    passing: bool,
}

fn system(what: &'static str) -> impl Fn(io::Error) -> GateError {
    move |error| GateError(format!("{what}: {error}"))
}

/// Whether this kind of gate can serve a card; else why not, and what to do.
pub fn can_redirect(spec: &NicSpec) -> Result<(), GateError> {
    let netlink = Netlink::open().map_err(system("opening a netlink socket"))?;
    plumbing::check(&netlink, spec).map(drop)
}

impl RedirectGate {
    /// Makes the gate's taps and threads, in the network namespace of this thread. The guest's
    /// packets are not touched before [`OutputGate::hold`].
    pub fn new(specs: &[NicSpec], options: &RedirectOptions) -> Result<Self, GateError> {
        if specs.len() > MOST_NICS {
            return Err(GateError(format!("{} cards are to be held; {MOST_NICS} are possible", specs.len())));
        }
        let netlink = Netlink::open().map_err(system("opening a netlink socket"))?;
        let mut nics = Vec::new();
        let mut consumers = Vec::new();
        for spec in specs {
            let plumbing = Plumbing::open(&netlink, spec)?;
            let (producer, consumer, watch) =
                ring(options.memory_bytes).map_err(system("mapping memory for held packets"))?;
            let nic = Nic::new(producer, watch, plumbing.inlet_mac, options.memory_bytes / 2);
            nics.push((plumbing, nic));
            consumers.push(consumer);
        }
        let wake = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| system("making an eventfd")(error.into()))?;
        let shared = Arc::new(Shared {
            losses: nics.iter().map(|_| Losses::default()).collect(),
            nics,
            wake,
            over: AtomicBool::new(false),
            links: Mutex::default(),
            links_changed: Condvar::new(),
            netlink,
        });
        let gate = Self { shared: Arc::clone(&shared), threads: Mutex::default() };
        let mover = Arc::clone(&shared);
        gate.start("gate", options, move || Mover::new(mover, consumers).run())?;
        gate.start("gate-links", options, move || shared.look_after_links())?;
        Ok(gate)
    }

    fn start(
        &self,
        name: &'static str,
        options: &RedirectOptions,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), GateError> {
        let setup = Arc::clone(&options.threads);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            // A gate that no thread moves would hold the guest's output for ever. Dying leaves it closed.
            crate::or_abort(|| {
                setup(name);
                body();
            });
        });
        lock(&self.threads).push(thread.map_err(system("starting a thread"))?);
        Ok(())
    }

    /// Packets read from all cards and packets let go, since the gate was made; cheaper than
    /// [`status`](Self::status).
    pub fn passed(&self) -> (u64, u64) {
        self.shared.nics.iter().fold((0, 0), |(read, released), (_, nic)| {
            let level = nic.level();
            (read + level.in_packets, released + level.out_packets)
        })
    }

    /// How each card stands.
    pub fn status(&self) -> Vec<GateStatus> {
        let holding = lock(&self.shared.links).closed;
        let status = |((plumbing, nic), losses): (&(Plumbing, Nic), &Losses)| {
            let level = nic.level();
            GateStatus {
                nic: plumbing.spec.nic.clone(),
                kind: "redirect".into(),
                interface: plumbing.spec.tap.clone(),
                holding,
                held_packets: level.held_packets,
                held_bytes: level.held_bytes,
                released_packets: level.out_packets,
                released_bytes: level.out_bytes,
                dropped_packets: plumbing.dropped(&self.shared.netlink) + level.refused,
                bound_hits: level.bound_hits,
                full_hits: level.ring_full,
                filter_lost: losses.times.load(Ordering::Relaxed),
                unheld_ms_at_most: losses.at_most_ms.load(Ordering::Relaxed),
                held_us: percentiles(&nic.held_us()),
            }
        };
        self.shared.nics.iter().zip(&self.shared.losses).map(status).collect()
    }
}

impl OutputGate for RedirectGate {
    fn claimed(&self, _grant: &SoloGrant) -> Result<(), GateError> {
        self.shared.each(|plumbing| plumbing::remove(&self.shared.netlink, &plumbing.spec))
    }

    fn hold(&self) -> Result<(), GateError> {
        let shared = &*self.shared;
        let mut links = lock(&shared.links);
        links.want_open = false;
        if links.closed {
            // Of several cards some may be open: opening fails card by card.
            shared.each(|plumbing| plumbing.close_again(&shared.netlink))?;
        } else {
            if let Err(error) = shared.each(|plumbing| plumbing.close(&shared.netlink)) {
                let undone = shared.each(|plumbing| plumbing::remove(&shared.netlink, &plumbing.spec));
                return undone.and(Err(error));
            }
            links.closed = true;
        }
        links.passing = false;
        // Now every packet comes this way; those sent before this call may still leave.
        for (_, nic) in &shared.nics {
            nic.hold();
        }
        Ok(())
    }

    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        let mut outcome = Ok(());
        for (plumbing, nic) in &self.shared.nics {
            if !nic.mark(&plumbing.inlet, mark) {
                outcome =
                    Err(plumbing.refused("somebody took the gate's taps away: nothing passes it any more"));
            }
        }
        outcome
    }

    fn release(&self, token: &ReleaseToken) {
        if token.opens_gate() {
            for (_, nic) in &self.shared.nics {
                nic.pass();
            }
            let mut links = lock(&self.shared.links);
            (links.want_open, links.passing) = (true, true);
            drop(links);
            self.shared.links_changed.notify_all();
        } else {
            for (_, nic) in &self.shared.nics {
                nic.release(token.through());
            }
        }
        self.shared.wake();
    }

    fn level(&self) -> GateLevel {
        self.shared.nics.iter().fold(GateLevel::default(), |sum, (_, nic)| {
            let level = nic.level();
            GateLevel { packets: sum.packets + level.held_packets, bytes: sum.bytes + level.held_bytes }
        })
    }

    fn bound_bytes(&self) -> u64 {
        self.shared.nics.iter().map(|(_, nic)| nic.bound_bytes()).min().unwrap_or(u64::MAX)
    }

    fn flush(&self) {
        self.shared.wait_released();
    }

    fn detach(&self) -> Result<(), GateError> {
        let shared = &*self.shared;
        shared.wait_released();
        let mut links = lock(&shared.links);
        links.want_open = false;
        let outcome = shared.each(|plumbing| plumbing::remove(&shared.netlink, &plumbing.spec));
        links.closed &= outcome.is_err();
        drop(links);
        // What had come in before the removal, in the inlet's queue too.
        for (plumbing, nic) in &shared.nics {
            nic.fill(&plumbing.inlet, plumbing::INLET_QUEUE_PACKETS as usize);
        }
        shared.wake();
        shared.wait_released();
        self.stop();
        outcome
    }
}

impl RedirectGate {
    /// Ends the threads; the taps go with the last of them.
    fn stop(&self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.wake();
        // Under its lock, or the notice could fall between a look and a wait.
        drop(lock(&self.shared.links));
        self.shared.links_changed.notify_all();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the output gate panicked");
            }
        }
    }
}

impl Drop for RedirectGate {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Does something for all cards, and tells the first error.
    fn each(&self, mut what: impl FnMut(&Plumbing) -> Result<(), GateError>) -> Result<(), GateError> {
        self.nics.iter().map(|(plumbing, _)| what(plumbing)).fold(Ok(()), Result::and)
    }

    fn wake(&self) {
        // Fails only when the counter is at its end, and then it wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Waits a short time until what may leave has left.
    fn wait_released(&self) {
        let deadline = Instant::now() + EMPTYING_LIMIT;
        while !self.over.load(Ordering::SeqCst)
            && self.nics.iter().any(|(_, nic)| !nic.has_released())
            && Instant::now() < deadline
        {
            std::thread::sleep(EMPTYING_POLL);
        }
    }

    /// The `gate-links` thread: after a solo grant it lets the guest's packets go straight to the
    /// bridge again, once those before them are out. Until then it sees to it that they do not.
    fn look_after_links(&self) {
        let mut links = lock(&self.links);
        let mut looked = Instant::now();
        while !self.over.load(Ordering::SeqCst) {
            if !(links.want_open && links.closed) {
                let waited = self.links_changed.wait_timeout(links, LOOK_EVERY);
                links = waited.unwrap_or_else(PoisonError::into_inner).0;
                let holds = links.closed && !links.want_open && !links.passing;
                if holds && looked.elapsed() >= LOOK_EVERY {
                    self.mend_links(looked);
                    looked = Instant::now();
                } else if !holds {
                    looked = Instant::now();
                }
                continue;
            }
            drop(links);
            self.wait_released();
            links = lock(&self.links);
            if !links.want_open {
                continue;
            }
            links.want_open = false;
            match self.each(|plumbing| plumbing::remove(&self.netlink, &plumbing.spec)) {
                Ok(()) => links.closed = false,
                // They go on through the gate, which lets everything pass.
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }
}

impl Shared {
    /// Sets filters again that somebody has taken away since they were seen last. Nothing brings back
    /// what has left meanwhile: it is said, and counted.
    fn mend_links(&self, seen: Instant) {
        for ((plumbing, _), losses) in self.nics.iter().zip(&self.losses) {
            let look = || plumbing.look(&self.netlink).unwrap_or(Left::All);
            let left = look();
            let mended = plumbing.mend(&self.netlink, left);
            let at_most_ms = seen.elapsed().as_millis() as u64;
            if left == Left::Open {
                losses.at_most_ms.fetch_add(at_most_ms, Ordering::Relaxed);
            }
            let known = losses.lasts.swap(mended.is_err(), Ordering::Relaxed);
            if left == Left::All || known && mended.is_err() {
                continue;
            }
            let (nic, tap) = (&plumbing.spec.nic, &plumbing.spec.tap);
            if left == Left::Open && !known {
                losses.times.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    "card {nic} on {tap}: somebody took the gate's filter away; what the guest sent in the \
                     {at_most_ms} ms before, at most, left unheld"
                );
            }
            match mended {
                Ok(()) => tracing::warn!("card {nic} on {tap}: what was taken away of the gate is set again"),
                Err(error) if look() == Left::Open => {
                    tracing::error!(
                        "{error}: it cannot be set again, and what the guest sends leaves unheld"
                    );
                }
                Err(error) => tracing::error!(
                    "{error}: what the guest sends is held, but not all that belongs to the gate is set; trying again"
                ),
            }
        }
    }
}

/// The `gate` thread. It waits for packets and orders, and for nothing else.
struct Mover {
    shared: Arc<Shared>,
    consumers: Vec<Consumer>,
    /// For each card whether its inlet and its outlet are to be waited for.
    waits: Vec<Waits>,
}

#[derive(Clone, Copy, Debug)]
struct Waits {
    inlet: bool,
    outlet: bool,
    broken: bool,
}

impl Mover {
    fn new(shared: Arc<Shared>, consumers: Vec<Consumer>) -> Self {
        let waits = vec![Waits { inlet: true, outlet: false, broken: false }; consumers.len()];
        Self { shared, consumers, waits }
    }

    fn run(mut self) {
        while !self.shared.over.load(Ordering::SeqCst) {
            if !self.move_some() {
                self.wait();
            }
        }
    }

    /// Moves a batch each way for each card; whether there is more to do at once.
    fn move_some(&mut self) -> bool {
        let mut more = false;
        for (((plumbing, nic), consumer), waits) in
            self.shared.nics.iter().zip(&mut self.consumers).zip(&mut self.waits)
        {
            if waits.broken {
                continue;
            }
            let filled = nic.fill(&plumbing.inlet, BATCH);
            let (emptied, left) = nic.empty(consumer, &plumbing.outlet, BATCH);
            waits.broken = filled == Stopped::Broken || emptied == Stopped::Broken;
            waits.inlet = filled != Stopped::Full;
            waits.outlet = emptied == Stopped::Full;
            // A full ring is tried again once something has left.
            let room_again = filled == Stopped::Full && left > 0;
            more |= !waits.broken && (filled == Stopped::Batch || emptied == Stopped::Batch || room_again);
        }
        more
    }

    fn wait(&self) {
        let shared = &*self.shared;
        let mut polled = ArrayVec::<PollFd<'_>, { MOST_NICS + 1 }>::new();
        polled.push(PollFd::new(&shared.wake, PollFlags::IN));
        let mut timeout = None;
        for ((plumbing, _), waits) in shared.nics.iter().zip(&self.waits) {
            if waits.broken {
                continue;
            }
            if waits.inlet {
                polled.push(PollFd::from_borrowed_fd(plumbing.inlet.as_fd(), PollFlags::IN));
            }
            if waits.outlet {
                timeout = Some(OUTLET_RETRY);
            }
        }
        let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
        // An error is a signal; then it looks again.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        if !polled[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&shared.wake, &mut count);
        }
    }
}
