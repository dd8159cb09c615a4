//! A list of one-sided writes, posted together.

use rdma_sys as ffi;

/// Requests to post with one doorbell. Filled and posted again and again without allocating.
pub(in crate::rdma) struct SendList {
    requests: Box<[ffi::ibv_send_wr]>,
    /// Places of all requests, `sges_each` for each.
    places: Box<[ffi::ibv_sge]>,
    sges_each: usize,
    len: usize,
}

// SAFETY: the pointers inside name parts of the list itself, and are followed only by
// `QueuePair::post`.
unsafe impl Send for SendList {}

impl SendList {
    /// A list of at most `requests` requests with at most `sges_each` local places each.
    pub(in crate::rdma) fn new(requests: usize, sges_each: usize) -> Self {
        // SAFETY: all fields are numbers, pointers and unions of them, for which zero is valid.
        let empty = || unsafe { std::mem::zeroed::<ffi::ibv_send_wr>() };
        let place = ffi::ibv_sge { addr: 0, length: 0, lkey: 0 };
        SendList {
            requests: (0..requests).map(|_| empty()).collect(),
            places: vec![place; requests * sges_each].into(),
            sges_each,
            len: 0,
        }
    }

    pub(in crate::rdma) fn len(&self) -> usize {
        self.len
    }

    pub(in crate::rdma) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(in crate::rdma) fn is_full(&self) -> bool {
        self.len == self.requests.len()
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a one-sided write without local places yet.
    ///
    /// # Panics
    /// If the list is full.
    pub(in crate::rdma) fn push_write(&mut self, id: u64, remote_address: u64, remote_key: u32) {
        let request = &mut self.requests[self.len];
        request.wr_id = id;
        request.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        request.send_flags = 0;
        request.num_sge = 0;
        request.wr.rdma = ffi::rdma_t { remote_addr: remote_address, rkey: remote_key };
        self.len += 1;
    }

    /// Local places of the last request that are left.
    pub(in crate::rdma) fn sges_left(&self) -> usize {
        match self.len.checked_sub(1) {
            Some(last) => self.sges_each - self.requests[last].num_sge as usize,
            None => 0,
        }
    }

    /// Gives the last request a further local place. A place that is not registered under its
    /// key makes the request fail; it is no matter of memory safety.
    ///
    /// # Panics
    /// If the list is empty or the last request has no place left.
    pub(in crate::rdma) fn add_place(&mut self, address: u64, len_bytes: u32, local_key: u32) {
        assert!(self.sges_left() > 0, "a request has {} places", self.sges_each);
        let last = self.len - 1;
        let request = &mut self.requests[last];
        self.places[last * self.sges_each + request.num_sge as usize] =
            ffi::ibv_sge { addr: address, length: len_bytes, lkey: local_key };
        request.num_sge += 1;
    }

    /// Lengthens the last place of the last request.
    pub(in crate::rdma) fn extend_place(&mut self, len_bytes: u32) {
        let last = self.len - 1;
        let place = last * self.sges_each + self.requests[last].num_sge as usize - 1;
        self.places[place].length += len_bytes;
    }

    /// Makes the last request report its completion, and with it that of all before it.
    pub(in crate::rdma) fn signal_last(&mut self) {
        if let Some(last) = self.len.checked_sub(1) {
            self.requests[last].send_flags |= ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
    }

    /// Chains the requests; the first one, if there is any.
    pub(super) fn link(&mut self) -> Option<*mut ffi::ibv_send_wr> {
        let first = self.requests.as_mut_ptr();
        let places = self.places.as_mut_ptr();
        for index in 0..self.len {
            let next =
                if index + 1 == self.len { std::ptr::null_mut() } else { first.wrapping_add(index + 1) };
            // SAFETY: `index` is below the number of requests, and nothing else borrows them.
            let request = unsafe { &mut *first.add(index) };
            request.sg_list = places.wrapping_add(index * self.sges_each);
            request.next = next;
        }
        (self.len > 0).then_some(first)
    }
}
