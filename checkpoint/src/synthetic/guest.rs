//! A guest of writer threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use romulus_transport::Memory;

use super::load::{Fill, Pace, Pattern};
use super::state::SyntheticState;
use super::writers::World;
use crate::PAGE_BYTES;
use crate::driver::mapping::{anonymous_mapping, shared_mapping};
use crate::driver::signal::lock;
use crate::extent::Extent;
use crate::guest::{Guest, GuestError, GuestEvent};
use crate::layout::{GuestLayout, Region};
use crate::wire::message::MachineIdentity;

/// The shape and the load of a synthetic guest. The default is a small idle one.
#[derive(Clone, Debug)]
pub struct SyntheticOptions {
    /// Its name.
    pub name: String,
    /// Pages of each region.
    pub regions: Vec<u64>,
    /// Length of its device state in bytes, at least 48.
    pub state_bytes: u64,
    /// Pages written before it starts, from the first on.
    pub filled_pages: u64,
    /// Threads that write.
    pub writers: usize,
    /// Which pages they write.
    pub pattern: Pattern,
    /// How much of each.
    pub fill: Fill,
    /// How fast, all together.
    pub pace: Pace,
    /// Whether saving the state writes the last page, as a hypervisor's may.
    pub saving_writes: bool,
    /// Whether its memory may be registered.
    pub registrable: bool,
    /// Whether its memory is a shared mapping, as that of a guest whose writes a kernel tracks.
    pub shared_memory: bool,
    /// Seeds the choice of pages.
    pub seed: u64,
}

impl Default for SyntheticOptions {
    fn default() -> Self {
        Self {
            name: "synthetic".into(),
            regions: vec![1024],
            state_bytes: 4096,
            filled_pages: 0,
            writers: 1,
            pattern: Pattern::Uniform,
            fill: Fill::Whole,
            pace: Pace::Idle,
            saving_writes: false,
            registrable: true,
            shared_memory: false,
            seed: 1,
        }
    }
}

impl SyntheticOptions {
    pub(super) fn layout(&self) -> GuestLayout {
        let name = |index| format!("ram{index}");
        let regions = self.regions.iter().enumerate();
        GuestLayout {
            regions: regions.map(|(index, pages)| Region { name: name(index), pages: *pages }).collect(),
        }
    }

    /// What this guest and its standby are.
    pub fn machine(&self) -> MachineIdentity {
        let pages: u64 = self.regions.iter().sum();
        MachineIdentity {
            hypervisor: "synthetic 1".into(),
            configuration: vec![format!("pages {pages}"), format!("regions {}", self.regions.len())],
        }
    }
}

/// What others see of a synthetic guest and do to it while a driver has it.
#[derive(Clone, Debug)]
pub struct SyntheticGuestControl {
    world: Arc<World>,
    shared: Arc<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    pauses: AtomicU64,
    destroyed: AtomicBool,
    tracking: AtomicBool,
    hold_tracking: AtomicBool,
    asked_to_track: AtomicBool,
    ended: AtomicBool,
    fail_state: AtomicU64,
    die_in_pause: AtomicBool,
    dead: AtomicBool,
    events: Mutex<Vec<GuestEvent>>,
    has_events: AtomicBool,
    last_state: Mutex<SyntheticState>,
}

impl SyntheticGuestControl {
    /// Pages written so far.
    pub fn writes(&self) -> u64 {
        self.world.writes.load(Ordering::Relaxed)
    }

    /// Pauses so far.
    pub fn pauses(&self) -> u64 {
        self.shared.pauses.load(Ordering::Acquire)
    }

    /// Whether it is paused now.
    pub fn is_paused(&self) -> bool {
        self.world.paused.load(Ordering::Acquire)
    }

    /// Appends the pages that were ever written, sorted and without overlap.
    pub fn populated(&self, pages: &mut Vec<Extent>) {
        self.world.populated(pages);
    }

    /// Whether it was destroyed.
    pub fn is_destroyed(&self) -> bool {
        self.shared.destroyed.load(Ordering::Acquire)
    }

