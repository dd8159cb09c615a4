//! Threads that stand ready to share one job, again and again, without allocating.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::ThreadSetup;

/// Does part `n` of the job.
pub type Part = Arc<dyn Fn(usize) + Send + Sync>;

/// A fixed job in numbered parts, done by the calling thread and `threads - 1` others.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    part: Part,
    parts: usize,
    next: AtomicUsize,
    state: Mutex<State>,
    begin: Condvar,
    finished: Condvar,
}

#[derive(Default)]
struct State {
    round: u64,
    busy: usize,
    ending: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a few numbers, valid whatever happened to a thread that held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.parts {
                return;
            }
            (self.part)(index);
        }
    }

    fn serve(&self) {
        let mut seen = 0;
        loop {
            let mut state = self.lock();
            while state.round == seen && !state.ending {
                state = self.begin.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ending {
                return;
            }
            seen = state.round;
            drop(state);
            self.work();
            let mut state = self.lock();
            state.busy -= 1;
            if state.busy == 0 {
                self.finished.notify_one();
            }
        }
    }
}

impl Pool {
    /// A pool for a job of `parts` parts. Threads are called `scan-1`, `scan-2`, ...
    pub fn new(threads: usize, parts: usize, setup: &ThreadSetup, part: Part) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            part,
            parts,
            next: AtomicUsize::new(0),
            state: Mutex::default(),
            begin: Condvar::new(),
            finished: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new() };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let setup = Arc::clone(setup);
            let name = format!("scan-{number}");
            let worker = std::thread::Builder::new().name(name.clone()).spawn(move || {
                // What a part that panics should have found would be missing, and the guest is paused.
                crate::or_abort(|| {
                    setup(&name);
                    shared.serve();
                });
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Does the whole job and returns when it is done.
    pub fn run(&self) {
        self.shared.next.store(0, Ordering::Relaxed);
        if self.workers.is_empty() {
            return self.shared.work();
        }
        let mut state = self.shared.lock();
        state.round += 1;
        state.busy = self.workers.len();
        drop(state);
        self.shared.begin.notify_all();
        self.shared.work();
        let mut state = self.shared.lock();
        while state.busy > 0 {
            state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.begin.notify_all();
        for worker in self.workers.drain(..) {
            // A panic was already printed by the thread.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_a_run() {
        for threads in [1, 3] {
            let counts: Arc<Vec<AtomicUsize>> = Arc::new((0..17).map(|_| AtomicUsize::new(0)).collect());
            let names: Arc<Mutex<Vec<String>>> = Arc::default();
            let seen = Arc::clone(&names);
            let setup: ThreadSetup = Arc::new(move |name| seen.lock().unwrap().push(name.to_owned()));
            let counting = Arc::clone(&counts);
            let part: Part = Arc::new(move |index| {
                counting[index].fetch_add(1, Ordering::Relaxed);
            });
            let pool = Pool::new(threads, 17, &setup, part).unwrap();
            for _ in 0..50 {
                pool.run();
            }
            drop(pool);
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 50));
            let mut names = names.lock().unwrap().clone();
            names.sort();
            let expected: Vec<String> = (1..threads).map(|number| format!("scan-{number}")).collect();
            assert_eq!(names, expected);
        }
    }

    /// Set for the process that is to die.
    const ROLE: &str = "ROMULUS_TEST_POOL_PANICS";

    /// Not a test of its own.
    #[test]
    fn panics_on_a_worker() {
        if std::env::var_os(ROLE).is_none() {
            return;
        }
        let on_worker = Arc::new(AtomicUsize::new(0));
        let part: Part = Arc::new(move |_| {
            if std::thread::current().name() == Some("scan-1") {
                on_worker.store(1, Ordering::SeqCst);
                panic!("on a worker");
            }
            // Leaves the other part to the worker.
            while on_worker.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
        });
        Pool::new(2, 2, &crate::no_thread_setup(), part).unwrap().run();
    }

    #[test]
    fn i7_a_part_that_panics_ends_the_process_and_is_not_counted_as_done() {
        use std::os::unix::process::ExitStatusExt;

        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let name = concat!(module_path!(), "::panics_on_a_worker").split_once("::").unwrap().1;
        let output = command.args(["--exact", name]).env(ROLE, "").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }
}
