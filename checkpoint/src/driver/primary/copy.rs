//! Copies an epoch's pages out of the guest, on several threads where there are many.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use romulus_transport::Memory;

use crate::driver::StartError;
use crate::driver::signal::{Signal, lock};
use crate::driver::threads::{ThreadSetup, spawn};

/// One run of bytes from a region of the guest to a place in staging memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopyItem {
    /// Index of the guest's region.
    pub region: usize,
    /// First byte in the region.
    pub from: u64,
    /// First byte in staging memory.
    pub to: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// Longest item, so that long runs are shared among threads.
pub(super) const MAX_ITEM_BYTES: u64 = 128 << 10;
/// Items that a thread takes at a time.
const BATCH: usize = 16;
/// Longest wait for the workers without a look whether they live.
const LOOK: Duration = Duration::from_millis(100);

struct Pool {
    regions: Vec<Memory>,
    staging: Memory,
    items: RwLock<Vec<CopyItem>>,
    next: AtomicUsize,
    /// Workers that have not yet finished the present list.
    working: AtomicUsize,
    begin: Signal,
    done: Signal,
    stop: Mutex<bool>,
}

impl Pool {
    fn copy_share(&self, items: &[CopyItem]) {
        loop {
            let first = self.next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(rest) = items.get(first..) else { return };
            self.copy_all(&rest[..rest.len().min(BATCH)]);
        }
    }

    /// Copies some, the next one's first lines on their way while one is copied: the processor's own
    /// prefetching ends with the page.
    fn copy_all(&self, items: &[CopyItem]) {
        for (index, item) in items.iter().enumerate() {
            if let Some(next) = items.get(index + 1) {
                self.regions[next.region].prefetch(next.from as usize);
            }
            let from = &self.regions[item.region];
            from.copy_to(item.from as usize, &self.staging, item.to as usize, item.len_bytes as usize);
        }
    }

    fn work(&self) {
        let mut seen = 0;
        loop {
            self.begin.wait(seen, Duration::MAX);
            seen += 1;
            if *lock(&self.stop) {
                return;
            }
            self.copy_share(&self.items.read().unwrap_or_else(PoisonError::into_inner));
            if self.working.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.notify();
            }
        }
    }
}

/// The copying threads and the memory they copy between.
pub(super) struct Copier {
    pool: Arc<Pool>,
    workers: Vec<JoinHandle<()>>,
    parallel_from_pages: u64,
}

impl Copier {
    /// Starts `workers` threads named `copy-N`. Epochs of fewer pages than `parallel_from_pages`
    /// are copied by the caller alone.
    pub fn new(
        regions: Vec<Memory>,
        staging: Memory,
        workers: usize,
        parallel_from_pages: u64,
        spin: Duration,
        setup: &Arc<dyn ThreadSetup>,
    ) -> Result<Self, StartError> {
        let pool = Arc::new(Pool {
            regions,
            staging,
            items: RwLock::default(),
            next: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            begin: Signal::new(spin),
            done: Signal::new(spin),
            stop: Mutex::new(false),
        });
        let mut copier = Self { pool, workers: Vec::new(), parallel_from_pages };
        for number in 0..workers {
            let pool = Arc::clone(&copier.pool);
            copier.workers.push(spawn(&format!("copy-{number}"), setup, move || pool.work())?);
        }
        Ok(copier)
    }

    /// Makes all copies, which belong to an epoch of `pages` pages. The list comes back as it was.
    ///
    /// # Panics
    /// If a worker has: the guest is paused, and nobody else would notice.
    pub fn copy(&self, items: &mut Vec<CopyItem>, pages: u64) {
        if self.workers.is_empty() || pages < self.parallel_from_pages {
            return self.pool.copy_all(items);
        }
        self.exchange(items);
        self.pool.next.store(0, Ordering::Relaxed);
        self.pool.working.store(self.workers.len(), Ordering::Release);
        self.pool.begin.notify();
        self.pool.copy_share(&self.pool.items.read().unwrap_or_else(PoisonError::into_inner));
        self.wait_for_workers();
        self.exchange(items);
    }

    fn wait_for_workers(&self) {
        loop {
            let seen = self.pool.done.seen();
            if self.pool.working.load(Ordering::Acquire) == 0 {
                return;
            }
            assert!(!self.workers.iter().any(JoinHandle::is_finished), "a copying thread has panicked");
            self.pool.done.wait(seen, LOOK);
        }
    }

    fn exchange(&self, items: &mut Vec<CopyItem>) {
        std::mem::swap(&mut *self.pool.items.write().unwrap_or_else(PoisonError::into_inner), items);
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        *lock(&self.pool.stop) = true;
        self.pool.begin.notify();
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing left to give back.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::threads::NoThreadSetup;
    use std::sync::mpsc::channel;

    #[test]
    fn i8_a_worker_that_is_gone_is_not_waited_for() {
        let setup: Arc<dyn ThreadSetup> = Arc::new(|name: &str| assert!(name.is_empty(), "asked to panic"));
        let memory = Memory::anonymous(1 << 20);
        let copier =
            Copier::new(vec![memory.clone()], memory, 2, 1, Duration::ZERO, &setup).expect("threads start");
        let (done, is_done) = channel::<()>();
        let paused = std::thread::spawn(move || {
            let _done = done;
            copier.copy(&mut vec![CopyItem { region: 0, from: 0, to: 8192, len_bytes: 4096 }], 1);
        });
        let ended = is_done.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected), "it waits for ever");
        assert!(paused.join().is_err(), "nobody is told that pages were not copied");
    }

    #[test]
    fn every_item_is_copied_by_any_number_of_threads() {
        let setup: Arc<dyn ThreadSetup> = Arc::new(NoThreadSetup);
        let source = Memory::anonymous(1 << 20);
        (0..1 << 8).for_each(|page| source.write(page * 4096, &[page as u8; 4096]));
        for workers in [0, 1, 3] {
            let target = Memory::anonymous(1 << 20);
            let copier =
                Copier::new(vec![source.clone()], target.clone(), workers, 1, Duration::ZERO, &setup)
                    .expect("threads start");
            for round in 0..20 {
                let mut items: Vec<_> = (0..256)
                    .map(|page| CopyItem {
                        region: 0,
                        from: page * 4096,
                        to: (255 - page) * 4096,
                        len_bytes: 4096,
                    })
                    .collect();
                let before = items.clone();
                target.write(round * 4096, &[99; 4096]);
                copier.copy(&mut items, 256);
                assert_eq!(items, before);
                for page in 0..256usize {
                    let mut byte = [0];
                    target.read(page * 4096 + 77, &mut byte);
                    assert_eq!(byte[0], (255 - page) as u8);
                }
            }
        }
    }
}
