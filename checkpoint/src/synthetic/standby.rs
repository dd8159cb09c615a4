//! A standby that verifies the image instead of running it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use romulus_transport::Memory;

use super::guest::SyntheticOptions;
use super::page::{check_page, digest_of};
use super::state::SyntheticState;
use crate::PAGE_BYTES;
use crate::driver::signal::lock;
use crate::layout::GuestLayout;
use crate::standby::{CopyOnlyHomes, ImageRegion, Standby, StandbyError};
use crate::wire::message::MachineIdentity;

/// What came of verifying an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The guest's word about itself at the committed pause.
    pub state: SyntheticState,
    /// Pages that are torn, misplaced or damaged.
    pub corrupt_pages: u64,
    /// The first of them.
    pub first_fault: Option<String>,
    /// Whether all pages together are those of the pause.
    pub digest_right: bool,
}

impl Verdict {
    /// Whether the image equals the guest at the committed pause.
    pub fn is_exact(&self) -> bool {
        self.corrupt_pages == 0 && self.digest_right
    }
}

/// Checks every page of `memory` (the regions in order) and all of them against `state`.
pub fn verify_image<'a>(memory: impl IntoIterator<Item = &'a Memory>, state: SyntheticState) -> Verdict {
    let mut verdict = Verdict { state, corrupt_pages: 0, first_fault: None, digest_right: false };
    let mut digest: u64 = 0;
    let mut page = 0;
    for region in memory {
        for offset in (0..region.len_bytes()).step_by(PAGE_BYTES as usize) {
            match check_page(region, offset, page) {
                Ok(version) => digest = digest.wrapping_add(digest_of(page, version)),
                Err(fault) => {
                    verdict.corrupt_pages += 1;
                    verdict.first_fault.get_or_insert_with(|| fault.to_string());
                }
            }
            page += 1;
        }
    }
    verdict.digest_right = digest == state.digest;
    verdict
}

#[derive(Debug, Default)]
struct Marks {
    verdict: Mutex<Option<Verdict>>,
    prepared: AtomicU64,
    trials: AtomicU64,
    abandoned: AtomicU64,
    dead: AtomicBool,
    fail_prepare: AtomicBool,
    fail_activate: AtomicU64,
    fail_running: AtomicBool,
    activations: AtomicU64,
    differs: AtomicBool,
}

/// What others see of a synthetic standby and do to it while a driver has it.
#[derive(Clone, Debug)]
pub struct StandbyControl {
    marks: Arc<Marks>,
}

impl StandbyControl {
    /// What came of the activation.
    pub fn verdict(&self) -> Option<Verdict> {
        lock(&self.marks.verdict).clone()
    }

    /// How often it was prepared.
    pub fn prepared(&self) -> u64 {
        self.marks.prepared.load(Ordering::Acquire)
    }

    /// How many trial loads it has made.
    pub fn trials(&self) -> u64 {
        self.marks.trials.load(Ordering::Acquire)
    }

    /// How often it was abandoned after being prepared.
    pub fn abandoned(&self) -> u64 {
        self.marks.abandoned.load(Ordering::Acquire)
    }

    /// The prepared machine dies.
    pub fn kill(&self) {
        self.marks.dead.store(true, Ordering::Release);
    }

    /// The next `times` activations fail before the machine runs.
    pub fn fail_activate(&self, times: u64) {
        self.marks.fail_activate.store(times, Ordering::Release);
    }

    /// Activations fail from now on, or no longer, when the machine may have run already.
    pub fn fail_running(&self, fails: bool) {
        self.marks.fail_running.store(fails, Ordering::Release);
    }

    /// How often it was to be activated.
    pub fn activations(&self) -> u64 {
        self.marks.activations.load(Ordering::Acquire)
    }

    /// What is prepared from now on is another machine, or no longer.
    pub fn differ(&self, differs: bool) {
        self.marks.differs.store(differs, Ordering::Release);
    }

    /// Preparing fails from now on, or no longer.
    pub fn fail_prepare(&self, fails: bool) {
        self.marks.fail_prepare.store(fails, Ordering::Release);
    }
}

/// The standby. Prepared over an empty image it takes memory of its own (copy-only homes).
#[derive(Debug)]
pub struct SyntheticStandby {
    machine: MachineIdentity,
    image: Option<Vec<Memory>>,
    /// `image` is its own memory.
    copy_only: bool,
    ran: bool,
    marks: Arc<Marks>,
}

impl SyntheticStandby {
    /// For a guest of these options.
    pub fn new(options: &SyntheticOptions) -> Self {
        Self::with_machine(options.machine())
    }

    /// One that says it is another machine.
    pub fn with_machine(machine: MachineIdentity) -> Self {
        Self { machine, image: None, copy_only: false, ran: false, marks: Arc::default() }
    }