    /// Whether its writes are tracked.
    pub fn is_tracked(&self) -> bool {
        self.shared.tracking.load(Ordering::Acquire)
    }

    /// Starting to track takes until this is called with `false`.
    pub fn hold_tracking(&self, held: bool) {
        self.shared.hold_tracking.store(held, Ordering::Release);
    }

    /// Whether tracking has been asked for.
    pub fn is_asked_to_track(&self) -> bool {
        self.shared.asked_to_track.load(Ordering::Acquire)
    }

    /// The state saved last.
    pub fn last_state(&self) -> SyntheticState {
        *lock(&self.shared.last_state)
    }

    /// The writers write so many pages more, each as its pattern says, as fast as they can.
    pub fn burst(&self, pages: u64) {
        self.world.burst.fetch_add(pages, Ordering::Release);
        self.world.wake_writers.notify();
    }

    /// It powers off.
    pub fn power_off(&self) {
        self.shared.ended.store(true, Ordering::Release);
        self.world.paused.store(true, Ordering::Release);
        self.event(GuestEvent::Ended);
    }

    /// Something happens to it.
    pub fn event(&self, event: GuestEvent) {
        lock(&self.shared.events).push(event);
        self.shared.has_events.store(true, Ordering::Release);
    }

    /// Its process dies in the next pause, before its state is saved.
    pub fn die_in_next_pause(&self) {
        self.shared.die_in_pause.store(true, Ordering::Release);
    }

    /// The next `times` attempts to save its state fail.
    pub fn fail_state_saving(&self, times: u64) {
        self.shared.fail_state.store(times, Ordering::Release);
    }
}

/// The guest.
#[derive(Debug)]
pub struct SyntheticGuest {
    options: SyntheticOptions,
    layout: GuestLayout,
    machine: MachineIdentity,
    world: Arc<World>,
    shared: Arc<Marks>,
    threads: Vec<JoinHandle<()>>,
}

impl SyntheticGuest {
    /// Maps its memory, fills it and starts its writers.
    pub fn start(options: SyntheticOptions) -> std::io::Result<Self> {
        let regions: Vec<Memory> = options
            .regions
            .iter()
            .map(|pages| match options.shared_memory {
                true => shared_mapping((pages * PAGE_BYTES) as usize),
                false => anonymous_mapping((pages * PAGE_BYTES) as usize),
            })
            .collect::<std::io::Result<_>>()?;
        let world = Arc::new(World::new(regions, options.fill));
        fill(&world, options.filled_pages.min(world.pages()));
        // The last page belongs to the saving of the state.
        let pages = world.pages() - u64::from(options.saving_writes);
        let writers = options.writers as u64;
        let share = |pace: u64, index: u64| pace * (index + 1) / writers - pace * index / writers;
        let mut guest = Self {
            layout: options.layout(),
            machine: options.machine(),
            world,
            shared: Arc::default(),
            threads: Vec::new(),
            options,
        };
        for index in 0..writers {
            let (first, end) = (pages * index / writers, pages * (index + 1) / writers);
            let world = Arc::clone(&guest.world);
            let SyntheticOptions { pattern, seed, pace, .. } = guest.options;
            let pace = match pace {
                Pace::PerSecond(rate) => Pace::PerSecond(share(rate, index)),
                Pace::PerResume(count) => Pace::PerResume(share(count, index)),
                Pace::PerEpoch(count) => Pace::PerEpoch(share(count, index)),
                other => other,
            };
            guest.threads.push(
                std::thread::Builder::new()
                    .name(format!("writer-{index}"))
                    .spawn(move || world.run_writer(first, end - first, pattern, pace, seed))?,
            );
        }
        Ok(guest)
    }

    /// Looks after the guest while a driver has it.
    pub fn control(&self) -> SyntheticGuestControl {
        SyntheticGuestControl { world: Arc::clone(&self.world), shared: Arc::clone(&self.shared) }
    }

    fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    fn check_alive(&self) -> Result<(), GuestError> {
        if self.shared.destroyed.load(Ordering::Acquire) {
            return Err(GuestError::Gone("it was destroyed".into()));
        }
        if self.shared.dead.load(Ordering::Acquire) {
            return Err(GuestError::Gone("it was killed".into()));
        }
        Ok(())
    }

    fn stop_writers(&mut self) {
        self.world.stop.store(true, Ordering::Release);
        self.world.wake_writers.notify();
        for thread in self.threads.drain(..) {
            // A writer that panicked has written its message to standard error.
            let _ = thread.join();
        }
    }
}

/// Writes the first pages, by as many threads as there are cores: first touches take long.
fn fill(world: &World, pages: u64) {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = threads.min(pages / 4096 + 1);
    std::thread::scope(|scope| {
        for index in 0..threads {
            let share = pages * index / threads..pages * (index + 1) / threads;
            scope.spawn(move || share.for_each(|page| world.write(page)));
        }
    });
}

impl Drop for SyntheticGuest {
    fn drop(&mut self) {
        self.stop_writers();
    }
}

impl Guest for SyntheticGuest {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn layout(&self) -> &GuestLayout {
        &self.layout
    }

    fn machine(&self) -> &MachineIdentity {
        &self.machine
    }

    fn memory(&self) -> &[Memory] {
        &self.world.regions
    }

    fn memory_registrable(&self) -> bool {
        self.options.registrable
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        self.check_alive()?;
        self.shared.asked_to_track.store(true, Ordering::Release);
        while self.shared.hold_tracking.load(Ordering::Acquire) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.shared.tracking.store(true, Ordering::Release);
        Ok(())
    }

    fn stop_tracking(&mut self) -> Result<(), GuestError> {
        self.shared.tracking.store(false, Ordering::Release);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.check_alive()?;
        self.world.paused.store(true, Ordering::Release);
        self.world.wake_writers.notify();
        self.world.wait_parked(self.threads.len(), self.options.pace);
        self.shared.pauses.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn save_state(&mut self, into: &Memory) -> Result<u64, GuestError> {
        if self.shared.die_in_pause.load(Ordering::Acquire) {
            self.shared.dead.store(true, Ordering::Release);
        }
        self.check_alive()?;
        let fails = self.shared.fail_state.load(Ordering::Acquire);
        if fails > 0 {
            self.shared.fail_state.store(fails - 1, Ordering::Release);
            return Err(GuestError::Failed { what: "saving the state".into(), why: "asked to fail".into() });
        }
        if self.options.saving_writes {
            self.world.write(self.world.pages() - 1);
        }
        let state = SyntheticState {
            pause: self.shared.pauses.load(Ordering::Acquire),
            writes: self.world.writes.load(Ordering::Acquire),
            digest: self.world.digest.load(Ordering::Acquire),
            len_bytes: self.options.state_bytes,
        };
        *lock(&self.shared.last_state) = state;
        state.save(into).ok_or_else(|| GuestError::Failed {
            what: "saving the state".into(),
            why: format!("{} bytes do not fit in {}", state.len_bytes, into.len_bytes()),
        })
    }

    fn collect(&mut self, dirty: &mut Vec<Extent>) -> Result<(), GuestError> {
        self.check_alive()?;
        self.world.collect(dirty);
        Ok(())
    }

    fn populated(&self, pages: &mut Vec<Extent>) {
        self.world.populated(pages);
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.check_alive()?;
        if !self.has_ended() && self.world.paused.swap(false, Ordering::AcqRel) {
            self.world.resumes.fetch_add(1, Ordering::AcqRel);
            self.world.wake_writers.notify();
        }
        Ok(())
    }

    fn poll_event(&mut self) -> Option<GuestEvent> {
        if !self.shared.has_events.load(Ordering::Acquire) {
            return None;
        }
        let mut events = lock(&self.shared.events);
        let event = (!events.is_empty()).then(|| events.remove(0));
        self.shared.has_events.store(!events.is_empty(), Ordering::Release);
        event
    }

    fn destroy(&mut self) -> Result<(), GuestError> {
        self.shared.destroyed.store(true, Ordering::Release);
        self.stop_writers();
        Ok(())
    }
}
