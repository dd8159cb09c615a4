//! Xenstore.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

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
// SAFETY: as for `Send`; a transaction is a number.
unsafe impl Sync for Store {}

/// A group of reads and writes that happens as one, or not at all.
pub struct Transaction<'a> {
    store: &'a Store,
    id: raw::xs_transaction_t,
    open: bool,
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

    /// Tells xenstored that a domain runs on after a suspension, which it may have taken for an end.
    pub fn resumed(&self, domid: u32) -> Result<(), XenError> {
        // SAFETY: an open handle and a number.
        if unsafe { self.library.store.xs_resume_domain(self.raw(), domid) } {
            return Ok(());
        }
        Err(last_error(format!("telling xenstored that domain {domid} runs on")))
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
