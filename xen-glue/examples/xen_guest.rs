//! What a checkpoint costs a domain, and whether each written page is found: run in dom0.
//! `xen_guest DOMAIN [CYCLES] [PER_SECOND]` copies the domain's memory once, then runs pause cycles
//! at a fixed rate and copies the pages that are reported as written. In the end the copy must equal
//! the suspended domain's memory, but for the pages that dom0 and the hypervisor write for it (rings,
//! grant tables, shared info), whose frames are printed.
//!
//! Disks and network cards are let through, since nothing is sent anywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::{Extent, PAGE_BYTES, PageIndex};
use romulus_host::gate::GateChoices;
use romulus_transport::Memory;
use romulus_xen::layout::FrameMap;
use romulus_xen::records::EpochState;
use romulus_xen::{XenGuest, XenOptions};

/// Room for the state of a cycle, in bytes.
const STATE_BYTES: usize = 4 << 20;
/// Pages that may differ: those that dom0 and the hypervisor write.
const MOST_FOREIGN_PAGES: usize = 64;

/// Cycles that are shown one by one at most.
const MOST_SHOWN: usize = 50;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let domain = arguments.next().ok_or("usage: xen_guest DOMAIN [CYCLES] [PER_SECOND]")?;
    let cycles: usize = arguments.next().map_or(Ok(200), |text| text.parse())?;
    let per_second: f64 = arguments.next().map_or(Ok(10.0), |text| text.parse())?;
    let mut options = XenOptions::new(domain);
    options.allowances.unreplicated_disk = true;
    options.gates = Some(GateChoices::parse(["all=none"])?);
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let began = Instant::now();
    let mut guest = XenGuest::attach(options)?;
    println!("attached in {:?}: {:?}", began.elapsed(), guest.layout().regions);
    let machine = guest.machine();
    let lines: usize = machine.configuration.iter().map(String::len).sum();
    println!("{}, {} lines, {lines} bytes", machine.hypervisor, machine.configuration.len());
    let began = Instant::now();
    guest.start_tracking()?;
    println!("logging after {:?}, suspended by {}", began.elapsed(), guest.suspends_by());

    let image: Vec<Memory> =
        guest.memory().iter().map(|memory| Memory::anonymous(memory.len_bytes())).collect();
    let began = Instant::now();
    let everything = [Extent { first: PageIndex(0), pages: guest.layout().pages() }];
    copy(&guest, &everything, &image);
    println!("copied {} pages in {:?}", everything[0].pages, began.elapsed());
    run(&mut guest, cycles, per_second, &image)?;
    compare(&mut guest, &image)?;
    guest.stop_tracking()?;
    Ok(())
}

fn run(guest: &mut XenGuest, cycles: usize, per_second: f64, image: &[Memory]) -> Result<(), Error> {
    let mut phases: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
    let (mut pages, mut state_bytes, mut late) = (Vec::new(), 0, 0);
    let state = Memory::anonymous(STATE_BYTES);
    let mut dirty: Vec<Extent> = Vec::with_capacity(1 << 16);
    let interval = Duration::from_secs_f64(1.0 / per_second);
    let began = Instant::now();
    let mut next = began;
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
        pages.push(copy(guest, &dirty, image));
        let copied = copying.elapsed();
        guest.resume()?;
        phases.entry("whole pause").or_default().push(start.elapsed());
        if cycles <= MOST_SHOWN {
            println!("{:?} {:.1?}", start.elapsed(), guest.last_pause_detail());
        }
        phases.entry("copy").or_default().push(copied);
        for (step, took) in guest.last_pause_detail() {
            phases.entry(step).or_default().push(*took);
        }
        if let Some(event) = guest.poll_event() {
            return Err(format!("the guest: {event:?}").into());
        }
    }
    let rate = cycles as f64 / began.elapsed().as_secs_f64();
    println!("{cycles} cycles, {rate:.1} a second, {late} late, state {state_bytes} bytes");
    pages.sort_unstable();
    println!("dirty pages p50 {} max {}", pages[pages.len() / 2], pages[pages.len() - 1]);
    for (phase, times) in &mut phases {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!("{phase:>12}: p50 {:>10.1?} p99 {:>10.1?} max {:>10.1?}", at(0.5), at(0.99), at(1.0));
    }
    let mut bytes = vec![0; usize::try_from(state_bytes)?];
    state.read(0, &mut bytes);
    let read = EpochState::read(&bytes)?;
    println!("state: context {} bytes, {:?}, {:x?}", read.context.len(), read.tsc, read.params);
    Ok(())
}

/// Copies pages out of the guest.
fn copy(guest: &XenGuest, extents: &[Extent], image: &[Memory]) -> u64 {
    for extent in extents {
        for page in extent.first.0..extent.first.0 + extent.pages {
            let (region, offset) = place(guest, page);
            guest.memory()[region].copy_to(offset, &image[region], offset, PAGE_BYTES as usize);
        }
    }
    extents.iter().map(|extent| extent.pages).sum()
}

fn place(guest: &XenGuest, page: u64) -> (usize, usize) {
    let mut inside = page;
    for (index, region) in guest.layout().regions.iter().enumerate() {
        if inside < region.pages {
            return (index, (inside * PAGE_BYTES) as usize);
        }
        inside -= region.pages;
    }
    panic!("page {page} is in no region");
}

/// One last pause: the image must be the guest.
fn compare(guest: &mut XenGuest, image: &[Memory]) -> Result<(), Error> {
    let mut dirty = Vec::new();
    guest.pause()?;
    guest.collect(&mut dirty)?;
    copy(guest, &dirty, image);
    let map = FrameMap::of_layout(guest.layout()).ok_or("the layout is not Xen's")?;
    let mut different = Vec::new();
    let (mut here, mut there) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
    for page in 0..guest.layout().pages() {
        let (region, offset) = place(guest, page);
        guest.memory()[region].read(offset, &mut here);
        image[region].read(offset, &mut there);
        if here != there {
            different.push(map.frame(PageIndex(page)).unwrap_or_default());
        }
    }
    guest.resume()?;
    println!("{} frames differ that are not logged: {different:x?}", different.len());
    if different.len() > MOST_FOREIGN_PAGES {
        return Err("pages were written and not found".into());
    }
    Ok(())
}
