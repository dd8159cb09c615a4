//! Event channels to a domain.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::bindings::events as raw;
use super::{Library, last_error};
use crate::error::XenError;

/// One event channel, bound to a port of another domain.
pub struct EventChannel {
    library: Arc<Library>,
    handle: NonNull<raw::xenevtchn_handle>,
    port: u32,
}

// SAFETY: the library's handle is a file descriptor.
unsafe impl Send for EventChannel {}

impl EventChannel {
    /// Binds to a port that the domain offers to this one. An event comes at once: see
    /// [`clear`](Self::clear).
    pub fn bind(library: &Arc<Library>, domid: u32, remote_port: u32) -> Result<Self, XenError> {
        // SAFETY: without a logger the library uses its own.
        let handle = unsafe { library.events.xenevtchn_open(std::ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| last_error("opening event channels"))?;
        let mut channel = Self { library: Arc::clone(library), handle, port: 0 };
        // SAFETY: an open handle and numbers.
        let port = unsafe { library.events.xenevtchn_bind_interdomain(handle.as_ptr(), domid, remote_port) };
        channel.port = u32::try_from(port)
            .map_err(|_| last_error(format!("binding event channel {remote_port} of domain {domid}")))?;
        Ok(channel)
    }

    /// Sends an event.
    pub fn notify(&self) -> Result<(), XenError> {
        // SAFETY: an open handle and its own port.
        match unsafe { self.library.events.xenevtchn_notify(self.handle.as_ptr(), self.port) } {
            0 => Ok(()),
            _ => Err(last_error("sending an event")),
        }
    }

    /// Waits for an event and takes it; whether one came in time.
    pub fn wait(&self, timeout: Duration) -> Result<bool, XenError> {
        if !self.is_ready(timeout)? {
            return Ok(false);
        }
        // SAFETY: an open handle.
        let port = unsafe { self.library.events.xenevtchn_pending(self.handle.as_ptr()) };
        let port = u32::try_from(port).map_err(|_| last_error("taking an event"))?;
        // SAFETY: the port that was just given.
        if unsafe { self.library.events.xenevtchn_unmask(self.handle.as_ptr(), port) } < 0 {
            return Err(last_error("unmasking an event channel"));
        }
        Ok(port == self.port)
    }

    /// Takes what has come.
    pub fn clear(&self) -> Result<(), XenError> {
        while self.wait(Duration::ZERO)? {}
        Ok(())
    }

    fn is_ready(&self, timeout: Duration) -> Result<bool, XenError> {
        // SAFETY: the descriptor stays open as long as the handle, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.library.events.xenevtchn_fd(self.handle.as_ptr())) };
        let limit = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(XenError::failed("waiting for an event", error)),
        }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; that unbinds the port.
        unsafe { self.library.events.xenevtchn_close(self.handle.as_ptr()) };
    }
}