    /// Looks after the standby while a driver has it.
    pub fn control(&self) -> StandbyControl {
        StandbyControl { marks: Arc::clone(&self.marks) }
    }
}

fn error(what: &str, why: impl Into<String>) -> StandbyError {
    StandbyError { what: what.into(), why: why.into() }
}

impl Standby for SyntheticStandby {
    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError> {
        if self.marks.fail_prepare.load(Ordering::Acquire) {
            return Err(error("preparing", "asked to fail"));
        }
        self.ran = false;
        self.copy_only = image.is_empty();
        self.image = Some(if self.copy_only {
            let own = layout.regions.iter().map(|region| region.pages as usize * PAGE_BYTES as usize);
            own.map(Memory::anonymous).collect()
        } else {
            image.iter().map(|region| region.memory.clone()).collect()
        });
        self.marks.dead.store(false, Ordering::Release);
        self.marks.prepared.fetch_add(1, Ordering::AcqRel);
        let mut machine = self.machine.clone();
        if self.marks.differs.load(Ordering::Acquire) {
            machine.configuration.push("another".into());
        }
        Ok(machine)
    }

    fn copy_only_homes(&self) -> Option<CopyOnlyHomes> {
        let regions = self.image.clone().filter(|_| self.copy_only)?;
        Some(CopyOnlyHomes { regions, kept: Vec::new() })
    }

    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        SyntheticState::load(state).map_err(|why| error("trial load", why))?;
        self.marks.trials.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn check(&mut self) -> Result<(), StandbyError> {
        if self.image.is_none() {
            return Err(error("looking after it", "it is not prepared"));
        }
        if self.marks.dead.load(Ordering::Acquire) {
            return Err(error("looking after it", "it is dead"));
        }
        Ok(())
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        let image = self.image.as_ref().ok_or_else(|| error("activating", "it was never prepared"))?;
        self.marks.activations.fetch_add(1, Ordering::AcqRel);
        let fails = self.marks.fail_activate.load(Ordering::Acquire);
        if fails > 0 {
            self.marks.fail_activate.store(fails - 1, Ordering::Release);
            return Err(error("activating", "asked to fail"));
        }
        if self.marks.fail_running.load(Ordering::Acquire) {
            self.ran = true;
            return Err(error("activating", "asked to fail"));
        }
        let state = SyntheticState::load(state).map_err(|why| error("activating", why))?;
        let verdict = verify_image(image, state);
        *lock(&self.marks.verdict) = Some(verdict.clone());
        if verdict.is_exact() {
            return Ok(());
        }
        Err(error("activating", format!("the image is not the guest at the committed pause: {verdict:?}")))
    }

    fn may_have_run(&self) -> bool {
        self.ran
    }

    fn abandon(&mut self) {
        if self.image.take().is_some() {
            self.marks.abandoned.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fill, Pace, Pattern, SyntheticGuest};
    use super::*;
    use crate::guest::Guest;

    /// A copy taken while the guest is paused is exact; one page older or torn is found.
    #[test]
    fn a_copy_made_in_a_pause_is_exact_and_anything_else_is_found() {
        let options = SyntheticOptions {
            regions: vec![64, 40],
            writers: 3,
            pace: Pace::Unlimited,
            pattern: Pattern::Uniform,
            fill: Fill::Whole,
            saving_writes: true,
            ..SyntheticOptions::default()
        };
        let mut guest = SyntheticGuest::start(options).expect("a small guest starts");
        let control = guest.control();
        let saved = Memory::anonymous(4096);
        let image = [Memory::anonymous(64 * 4096), Memory::anonymous(40 * 4096)];
        let mut writes = 0;
        for pause in 1..=20 {
            // The guest runs until it has written more.
            while control.writes() < writes + 50 {
                std::thread::yield_now();
            }
            guest.pause().expect("it pauses");
            let len = guest.save_state(&saved).expect("it saves") as usize;
            let mut bytes = vec![0; len];
            saved.read(0, &mut bytes);
            let state = SyntheticState::load(&bytes).expect("its state is sound");
            assert_eq!(state.pause, pause);
            writes = state.writes;
            for (from, to) in guest.memory().iter().zip(&image) {
                from.copy_to(0, to, 0, from.len_bytes());
            }
            assert!(!verify_image(&image[..1], state).digest_right);
            assert!(verify_image(&image, state).is_exact());
            assert_eq!(verify_image(&image, SyntheticState { digest: 1, ..state }).corrupt_pages, 0);
            assert!(!verify_image(&image, SyntheticState { digest: 1, ..state }).is_exact());
            guest.resume().expect("it resumes");
        }
        image[0].write(5 * 4096 + 100, &[1]);
        let verdict = verify_image(&image, control.last_state());
        assert_eq!(verdict.corrupt_pages, 1);
        assert!(verdict.first_fault.is_some_and(|fault| fault.starts_with("page 5:")));
    }
}
