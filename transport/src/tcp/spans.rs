//! Lists of memory spans for vectored system calls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Spans still to be sent or received, in order; filled anew for each frame, never reallocated
/// beyond the capacity it was made with.
#[derive(Debug)]
pub(super) struct Spans {
    list: Vec<libc::iovec>,
    first: usize,
}

// SAFETY: the list holds addresses only. Whoever pushes them vouches for their validity, on
// whichever thread the system call is made.
unsafe impl Send for Spans {}

impl Spans {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Spans { list: Vec::with_capacity(capacity), first: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == self.list.len()
    }

    /// Appends a span.
    ///
    /// # Safety
    /// The span must be mapped, and if [`receive`](Self::receive) is called also writable and
    /// free of Rust references, until the list is cleared or all of it is transferred.
    pub(super) unsafe fn push(&mut self, pointer: *mut u8, len_bytes: usize) {
        self.list.push(libc::iovec { iov_base: pointer.cast(), iov_len: len_bytes });
    }

    /// Replaces the first span pushed.
    ///
    /// # Safety
    /// As for [`push`](Self::push).
    pub(super) unsafe fn replace_first(&mut self, pointer: *mut u8, len_bytes: usize) {
        if let Some(span) = self.list.first_mut() {
            *span = libc::iovec { iov_base: pointer.cast(), iov_len: len_bytes };
        }
    }

    /// Length of all spans left, in bytes.
    pub(super) fn len_bytes(&self) -> usize {
        self.list[self.first..].iter().map(|span| span.iov_len).sum()
    }

    /// Appends the bytes of all spans left to `into`, which grows to hold them.
    pub(super) fn copy_to(&self, into: &mut Vec<u8>) {
        into.reserve(self.len_bytes());
        for span in &self.list[self.first..] {
            let at = into.len();
            // SAFETY: the span is mapped by the promise of `push`; `reserve` made room for all of
            // them behind the `at` bytes in use, and the copy fills what the length then covers.
            unsafe {
                let target = into.as_mut_ptr().add(at);
                std::ptr::copy_nonoverlapping(span.iov_base.cast::<u8>(), target, span.iov_len);
                into.set_len(at + span.iov_len);
            }
        }
    }

    /// Sends from the spans without waiting; takes what was sent off the list.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = self.message();
        // SAFETY: the message names a live list of spans, valid by the promise of `push`.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        self.take(sent)
    }

    /// Receives into the spans, waiting until all are full, the stream ends or a signal comes;
    /// takes what was received off the list. 0 means the end of the stream.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut message = self.message();
        // SAFETY: the message names a live list of spans, valid and writable by the promise of
        // `push`.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_WAITALL) };
        self.take(received)
    }

    fn message(&mut self) -> libc::msghdr {
        let rest = &mut self.list[self.first..];
        // SAFETY: all fields of `msghdr` are integers and pointers, for which zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = rest.as_mut_ptr();
        message.msg_iovlen = rest.len() as _;
        message
    }

    fn take(&mut self, result: isize) -> io::Result<usize> {
        let count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        let mut left = count;
        while let Some(span) = self.list.get_mut(self.first) {
            if left < span.iov_len {
                span.iov_base = span.iov_base.cast::<u8>().wrapping_add(left).cast();
                span.iov_len -= left;
                break;
            }
            left -= span.iov_len;
            self.first += 1;
        }
        Ok(count)
    }
}
