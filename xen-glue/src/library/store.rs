//! Xenstore.

use std::ffi::{CStr, CString, c_void};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::bindings::store as raw;
use super::{Library, last_error};
use crate::error::XenError;

/// An open connection to xenstore.
pub struct Store {
    library: Arc<Library>,
    handle: NonNull<raw::xs_handle>,
}

// SAFETY: libxenstore locks its handle.
unsafe impl Send for Store {}
// SAFETY: as for `Send`; a transaction is a number, and watches are handed to whoever asks first.
unsafe impl Sync for Store {}

/// A group of reads and writes that happens as one, or not at all.
pub struct Transaction<'a> {
    store: &'a Store,
    id: raw::xs_transaction_t,
    open: bool,
}

/// A watch that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What changed.
    pub path: String,
    /// Given when it was set.
    pub token: String,
}

fn text(value: &str) -> Result<CString, XenError> {
    CString::new(value).map_err(|error| XenError::failed(format!("xenstore: {value:?}"), error))
}

impl Store {
    /// Connects.
    pub fn open(library: &Arc<Library>) -> Result<Self, XenError> {
        // SAFETY: flags alone.
        let handle = unsafe { library.store.xs_open(0) };
        let handle = NonNull::new(handle).ok_or_else(|| {
            last_error("connecting to xenstore (does xenstored run? are you root in dom0?)")
        })?;
        Ok(Self { library: Arc::clone(library), handle })
    }

    fn raw(&self) -> *mut raw::xs_handle {
        self.handle.as_ptr()
    }

    /// A value; `None` if there is no such node. Bytes that are no UTF-8 are replaced.
    pub fn read(&self, path: &str) -> Result<Option<String>, XenError> {
        self.read_in(0, path)
    }

    fn read_in(&self, transaction: raw::xs_transaction_t, path: &str) -> Result<Option<String>, XenError> {
        let name = text(path)?;
        let mut length = 0;
        // SAFETY: a string and room for a length.
        let value =
            unsafe { self.library.store.xs_read(self.raw(), transaction, name.as_ptr(), &raw mut length) };
        if value.is_null() {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(None),
                _ => Err(XenError::failed(format!("reading {path} in xenstore"), error)),
            };
        }
        // SAFETY: the library gives that many bytes, allocated by malloc, which are ours.
        let bytes = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length as usize) };
        let read = String::from_utf8_lossy(bytes).into_owned();
        // SAFETY: allocated by malloc, freed once.
        unsafe { libc::free(value) };
        Ok(Some(read))
    }

    /// Sets a value.
    pub fn write(&self, path: &str, value: &str) -> Result<(), XenError> {
        self.write_in(0, path, value)
    }

    fn write_in(&self, transaction: raw::xs_transaction_t, path: &str, value: &str) -> Result<(), XenError> {
        let name = text(path)?;
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        // SAFETY: a string, and as many bytes as the length says.
        let done = unsafe {
            self.library.store.xs_write(
                self.raw(),
                transaction,
                name.as_ptr(),
                value.as_ptr().cast::<c_void>(),
                length,
            )
        };
        if done { Ok(()) } else { Err(last_error(format!("writing {path} in xenstore"))) }
    }

    /// Removes a node and what is below it; ok if there is none.
    pub fn remove(&self, path: &str) -> Result<(), XenError> {
        let name = text(path)?;
        // SAFETY: a string.
        if unsafe { self.library.store.xs_rm(self.raw(), 0, name.as_ptr()) } {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(()),
            _ => Err(XenError::failed(format!("removing {path} in xenstore"), error)),
        }
    }

    /// Names of the nodes below one; empty if there is none.
    pub fn list(&self, path: &str) -> Result<Vec<String>, XenError> {
        let name = text(path)?;
        let mut count = 0;
        // SAFETY: a string and room for a count.
        let names = unsafe { self.library.store.xs_directory(self.raw(), 0, name.as_ptr(), &raw mut count) };
        if names.is_null() {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(Vec::new()),
                _ => Err(XenError::failed(format!("listing {path} in xenstore"), error)),
            };
        }
        let list = (0..count as usize).map(|index| {
            // SAFETY: the library gives that many strings in one block.
            unsafe { CStr::from_ptr(*names.add(index)) }.to_string_lossy().into_owned()
        });
        let list = list.collect();
        // SAFETY: one block by malloc, freed once, after the last use.
        unsafe { libc::free(names.cast()) };
        Ok(list)
    }

    /// Begins a transaction; dropped, it is taken back.
    pub fn transaction(&self) -> Result<Transaction<'_>, XenError> {
        // SAFETY: an open handle.
        let id = unsafe { self.library.store.xs_transaction_start(self.raw()) };
        if id == 0 {
            return Err(last_error("beginning a transaction in xenstore"));
        }
        Ok(Transaction { store: self, id, open: true })
    }

    /// Asks to be told of changes at and below a path. It fires once at once.
    pub fn watch(&self, path: &str, token: &str) -> Result<(), XenError> {
        let (name, mark) = (text(path)?, text(token)?);
        // SAFETY: two strings.
        match unsafe { self.library.store.xs_watch(self.raw(), name.as_ptr(), mark.as_ptr()) } {
            true => Ok(()),
            false => Err(last_error(format!("watching {path} in xenstore"))),
        }
    }

    /// Waits for a watch to fire.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Watch>, XenError> {
        if let Some(watch) = self.poll()? {
            return Ok(Some(watch));
        }
        // SAFETY: the descriptor stays open as long as the handle, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.library.store.xs_fileno(self.raw())) };
        let limit = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(_) => self.poll(),
            Err(error) => Err(XenError::failed("waiting for xenstore", error)),
        }
    }

    /// A watch that has fired, if one has; never waits.
    pub fn poll(&self) -> Result<Option<Watch>, XenError> {
        // SAFETY: an open handle.
        let fired = unsafe { self.library.store.xs_check_watch(self.raw()) };
        if fired.is_null() {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(None),
                _ => Err(XenError::failed("reading xenstore's watches", error)),
            };
        }
        // SAFETY: a fired watch is a block of two strings, path and token, in that order.
        let (path, token) = unsafe {
            (
                CStr::from_ptr(*fired.add(raw::xs_watch_type_XS_WATCH_PATH as usize)),
                CStr::from_ptr(*fired.add(raw::xs_watch_type_XS_WATCH_TOKEN as usize)),
            )
        };
        let watch =
            Watch { path: path.to_string_lossy().into_owned(), token: token.to_string_lossy().into_owned() };
        // SAFETY: one block by malloc, freed once, after the last use.
        unsafe { libc::free(fired.cast()) };
        Ok(Some(watch))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { self.library.store.xs_close(self.raw()) };
    }
}

impl Transaction<'_> {
    /// As [`Store::read`].
    pub fn read(&self, path: &str) -> Result<Option<String>, XenError> {
        self.store.read_in(self.id, path)
    }

    /// As [`Store::write`].
    pub fn write(&self, path: &str, value: &str) -> Result<(), XenError> {
        self.store.write_in(self.id, path, value)
    }

    /// Lets it happen; `false`: another change came between, try again.
    pub fn commit(mut self) -> Result<bool, XenError> {
        self.open = false;
        // SAFETY: the transaction is open, and is not used again.
        if unsafe { self.store.library.store.xs_transaction_end(self.store.raw(), self.id, false) } {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(false),
            _ => Err(XenError::failed("ending a transaction in xenstore", error)),
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            // SAFETY: the transaction is open, and is not used again.
            unsafe { self.store.library.store.xs_transaction_end(self.store.raw(), self.id, true) };
        }
    }
}
