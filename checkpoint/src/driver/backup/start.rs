//! Starts a backup: listens, starts the threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use romulus_transport::Listener;

use super::handle::BackupHandle;
use super::options::{BackupOptions, BackupParts};
use super::shared::Shared;
use super::status::BackupOutcome;
use super::{committer, handshake, homing, takeover, watch};
use crate::arbiter::random_nonce;
use crate::driver::StartError;
use crate::driver::threads::spawn;

/// Longest wait of the accept thread without a look around.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// What a thread does.
type Body = Box<dyn FnOnce(&Arc<Shared>) + Send>;

/// Starts a backup.
#[derive(Debug)]
pub struct BackupDriver;

impl BackupDriver {
    /// Listens and starts the threads. Allocates nothing before a primary's Hello was admitted.
    pub fn spawn(mut options: BackupOptions, parts: BackupParts) -> Result<BackupHandle, StartError> {
        if options.homing_threads == 0 || options.max_handshakes == 0 {
            let text = "at least one homing thread and one handshake are needed";
            return Err(StartError::Options(text.into()));
        }
        if options.machine.nonce_seed == 0 {
            options.machine.nonce_seed =
                random_nonce().map_err(|error| StartError::Ownership(error.to_string()))?;
        }
        let listener = parts.fabric.listen(options.listen)?;
        let (errands, errands_in) = channel();
        let (standby_errands, standby_errands_in) = channel();
        let homing_threads = options.homing_threads;
        let shared =
            Arc::new(Shared::new(options, parts, listener.local_address(), errands, standby_errands));
        let setup = Arc::clone(&shared.threads);
        let mut threads = Vec::new();
        let mut start = |name: &str, body: Body| {
            let shared = Arc::clone(&shared);
            let own_name = name.to_owned();
            threads.push(spawn(name, &setup, move || guarded(&own_name, &shared, body))?);
            Ok::<_, StartError>(())
        };
        let started = start("takeover", Box::new(move |shared| takeover::run(shared, &errands_in)))
            .and_then(|()| start("standby", Box::new(move |shared| watch::run(shared, &standby_errands_in))))
            .and_then(|()| start("committer", Box::new(|shared| committer::run(shared))))
            .and_then(|()| {
                (0..homing_threads).try_for_each(|number| {
                    start(&format!("homing-{number}"), Box::new(|shared| homing::run(shared)))
                })
            })
            .and_then(|()| start("accept", Box::new(move |shared| accept(shared, listener))));
        if let Err(error) = started {
            shared.finish(BackupOutcome::Failed(error.to_string()));
            return Err(error);
        }
        Ok(BackupHandle { shared, threads: Arc::new(Mutex::new(threads)) })
    }
}

/// Runs a thread's body; a panic ends the driver.
fn guarded(name: &str, shared: &Arc<Shared>, body: Body) {
    if catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        shared.finish(BackupOutcome::Failed(format!("thread {name} panicked")));
    }
}

/// The `accept` thread: each stranger gets a thread of its own until it is a peer or gone.
fn accept(shared: &Arc<Shared>, mut listener: Box<dyn Listener>) {
    let running = Arc::new(AtomicUsize::new(0));
    while !shared.is_over() {
        if running.load(Ordering::Acquire) >= shared.options.max_handshakes {
            let seen = shared.ended.seen();
            shared.ended.wait(seen, LOOK_AROUND / 10);
            continue;
        }
        let channel = match listener.accept(LOOK_AROUND) {
            Ok(Some(channel)) => channel,
            Ok(None) => continue,
            Err(error) => {
                shared.note(&format!("accepting failed: {error}"));
                let seen = shared.ended.seen();
                shared.ended.wait(seen, LOOK_AROUND);
                continue;
            }
        };
        running.fetch_add(1, Ordering::AcqRel);
        let (own_shared, own_running) = (Arc::clone(shared), Arc::clone(&running));
        let started = spawn("handshake", &shared.threads, move || {
            let attempt = AssertUnwindSafe(|| handshake::run(&own_shared, channel));
            if catch_unwind(attempt).is_err() {
                let why = "a handshake panicked";
                own_shared.note(why);
                own_shared.step(|backup, now, actions| backup.handle_disconnected(why, now, actions));
            }
            own_running.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = started {
            running.fetch_sub(1, Ordering::AcqRel);
            shared.note(&error.to_string());
        }
    }
}
