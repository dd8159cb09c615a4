//! Starts a primary: checks the options, claims the record, allocates, starts the threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use super::capture::Capture;
use super::copy::Copier;
use super::handle::PrimaryHandle;
use super::jobs::{Jobs, SlotMemory};
use super::options::{CaptureMode, PrimaryOptions, PrimaryParts};
use super::sender::Sender;
use super::shared::{Base, Question, Shared};
use super::staging::{PIECE_BYTES, Staging};
use super::{connect, control};
use crate::PAGE_BYTES;
use crate::arbiter::claim::{Patience, claim_first};
use crate::arbiter::solo_grant;
use crate::driver::mapping::anonymous_mapping;
use crate::driver::threads::{ThreadSetup, spawn};
use crate::driver::{Clock, StartError, arbitrate};
use crate::guest::Guest;
use crate::primary::Primary;

/// Least staging memory, in bytes: one piece is filled while another is sent.
const LEAST_STAGING_BYTES: u64 = 2 * PIECE_BYTES;

/// What a thread does.
type Body = Box<dyn FnOnce(&Arc<Shared>) + Send>;

/// Starts the protection of a guest.
#[derive(Debug)]
pub struct PrimaryDriver;

impl PrimaryDriver {
    /// Claims the guest's record for this host, allocates staging memory and starts the threads.
    /// Returns soon: that the backup cannot be reached is no error but a status, and tried again.
    /// The guest is not touched before the backup has answered.
    pub fn spawn(options: PrimaryOptions, parts: PrimaryParts) -> Result<PrimaryHandle, StartError> {
        let staging_bytes =
            parts.staging.as_ref().map_or(options.staging_bytes, |memory| memory.len_bytes() as u64);
        check(&options, &*parts.guest, staging_bytes)?;
        let record =
            claim_first(&*parts.arbiter, parts.guest.name(), &options.machine.host, Patience::default())
                .map_err(|error| StartError::Ownership(error.to_string()))?;
        if let Some(grant) = solo_grant(&record, &options.machine.host) {
            parts.gate.claimed(&grant).map_err(|error| StartError::Options(error.to_string()))?;
        }
        let clock = Clock::default();
        let guest = parts.guest;
        let layout = guest.layout().clone();
        let shape = options.arena_shape(&layout);
        let primary = Primary::new(
            options.machine.clone(),
            layout.clone(),
            guest.machine().clone(),
            shape,
            record,
            clock.now(),
        );
        let system = |what: &str| {
            let what = what.to_owned();
            move |source| StartError::System { what, source }
        };
        let staging = match parts.staging {
            Some(memory) => memory,
            None => {
                anonymous_mapping(options.staging_bytes as usize).map_err(system("mapping staging memory"))?
            }
        };
        let staging = Staging::new(staging, options.spin);
        let jobs = options.machine.depth as usize + 2;
        let slots =
            SlotMemory::new(&shape, options.max_state_bytes, jobs).map_err(system("mapping slots"))?;
        let (questions, asked) = channel();
        let spin = options.spin;
        let shared = Arc::new(Shared::new(Base {
            guest_memory: guest.memory().to_vec(),
            registrable: guest.memory_registrable(),
            options,
            layout,
            shape,
            gate: parts.gate,
            arbiter: parts.arbiter,
            fabric: parts.fabric,
            pause_flag: parts.pause_flag,
            jobs: Jobs::new(jobs, staging.count(), spin),
            staging,
            slots,
            clock,
            questions,
            primary,
        }));
        start_threads(&shared, guest, asked, &parts.threads)
    }
}

fn check(options: &PrimaryOptions, guest: &dyn Guest, staging_bytes: u64) -> Result<(), StartError> {
    let refuse = |text: String| Err(StartError::Options(text));
    if options.machine.guest != guest.name() {
        return refuse(format!("options are for {}, the guest is {}", options.machine.guest, guest.name()));
    }
    if options.machine.depth == 0 || options.machine.depth > 64 {
        return refuse(format!("depth {} is not between 1 and 64", options.machine.depth));
    }
    if options.capture == CaptureMode::Direct && !guest.memory_registrable() {
        return refuse("direct capture needs guest memory that can be registered".into());
    }
    if staging_bytes < LEAST_STAGING_BYTES {
        return refuse(format!("staging memory must have at least {LEAST_STAGING_BYTES} bytes"));
    }
    if options.spares == 0 || options.machine.interval.is_zero() {
        return refuse("spares and interval must not be zero".into());
    }
    let regions = guest.layout().regions.iter().map(|region| region.pages * PAGE_BYTES);
    if !regions.eq(guest.memory().iter().map(|memory| memory.len_bytes() as u64)) {
        return refuse("the guest's memory does not have the lengths of its layout".into());
    }
    Ok(())
}

fn start_threads(
    shared: &Arc<Shared>,
    guest: Box<dyn Guest>,
    asked: Receiver<Question>,
    setup: &Arc<dyn ThreadSetup>,
) -> Result<PrimaryHandle, StartError> {
    let options = &shared.options;
    let copier = Copier::new(
        shared.guest_memory.clone(),
        shared.staging.memory().clone(),
        options.copy_workers,
        options.copy_workers_from_pages,
        options.spin,
        setup,
    )?;
    let mut threads = Vec::new();
    let mut start = |name: &'static str, body: Body| {
        let shared = Arc::clone(shared);
        threads.push(spawn(name, setup, move || guarded(name, &shared, body))?);
        Ok::<_, StartError>(())
    };
    let started = start("arbiter", Box::new(move |shared| answer(shared, &asked)))
        .and_then(|()| start("sender", Box::new(|shared| Sender::new(Arc::clone(shared)).run())))
        .and_then(|()| start("control", Box::new(|shared| control::run(shared))))
        .and_then(|()| start("connector", Box::new(connect::run)))
        .and_then(|()| {
            start("capture", Box::new(|shared| Capture::new(Arc::clone(shared), guest, copier).run()))
        });
    if let Err(error) = started {
        shared.finish();
        return Err(error);
    }
    Ok(PrimaryHandle { shared: Arc::clone(shared), threads: Arc::new(Mutex::new(threads)) })
}

/// Runs a thread's body; a panic ends the driver, with the guest running.
fn guarded(name: &str, shared: &Arc<Shared>, body: Body) {
    if catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        shared.fail(format!("thread {name} panicked; output stays held until the grant is claimed"));
        if name == "sender" {
            shared.jobs.close();
        }
    }
}

/// The `arbiter` thread.
fn answer(shared: &Shared, asked: &Receiver<Question>) {
    let (arbiter, guest) = (&*shared.arbiter, shared.options.machine.guest.as_str());
    while let Ok(question) = asked.recv() {
        match question {
            Question::Swap(expected, new) => {
                let outcome = arbitrate::swap(arbiter, guest, expected.as_ref(), &new);
                shared.step(|primary, now, actions| primary.handle_swap(&new, outcome, now, actions));
            }
            Question::Read => {
                let record = arbitrate::read(arbiter, guest);
                shared.step(|primary, now, actions| primary.handle_record(record, now, actions));
            }
        }
    }
}
