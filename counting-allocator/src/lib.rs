//! The system's allocator, counting: for tests of what must not allocate. Each of them makes it its
//! own:
//!
//! ```
//! use romulus_counting_allocator::{CountingAllocator, Watch, of_thread};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! let (before, watch) = (of_thread(), Watch::begin());
//! drop(std::hint::black_box(vec![0u8; 10]));
//! assert_eq!(of_thread().times, before.times + 1);
//! assert_eq!(of_thread().bytes, before.bytes + 10);
//! assert!(watch.times() >= 1);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Allocations whose thread a [`Watch`] remembers.
const REMEMBERED: usize = 64;

static TIMES: AtomicU64 = AtomicU64::new(0);
/// What `TIMES` was when threads began to be remembered.
static WATCHED_FROM: AtomicU64 = AtomicU64::new(u64::MAX);
static THREADS: [AtomicI32; REMEMBERED] = [const { AtomicI32::new(0) }; REMEMBERED];

thread_local! {
    static OF_THREAD: Cell<Allocations> = const { Cell::new(Allocations { times: 0, bytes: 0 }) };
}

/// Allocations made, a growing block counted as a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// How many.
    pub times: u64,
    /// How many bytes they asked for.
    pub bytes: u64,
}

/// What the calling thread has allocated so far.
pub fn of_thread() -> Allocations {
    OF_THREAD.get()
}

/// Looks at the allocations of all threads from its beginning on. Threads are remembered for the
/// one that began last.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    from: u64,
}

impl Watch {
    /// From now on.
    pub fn begin() -> Self {
        let from = TIMES.load(Ordering::SeqCst);
        WATCHED_FROM.store(from, Ordering::SeqCst);
        Self { from }
    }

    /// How often any thread has allocated since.
    pub fn times(&self) -> u64 {
        TIMES.load(Ordering::SeqCst) - self.from
    }

    /// The names of the threads of the first `times` allocations; of 64 at most.
    pub fn threads(&self, times: u64) -> Vec<String> {
        let known = REMEMBERED.min(usize::try_from(times).unwrap_or(REMEMBERED));
        let name = |thread: &AtomicI32| {
            let path = format!("/proc/self/task/{}/comm", thread.load(Ordering::Relaxed));
            std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
        };
        // Looking allocates as well: what is remembered is full by then, or known already.
        THREADS[..known].iter().map(name).collect()
    }
}

/// Counts, and leaves the rest to the system's allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

fn count(bytes: usize) {
    let index = TIMES.fetch_add(1, Ordering::Relaxed);
    let since_watched = index.checked_sub(WATCHED_FROM.load(Ordering::Relaxed));
    if let Some(thread) = since_watched.and_then(|since| THREADS.get(usize::try_from(since).ok()?)) {
        thread.store(rustix::thread::gettid().as_raw_pid(), Ordering::Relaxed);
    }
    // A thread that is being torn down has no count of its own any more.
    let _ = OF_THREAD.try_with(|count| {
        let Allocations { times, bytes: before } = count.get();
        count.set(Allocations { times: times + 1, bytes: before + bytes as u64 });
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing, since
// the thread-local is made without running code and has no destructor.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn a_threads_allocations_are_its_own_and_a_watch_sees_all_by_name() {
        let own = of_thread();
        let mut kept = Vec::with_capacity(REMEMBERED);
        assert_eq!(of_thread().times, own.times + 1);
        let watch = Watch::begin();
        let other = std::thread::Builder::new().name("other".into()).spawn(|| {
            let before = of_thread();
            let mut list: Vec<u8> = Vec::with_capacity(100);
            list.reserve_exact(200);
            let zeroed = vec![0u8; 50];
            let after = of_thread();
            drop(std::hint::black_box((list, zeroed)));
            (after.times - before.times, after.bytes - before.bytes)
        });
        assert_eq!(other.expect("a thread").join().expect("it ends"), (3, 350));
        assert!(watch.times() >= 3);
        // The thread is gone, and so is its name; this one's is there.
        let watch = Watch::begin();
        kept.push(std::hint::black_box(Box::new(1)));
        let times = watch.times();
        let threads = watch.threads(times);
        let this = std::fs::read_to_string("/proc/thread-self/comm").expect("a name");
        assert!(times >= 1 && threads.contains(&this.trim().to_owned()), "{times}: {threads:?}");
    }
}
