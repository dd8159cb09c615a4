//! The protector's side: starts the guard, tells it what happens, lets it go.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::page::{Page, PauseFlag};
use super::process::GuestProcess;
use super::{GuardError, GuardSpec, link};

/// How long a guard may take to get ready, and to end.
const START_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(2);

/// A running guard. Dropping it without [`detach`](Self::detach) leaves the guard watching.
#[derive(Debug)]
pub struct GuardHandle {
    child: Child,
    process: GuestProcess,
    link: UnixStream,
    page: Arc<Page>,
    /// Opened while it certainly lived.
    guest: Option<Arc<GuestProcess>>,
}

/// Starts a guard of this process. `command` runs this program's guard subcommand (usually
/// `/proc/self/exe guard`), which calls [`super::run`]. Returns when it is ready; it has nothing
/// to do before [`GuardHandle::arm`].
pub fn spawn(command: Command, spec: &GuardSpec) -> Result<GuardHandle, GuardError> {
    let page = Page::create().map_err(|error| GuardError::new("make its page", error))?;
    let open = |pid| {
        let opened = GuestProcess::open(pid);
        opened.map_err(|error| GuardError::new(format!("pidfd of the guest, process {pid}"), error))
    };
    let guest = spec.guest_pid.map(open).transpose()?;
    start(command, spec, Arc::new(page), guest.map(Arc::new))
}

fn start(
    mut command: Command,
    spec: &GuardSpec,
    page: Arc<Page>,
    guest: Option<Arc<GuestProcess>>,
) -> Result<GuardHandle, GuardError> {
    let greeting = serde_json::to_vec(spec)
        .map_err(|error| GuardError::new("write its settings", io::Error::from(error)))?;
    let own = GuestProcess::open(std::process::id()).map_err(|error| GuardError::new("own pidfd", error))?;
    let (here, there) = UnixStream::pair().map_err(|error| GuardError::new("socketpair", error))?;
    command.stdin(Stdio::from(OwnedFd::from(there))).stdout(Stdio::null());
    let child = command.spawn().map_err(|error| GuardError::new("start its process", error))?;
    // The command still holds the guard's end of the link: a guard that dies would go unnoticed.
    drop(command);
    let process = GuestProcess::open(child.id()).map_err(|error| GuardError::new("its pidfd", error))?;
    let mut handle = GuardHandle { child, process, link: here, page, guest };
    if let Err(error) = handle.greet(&greeting, &own) {
        handle.end();
        return Err(GuardError::new("it did not get ready", error));
    }
    Ok(handle)
}

impl GuardHandle {
    fn greet(&mut self, greeting: &[u8], own: &GuestProcess) -> io::Result<()> {
        let mut descriptors = vec![self.page.file(), own.pidfd()];
        descriptors.extend(self.guest.as_deref().map(GuestProcess::pidfd));
        link::send_greeting(&mut self.link, greeting, &descriptors)?;
        self.link.set_read_timeout(Some(START_LIMIT))?;
        let mut ready = [0];
        self.link.read_exact(&mut ready)?;
        if ready == [link::READY] { Ok(()) } else { Err(io::Error::other("it is another program")) }
    }

    /// Starts another in place of one that has died. It knows all that was noted for that one, and pause
    /// flags stay valid. After failure there is none, and this may be tried again.
    pub fn restart(&mut self, command: Command, spec: &GuardSpec) -> Result<(), GuardError> {
        self.end();
        *self = start(command, spec, Arc::clone(&self.page), self.guest.clone())?;
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where to note that the guest is paused. The flag stays valid after this handle.
    pub fn pause_flag(&self) -> PauseFlag {
        PauseFlag::of(Arc::clone(&self.page))
    }

    /// From now on the guard acts if this process dies. Call before anything is done to the guest.
    pub fn arm(&self) {
        self.page.arm();
    }

    /// Whether it still watches.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// The guest runs, unwatched and its output free, or has ended: ends the guard.
    pub fn detach(mut self) {
        self.page.detach();
        // Fails only if the guard is dead.
        let _ = self.link.write_all(&[link::DETACHED]);
        self.end();
    }

    /// Waits for its end, which is near, and reaps it.
    fn end(&mut self) {
        let _ = self.link.shutdown(std::net::Shutdown::Both);
        if !self.process.wait_end(Some(END_LIMIT)) {
            tracing::warn!(pid = self.pid(), "the guard does not end; killing it");
            let _ = self.process.kill();
        }
        let _ = self.child.wait();
    }
}

impl AsFd for GuardHandle {
    /// Becomes readable when the guard ends.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.process.pidfd()
    }
}
