//! Completion queues, each with a descriptor to wait on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as ffi;

use super::{Context, check, log_destroyed};

/// Completions taken from a queue in one call.
const BATCH: usize = 32;

/// What became of a work request. Of a failed one only `id`, `status`, `vendor_error` and
/// `queue_pair` mean anything.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct Completion {
    pub id: u64,
    /// `enum ibv_wc_status`; 0 is success.
    pub status: u32,
    pub vendor_error: u32,
    /// Bytes received.
    pub len_bytes: u32,
    pub queue_pair: u32,
}

/// A completion queue and its channel.
#[derive(Debug)]
pub(in crate::rdma) struct CompletionQueue {
    queue: NonNull<ffi::ibv_cq>,
    channel: NonNull<ffi::ibv_comp_channel>,
    _context: Arc<Context>,
}

// SAFETY: libibverbs allows the use of completion queues and channels from several threads.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue with room for at least `entries` completions.
    pub(in crate::rdma) fn new(context: &Arc<Context>, entries: u32) -> io::Result<Arc<Self>> {
        // SAFETY: an open context.
        let channel = unsafe { ffi::ibv_create_comp_channel(context.raw()) };
        let channel = NonNull::new(channel).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: an open context and a channel of it; no user context is given.
        let queue = unsafe {
            ffi::ibv_create_cq(context.raw(), entries as i32, std::ptr::null_mut(), channel.as_ptr(), 0)
        };
        let Some(queue) = NonNull::new(queue) else {
            let error = io::Error::last_os_error();
            // SAFETY: made above, and nothing uses it.
            log_destroyed("completion channel", unsafe { ffi::ibv_destroy_comp_channel(channel.as_ptr()) });
            return Err(error);
        };
        let this = CompletionQueue { queue, channel, _context: Arc::clone(context) };
        let flags = rustix::fs::fcntl_getfl(&this)?;
        rustix::fs::fcntl_setfl(&this, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Arc::new(this))
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_cq {
        self.queue.as_ptr()
    }

    /// Hands the completions that are there to `take`, at most [`BATCH`]; says how many.
    pub(in crate::rdma) fn poll(&self, mut take: impl FnMut(Completion)) -> io::Result<usize> {
        // Zeroed: a device fills in only the fields that mean something for the request.
        let mut found = [const { std::mem::MaybeUninit::<ffi::ibv_wc>::zeroed() }; BATCH];
        // SAFETY: a live queue, and room for as many completions as are asked for.
        let count =
            unsafe { ffi::ibv_poll_cq(self.raw(), BATCH as i32, found.as_mut_ptr().cast::<ffi::ibv_wc>()) };
        let count = usize::try_from(count)
            .map_err(|_| io::Error::other("the completion queue is broken (polling it failed)"))?;
        for completion in found.iter().take(count) {
            // SAFETY: all fields are numbers, zeroed above; the device has set some of them.
            let completion = unsafe { completion.assume_init_ref() };
            take(Completion {
                id: completion.wr_id,
                status: completion.status,
                vendor_error: completion.vendor_err,
                len_bytes: completion.byte_len,
                queue_pair: completion.qp_num,
            });
        }
        Ok(count)
    }

    /// Asks that the descriptor become readable at the next completion. Completions that came
    /// before are not announced: poll once more before waiting.
    pub(in crate::rdma) fn arm(&self) -> io::Result<()> {
        // SAFETY: a live queue.
        check(unsafe { ffi::ibv_req_notify_cq(self.raw(), 0) })
    }

    /// Takes an announcement off the descriptor; false when there is none.
    pub(in crate::rdma) fn take_announcement(&self) -> bool {
        let mut queue = std::ptr::null_mut();
        let mut user_context = std::ptr::null_mut();
        // SAFETY: a live channel and live variables; the descriptor does not block.
        let result =
            unsafe { ffi::ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut user_context) };
        if result != 0 {
            return false;
        }
        // SAFETY: the event just taken is of this channel's only queue, and acknowledged once;
        // destroying the queue would wait for that.
        unsafe { ffi::ibv_ack_cq_events(self.raw(), 1) };
        true
    }
}

/// Readable when a completion was announced.
impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel is.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once; queue pairs that use it held an `Arc` of it.
        log_destroyed("completion queue", unsafe { ffi::ibv_destroy_cq(self.raw()) });
        // SAFETY: as above; its only queue is gone.
        log_destroyed("completion channel", unsafe { ffi::ibv_destroy_comp_channel(self.channel.as_ptr()) });
    }
}
