//! A synthetic guest: pages with versions, numbered output, a state that says how far it got.

use romulus_checkpoint::extent::Extent;
use romulus_checkpoint::{PAGE_BYTES, PageIndex};
use romulus_transport::Memory;

use super::rng::{Rng, mix};
use super::scenario::Scenario;

/// Whether it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    Running,
    Paused,
    /// Powered off by itself.
    Ended,
    /// Its process is gone.
    Gone,
}

/// The guest at a pause: what a committed epoch must equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The version of each page.
    pub versions: Vec<u64>,
    /// CPU and device state.
    pub state: Vec<u8>,
    /// Packets sent so far: the guest knows of all numbers below.
    pub sent: u64,
}

#[derive(Debug)]
pub struct GuestModel {
    pub run: Run,
    pub memory: Memory,
    pub versions: Vec<u64>,
    pub sent: u64,
    dirty: Vec<bool>,
    tracking: bool,
    last_version: u64,
    working_set: u64,
    burst_percent: u64,
    calm: bool,
}

impl GuestModel {
    pub fn new(scenario: &Scenario, rng: &mut Rng) -> Self {
        let pages = scenario.layout.pages();
        let mut guest = Self {
            run: Run::Running,
            memory: Memory::anonymous((pages * PAGE_BYTES) as usize),
            versions: vec![0; pages as usize],
            sent: 0,
            dirty: vec![false; pages as usize],
            tracking: false,
            last_version: 0,
            working_set: scenario.working_set,
            burst_percent: scenario.burst_percent,
            calm: false,
        };
        for page in 0..pages {
            if rng.percent(90) {
                guest.write_page(page);
            }
        }
        guest
    }

    /// From now on an epoch is never too large, however few spares there are.
    pub fn calm_down(&mut self) {
        self.calm = true;
    }

    fn write_page(&mut self, page: u64) {
        self.last_version += 1;
        let version = self.last_version;
        self.versions[page as usize] = version;
        self.dirty[page as usize] |= self.tracking;
        self.memory.write((page * PAGE_BYTES) as usize, &content(page, version));
    }

    /// Does one thing while it runs. Returns the number of a packet if it sends one.
    pub fn act(&mut self, rng: &mut Rng) -> Option<u64> {
        let pages = self.versions.len() as u64;
        if rng.percent(30) {
            self.sent += 1;
            return Some(self.sent - 1);
        }
        if self.calm {
            self.write_page(0);
        } else if rng.percent(self.burst_percent) {
            for page in 0..pages {
                if rng.percent(70) {
                    self.write_page(page);
                }
            }
        } else {
            let among = if rng.percent(85) { self.working_set } else { pages };
            self.write_page(rng.below(among));
        }
        None
    }

    pub fn start_tracking(&mut self) {
        self.tracking = true;
    }

    pub fn stop_tracking(&mut self) {
        self.tracking = false;
        self.dirty.fill(false);
    }

    /// The pages written since the last call.
    pub fn collect(&mut self) -> Vec<Extent> {
        let pages = self.dirty.iter_mut().map(std::mem::take).collect::<Vec<_>>();
        extents(pages.iter().enumerate().filter(|(_, dirty)| **dirty).map(|(page, _)| page as u64))
    }

    /// Saves the state; may write guest memory.
    pub fn save_state(&mut self, rng: &mut Rng) -> Vec<u8> {
        if !self.calm && rng.percent(30) {
            self.write_page(rng.below(self.versions.len() as u64));
        }
        let mut state = self.sent.to_le_bytes().to_vec();
        let length = rng.between(16, 300);
        state.extend((0..length).map(|_| rng.next() as u8));
        state
    }

    pub fn snapshot(&self, state: &[u8]) -> Snapshot {
        Snapshot { versions: self.versions.clone(), state: state.to_vec(), sent: self.sent }
    }
}

/// The bytes of a page's version: any two versions differ in every byte position's word, so that
/// a mixture shows.
pub fn content(page: u64, version: u64) -> [u8; PAGE_BYTES as usize] {
    let word = if version == 0 { [0; 8] } else { mix((page << 40) ^ version).to_le_bytes() };
    let mut bytes = [0; PAGE_BYTES as usize];
    bytes.as_chunks_mut::<8>().0.fill(word);
    bytes
}

/// Whether the page-sized place at `offset` holds this version of the page.
pub fn holds(memory: &Memory, offset: usize, page: u64, version: u64) -> bool {
    let mut bytes = [0; PAGE_BYTES as usize];
    memory.read(offset, &mut bytes);
    bytes == content(page, version)
}

/// Runs of consecutive pages among sorted pages.
pub fn extents(pages: impl Iterator<Item = u64>) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.first.0 + run.pages == page => run.pages += 1,
            _ => runs.push(Extent { first: PageIndex(page), pages: 1 }),
        }
    }
    runs
}
