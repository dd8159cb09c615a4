//! What a checkpoint costs a guest: attaches to a running QEMU, runs pause cycles at a fixed rate
//! and prints each phase. `pause_cost QMP_SOCKET [CYCLES] [PER_SECOND] [auto|migration]`.
//!
//! Disks and network cards are let through, since nothing is sent anywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::{Extent, PAGE_BYTES};
use romulus_qemu::discover::refusal::Allowances;
use romulus_qemu::{GuestOptions, QemuGuest, SaveBy};
use romulus_transport::Memory;

/// Room for the state of a cycle, in bytes.
const STATE_BYTES: usize = 4 * 1024 * 1024;
/// Room for the copied pages of a cycle, in bytes.
const STAGING_BYTES: usize = 512 * 1024 * 1024;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let qmp =
        arguments.next().ok_or("usage: pause_cost QMP_SOCKET [CYCLES] [PER_SECOND] [auto|migration]")?;
    let cycles: usize = arguments.next().map_or(Ok(400), |text| text.parse())?;
    let per_second: f64 = arguments.next().map_or(Ok(40.0), |text| text.parse())?;
    let mut options = GuestOptions::new(qmp);
    options.allowances = Allowances { unreplicated_disk: true, network: true };
    if arguments.next().as_deref() == Some("migration") {
        options.save_by = SaveBy::Migration;
    }
    let mut guest = QemuGuest::attach(options)?;
    guest.start_tracking()?;
    println!("state by {}, dirty pages by {}", guest.methods().0, guest.methods().1);

    let mut phases: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
    let (mut pages, mut state_bytes) = (Vec::new(), 0);
    let state = Memory::anonymous(STATE_BYTES);
    let staging = Memory::anonymous(STAGING_BYTES);
    let mut dirty: Vec<Extent> = Vec::with_capacity(1 << 20);
    let interval = Duration::from_secs_f64(1.0 / per_second);
    let mut next = Instant::now();
    let mut late = 0;
    for _ in 0..cycles {
        next += interval;
        match next.checked_duration_since(Instant::now()) {
            Some(left) => std::thread::sleep(left),
            None => late += 1,
        }
        let start = Instant::now();
        guest.pause()?;
        state_bytes = guest.save_state(&state)?;
        dirty.clear();
        guest.collect(&mut dirty)?;
        let copying = Instant::now();
        pages.push(copy(&guest, &dirty, &staging));
        let copied = copying.elapsed();
        guest.resume()?;
        phases.entry("whole pause").or_default().push(start.elapsed());
        phases.entry("copy").or_default().push(copied);
        for (step, took) in guest.last_pause_detail() {
            phases.entry(step).or_default().push(*took);
        }
        while let Some(event) = guest.poll_event() {
            println!("event: {event:?}");
        }
    }
    guest.stop_tracking()?;
    println!("{cycles} cycles, {late} late, state {state_bytes} bytes");
    for (phase, times) in &mut phases {
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!("{phase:>12}: p50 {:>9.3?} p99 {:>9.3?} max {:>9.3?}", at(0.5), at(0.99), at(1.0));
    }
    pages.sort_unstable();
    println!("dirty pages: p50 {} max {}", pages[pages.len() / 2], pages[pages.len() - 1]);
    Ok(())
}

/// Copies the dirty pages as the capture does, up to the staging's length; returns how many.
fn copy(guest: &QemuGuest, dirty: &[Extent], staging: &Memory) -> u64 {
    let mut at = 0;
    let mut total = 0;
    for extent in dirty {
        total += extent.pages;
        let mut first = 0;
        for (region, memory) in guest.layout().regions.iter().zip(guest.memory()) {
            let begin = extent.first.0.max(first);
            let end = (extent.first.0 + extent.pages).min(first + region.pages);
            if begin < end {
                let offset = ((begin - first) * PAGE_BYTES) as usize;
                let length = ((end - begin) * PAGE_BYTES) as usize;
                if at + length <= staging.len_bytes() {
                    memory.copy_to(offset, staging, at, length);
                    at += length;
                }
            }
            first += region.pages;
        }
    }
    total
}
