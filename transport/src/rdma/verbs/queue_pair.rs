//! Reliable connected queue pairs.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdma_sys as ffi;

use super::{CompletionQueue, MemoryRegion, ProtectionDomain, SendList, check};

/// Room of a queue pair.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct Capacity {
    /// Sends and writes posted at a time.
    pub sends: u32,
    /// Receives posted at a time.
    pub receives: u32,
    /// Local places of one send or write.
    pub sges: u32,
    /// Bytes that a send may carry itself, as a wish.
    pub inline_bytes: u32,
}

/// Where the peer's port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) struct Address {
    /// Local identifier; 0 on Ethernet.
    pub lid: u16,
    /// The peer's GID and the index of this side's, where packets carry a global header.
    pub global: Option<([u8; 16], u8)>,
}

/// How to reach the peer's queue pair.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct Path {
    pub queue_pair: u32,
    /// First packet number that the peer sends.
    pub receive_psn: u32,
    /// First packet number that this side sends.
    pub send_psn: u32,
    pub mtu_bytes: u32,
    pub port: u8,
    pub address: Address,
    pub service_level: u8,
    pub traffic_class: u8,
    /// An unacknowledged packet is sent again after 4.096 us * 2^this.
    pub timeout_exponent: u8,
    /// How often, at most 7.
    pub retries: u8,
    /// How often when the peer has no receive ready; 7 would be for ever.
    pub receiver_retries: u8,
}

/// `min_rnr_timer`: what this side asks a peer to wait when it has no receive ready, 0.64 ms.
const RECEIVER_TIMER: u8 = 12;
const HOP_LIMIT: u8 = 64;

/// A queue pair; destroyed with this value, after which nothing of the peer can come through it.
#[derive(Debug)]
pub(in crate::rdma) struct QueuePair {
    raw: NonNull<ffi::ibv_qp>,
    /// The peer may write through it.
    remote_write: AtomicBool,
    inline_bytes: u32,
    _domain: Arc<ProtectionDomain>,
    _sends: Arc<CompletionQueue>,
    _receives: Arc<CompletionQueue>,
}

