//! The guest and its gate as the harness hands them to the engine: observed, tracked by the kernel
//! on request, and delayed on request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_checkpoint::gate::{GateError, GateLevel, OutputGate};
use romulus_checkpoint::guest::{Guest, GuestError, GuestEvent};
use romulus_checkpoint::metrics::Phase;
use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::synthetic::SyntheticGuest;
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_checkpoint::{Extent, GateMark, GuestLayout, PAGE_BYTES, PageIndex};
use romulus_host::tracking::{self, DirtyRange, DirtyTracker, TrackingError, TrackingOptions};
use romulus_transport::Memory;

use super::delay::Delay;
use super::observer::Observer;

/// A delay, and whether the present pause has it.
#[derive(Clone, Copy, Debug)]
struct Delaying(Option<Delay>);

impl Delaying {
    fn at(&self, phase: Phase, pause: u64) {
        let due = |delay: &Delay| delay.phase == phase && delay.only_pause.is_none_or(|only| only == pause);
        if let Some(delay) = self.0.filter(due) {
            std::thread::sleep(delay.time);
        }
    }
}

/// The guest.
pub struct ObservedGuest {
    inner: SyntheticGuest,
    observer: Arc<Observer>,
    tracker: Option<Box<dyn DirtyTracker>>,
    delaying: Delaying,
    /// When the present pause began, and its number.
    pause: Option<(Instant, u64)>,
}

fn failed(error: TrackingError) -> GuestError {
    GuestError::Failed { what: "tracking by write protection".into(), why: error.to_string() }
}

/// A tracker of a guest's memory, which must be shared mappings of this process.
pub fn write_protect_tracker(regions: &[Memory]) -> Result<Box<dyn DirtyTracker>, TrackingError> {
    let mut first = 0;
    let ranges: Vec<_> = regions
        .iter()
        .map(|memory| {
            let pages = memory.len_bytes() as u64 / PAGE_BYTES;
            let address = memory.pointer(0, 0) as u64;
            let range = DirtyRange { address, pages, first: PageIndex(first) };
            first += pages;
            range
        })
        .collect();
    tracking::probe::write_protect().map_err(TrackingError::Refused)?;
    tracking::open(std::process::id(), &ranges, &TrackingOptions::default())
}

impl ObservedGuest {
    /// Wraps it; with `tracked` its dirty pages are found by the kernel.
    pub fn new(
        inner: SyntheticGuest,
        observer: Arc<Observer>,
        tracked: bool,
        delay: Option<Delay>,
    ) -> Result<Self, TrackingError> {
        let tracker = tracked.then(|| write_protect_tracker(inner.memory())).transpose()?;
        Ok(Self { inner, observer, tracker, delaying: Delaying(delay), pause: None })
    }

    fn delay(&self, phase: Phase) {
        self.delaying.at(phase, self.pause.map_or(0, |pause| pause.1));
    }
}

impl Guest for ObservedGuest {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn layout(&self) -> &GuestLayout {
        self.inner.layout()
    }

    fn machine(&self) -> &MachineIdentity {
        self.inner.machine()
    }

    fn memory(&self) -> &[Memory] {
        self.inner.memory()
    }

    fn memory_registrable(&self) -> bool {
        self.inner.memory_registrable()
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        self.inner.start_tracking()?;
        self.tracker.as_mut().map_or(Ok(()), |tracker| tracker.start().map_err(failed))
    }

    fn stop_tracking(&mut self) -> Result<(), GuestError> {
        let stopped = self.tracker.as_mut().map_or(Ok(()), |tracker| tracker.stop().map_err(failed));
        self.inner.stop_tracking().and(stopped)
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        let now = Instant::now();
        self.pause = Some((now, self.observer.pause_begins(now)));
        self.delay(Phase::Stop);
        self.inner.pause()
    }

    fn save_state(&mut self, into: &Memory) -> Result<u64, GuestError> {
        self.delay(Phase::State);
        self.inner.save_state(into)
    }

    fn collect(&mut self, dirty: &mut Vec<Extent>) -> Result<(), GuestError> {
        let from = dirty.len();
        match &mut self.tracker {
            Some(tracker) if self.pause.is_some() => tracker.collect_stopped(dirty).map_err(failed)?,
            Some(tracker) => tracker.collect_running(dirty).map_err(failed)?,
            None => self.inner.collect(dirty)?,
        }
        if self.pause.is_some() {
            self.observer.collected(&dirty[from..]);
            self.delay(Phase::Collect);
        }
        Ok(())
    }

    fn populated(&self, pages: &mut Vec<Extent>) {
        self.inner.populated(pages);
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        if self.pause.is_some() {
            self.delay(Phase::Resume);
        }
        self.inner.resume()?;
        if let Some((began, _)) = self.pause.take() {
            self.observer.pause_ends(began, Instant::now());
        }
        Ok(())
    }

    fn leave_paused(&mut self) {
        self.inner.leave_paused();
    }

    fn poll_event(&mut self) -> Option<GuestEvent> {
        self.inner.poll_event()
    }

    fn destroy(&mut self) -> Result<(), GuestError> {
        self.inner.destroy()
    }

    fn last_pause_detail(&self) -> &[(&'static str, Duration)] {
        self.inner.last_pause_detail()
    }
}

/// Holds nothing, and tells the observer what could leave when.
#[derive(Debug)]
pub struct ObservedGate {
    observer: Arc<Observer>,
    delaying: Delaying,
}

impl ObservedGate {
    /// Tells this observer.
    pub fn new(observer: Arc<Observer>, delay: Option<Delay>) -> Self {
        Self { observer, delaying: Delaying(delay) }
    }
}

impl OutputGate for ObservedGate {
    fn hold(&self) -> Result<(), GateError> {
        Ok(())
    }

    fn mark(&self, mark: GateMark) -> Result<(), GateError> {
        self.delaying.at(Phase::Gate, self.observer.pause_number());
        self.observer.marked(mark);
        Ok(())
    }

    fn release(&self, token: &ReleaseToken) {
        self.observer.released(token.through(), Instant::now());
    }

    fn level(&self) -> GateLevel {
        GateLevel::default()
    }

    fn bound_bytes(&self) -> u64 {
        u64::MAX
    }

    fn detach(&self) -> Result<(), GateError> {
        Ok(())
    }
}