// SAFETY: libibverbs allows the use of a queue pair from several threads at once.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    pub(in crate::rdma) fn new(
        domain: &Arc<ProtectionDomain>,
        sends: &Arc<CompletionQueue>,
        receives: &Arc<CompletionQueue>,
        capacity: Capacity,
    ) -> io::Result<Self> {
        // SAFETY: all fields are numbers and pointers, for which zero is valid.
        let mut attributes: ffi::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        attributes.send_cq = sends.raw();
        attributes.recv_cq = receives.raw();
        attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        attributes.cap.max_send_wr = capacity.sends.max(1);
        attributes.cap.max_recv_wr = capacity.receives.max(1);
        attributes.cap.max_send_sge = capacity.sges.max(1);
        attributes.cap.max_recv_sge = 1;
        attributes.cap.max_inline_data = capacity.inline_bytes;
        // SAFETY: a live domain and live queues of the same context.
        let raw = unsafe { ffi::ibv_create_qp(domain.raw(), &raw mut attributes) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(QueuePair {
            raw,
            remote_write: AtomicBool::new(false),
            inline_bytes: attributes.cap.max_inline_data,
            _domain: Arc::clone(domain),
            _sends: Arc::clone(sends),
            _receives: Arc::clone(receives),
        })
    }

    /// Its number, by which the peer names it.
    pub(in crate::rdma) fn number(&self) -> u32 {
        // SAFETY: a live queue pair.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// Bytes that a send may carry itself.
    pub(in crate::rdma) fn inline_bytes(&self) -> usize {
        self.inline_bytes as usize
    }

    /// Lets receives be posted; the peer may write only if `remote_write` says so.
    pub(in crate::rdma) fn initialize(&self, port: u8, remote_write: bool) -> io::Result<()> {
        use ffi::ibv_qp_attr_mask as mask;
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_INIT;
        attributes.port_num = port;
        if remote_write {
            self.remote_write.store(true, Ordering::Relaxed);
            attributes.qp_access_flags = ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        }
        let which = mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT;
        self.modify(&mut attributes, which | mask::IBV_QP_ACCESS_FLAGS)
    }

    /// Connects it: from here on it receives and sends.
    pub(in crate::rdma) fn connect(&self, path: &Path) -> io::Result<()> {
        self.ready_to_receive(path)?;
        use ffi::ibv_qp_attr_mask as mask;
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = path.send_psn;
        attributes.timeout = path.timeout_exponent;
        attributes.retry_cnt = path.retries;
        attributes.rnr_retry = path.receiver_retries;
        attributes.max_rd_atomic = 1;
        let which = mask::IBV_QP_STATE
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attributes, which)
    }

    fn ready_to_receive(&self, path: &Path) -> io::Result<()> {
        use ffi::ibv_qp_attr_mask as mask;
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = path.mtu_bytes.trailing_zeros().saturating_sub(7);
        attributes.dest_qp_num = path.queue_pair;
        attributes.rq_psn = path.receive_psn;
        attributes.max_dest_rd_atomic = 1;
        attributes.min_rnr_timer = RECEIVER_TIMER;
        attributes.ah_attr.port_num = path.port;
        attributes.ah_attr.dlid = path.address.lid;
        attributes.ah_attr.sl = path.service_level;
        if let Some((gid, index)) = path.address.global {
            attributes.ah_attr.is_global = 1;
            attributes.ah_attr.grh.dgid.raw = gid;
            attributes.ah_attr.grh.sgid_index = index;
            attributes.ah_attr.grh.hop_limit = HOP_LIMIT;
            attributes.ah_attr.grh.traffic_class = path.traffic_class;
        }
        let which = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, which)
    }

    fn modify(&self, attributes: &mut ffi::ibv_qp_attr, mask: ffi::ibv_qp_attr_mask) -> io::Result<()> {
        // SAFETY: a live queue pair and live attributes.
        check(unsafe { ffi::ibv_modify_qp(self.raw.as_ptr(), attributes, mask.0 as i32) })
    }

    /// Posts a receive into `len_bytes` bytes of a region at `offset`.
    ///
    /// # Panics
    /// If the range exceeds the region.
    pub(in crate::rdma) fn post_receive(
        &self,
        region: &MemoryRegion,
        offset: usize,
        len_bytes: usize,
        id: u64,
    ) -> io::Result<()> {
        let mut place = ffi::ibv_sge {
            addr: region.memory().pointer(offset, len_bytes) as u64,
            length: len_bytes as u32,
            lkey: region.local_key(),
        };
        // SAFETY: all fields are numbers and pointers, for which zero is valid.
        let mut request: ffi::ibv_recv_wr = unsafe { std::mem::zeroed() };
        request.wr_id = id;
        request.sg_list = &raw mut place;
        request.num_sge = 1;
        let mut failed = std::ptr::null_mut();
        // SAFETY: a live queue pair and a request that is copied before the call returns.
        check(unsafe { ffi::ibv_post_recv(self.raw.as_ptr(), &raw mut request, &raw mut failed) })
    }

    /// Sends `len_bytes` bytes of a region at `offset` into a receive of the peer, reporting the
    /// completion. The request carries short bytes itself.
    ///
    /// # Panics
    /// If the range exceeds the region.
    pub(in crate::rdma) fn send(
        &self,
        region: &MemoryRegion,
        offset: usize,
        len_bytes: usize,
        id: u64,
    ) -> io::Result<()> {
        use ffi::ibv_send_flags as flags;
        let mut place = ffi::ibv_sge {
            addr: region.memory().pointer(offset, len_bytes) as u64,
            length: len_bytes as u32,
            lkey: region.local_key(),
        };
        // SAFETY: all fields are numbers, pointers and unions of them, for which zero is valid.
        let mut request: ffi::ibv_send_wr = unsafe { std::mem::zeroed() };
        request.wr_id = id;
        request.opcode = ffi::ibv_wr_opcode::IBV_WR_SEND;
        request.send_flags = (flags::IBV_SEND_SIGNALED | flags::IBV_SEND_SOLICITED).0;
        if len_bytes > 0 {
            // To some devices a place of length 0 means 2^31 bytes.
            request.sg_list = &raw mut place;
            request.num_sge = 1;
            if len_bytes <= self.inline_bytes() {
                request.send_flags |= flags::IBV_SEND_INLINE.0;
            }
        }
        let mut failed = std::ptr::null_mut();
        // SAFETY: a live queue pair and a request that is copied before the call returns, with
        // its inline bytes: the region holds its memory.
        check(unsafe { ffi::ibv_post_send(self.raw.as_ptr(), &raw mut request, &raw mut failed) })
    }

    /// Posts all of a list with one doorbell, and empties it.
    pub(in crate::rdma) fn post(&self, list: &mut SendList) -> io::Result<()> {
        let Some(first) = list.link() else { return Ok(()) };
        let mut failed = std::ptr::null_mut();
        // SAFETY: a live queue pair and a linked list that `list` owns; requests, places and
        // inline bytes are copied before the call returns.
        let result = check(unsafe { ffi::ibv_post_send(self.raw.as_ptr(), first, &raw mut failed) });
        list.clear();
        result
    }
}

impl QueuePair {
    /// Stops it: in the error state it takes nothing from the peer any more.
    fn stop(&self) -> io::Result<()> {
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
        self.modify(&mut attributes, ffi::ibv_qp_attr_mask::IBV_QP_STATE)
    }
}

impl Drop for QueuePair {
    /// Who drops it relies on that the peer writes nothing any more (I6): where the kernel neither
    /// destroys nor stops a queue pair through which the peer may write, the process ends, and with it
    /// all that it has open.
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let Err(error) = check(unsafe { ffi::ibv_destroy_qp(self.raw.as_ptr()) }) else { return };
        tracing::error!(%error, "a queue pair could not be destroyed: it is stopped");
        let Err(error) = self.stop() else { return };
        tracing::error!(%error, "a queue pair could be neither destroyed nor stopped");
        if *self.remote_write.get_mut() {
            std::process::abort();
        }
    }
}

fn zeroed_attributes() -> ffi::ibv_qp_attr {
    // SAFETY: all fields are numbers, for which zero is valid.
    unsafe { std::mem::zeroed() }
}
