//! An opened device: its limits, its ports and its asynchronous events.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as ffi;

use super::{check, log_destroyed};

/// Why a device was not opened.
#[derive(Debug)]
pub(in crate::rdma) enum OpenError {
    /// There is no list of devices, or none of this name in it.
    NotFound,
    /// The system refused.
    Refused(io::Error),
}

/// What bounds work on a device.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct DeviceLimits {
    /// Work requests of a queue.
    pub max_queue_depth: u32,
    /// Entries of a completion queue.
    pub max_completions: u32,
    /// Local places of one work request.
    pub max_sges: usize,
    /// Bytes of one memory region.
    pub max_region_bytes: u64,
    /// Number of ports.
    pub ports: u8,
}

/// What a port's link is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum LinkLayer {
    InfiniBand,
    Ethernet,
}

/// A port as it is now.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct PortAttributes {
    /// `enum ibv_port_state`; 4 is active.
    pub state: u32,
    pub link_layer: LinkLayer,
    pub active_mtu_bytes: u32,
    pub max_mtu_bytes: u32,
    pub lid: u16,
    /// Longest message in bytes.
    pub max_message_bytes: u32,
    /// The subnet asks for a global route header on every packet.
    pub grh_required: bool,
}

/// Something that happened to the device, a port or a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) struct AsyncEvent {
    /// `enum ibv_event_type`.
    pub kind: u32,
    /// For events of a port: its number.
    pub port: Option<u32>,
    /// For events of a queue pair: its number.
    pub queue_pair: Option<u32>,
}

/// An opened device.
#[derive(Debug)]
pub(in crate::rdma) struct Context(NonNull<ffi::ibv_context>);

// SAFETY: libibverbs allows the use of a context from several threads at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The bit of `ibv_port_attr::flags` that asks for a global route header.
const FLAG_GRH_REQUIRED: u8 = 1;
const LINK_LAYER_ETHERNET: u8 = 2;

/// To be called before the first use of the library: where the kernel does not keep registered
/// pages in place over a fork, the library keeps them out of the child.
pub(in crate::rdma) fn prepare() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a call without arguments; nothing is registered yet.
        let result = unsafe { ffi::ibv_fork_init() };
        if let Err(error) = check(result) {
            tracing::debug!(%error, "registered memory may not survive a fork of this process");
        }
    });
}

impl Context {
    /// Opens the device of this name.
    pub(in crate::rdma) fn open(name: &str) -> Result<Arc<Self>, OpenError> {
        prepare();
        let mut count = 0;
        // SAFETY: a live variable for the number of devices.
        let list = unsafe { ffi::ibv_get_device_list(&raw mut count) };
        let Some(list) = NonNull::new(list) else { return Err(OpenError::NotFound) };
        let mut opened = Err(OpenError::NotFound);
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has `count` devices, valid until the list is freed below; a
            // device's name is a string that lives as long.
            let (device, device_name) = unsafe {
                let device = *list.as_ptr().add(index);
                (device, CStr::from_ptr(ffi::ibv_get_device_name(device)))
            };
            if device_name.to_bytes() == name.as_bytes() {
                // SAFETY: a device of the list; an open context keeps its own reference to it.
                let context = unsafe { ffi::ibv_open_device(device) };
                opened = NonNull::new(context).ok_or_else(|| OpenError::Refused(io::Error::last_os_error()));
                break;
            }
        }
        // SAFETY: the list from above, freed once.
        unsafe { ffi::ibv_free_device_list(list.as_ptr()) };
        let context = Context(opened?);
        let flags = rustix::fs::fcntl_getfl(&context).map_err(|error| OpenError::Refused(error.into()))?;
        rustix::fs::fcntl_setfl(&context, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|error| OpenError::Refused(error.into()))?;
        Ok(Arc::new(context))
    }

    pub(super) fn raw(&self) -> *mut ffi::ibv_context {
        self.0.as_ptr()
    }

    /// The device's limits.
    pub(in crate::rdma) fn limits(&self) -> io::Result<DeviceLimits> {
        // SAFETY: all fields are numbers, for which zero is valid.
        let mut attributes: ffi::ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: an open context and a live variable.
        check(unsafe { ffi::ibv_query_device(self.raw(), &raw mut attributes) })?;
        Ok(DeviceLimits {
            max_queue_depth: attributes.max_qp_wr.max(1) as u32,
            max_completions: attributes.max_cqe.max(1) as u32,
            max_sges: attributes.max_sge.max(1) as usize,
            max_region_bytes: attributes.max_mr_size,
            ports: attributes.phys_port_cnt,
        })
    }

    /// A port as it is now.
    pub(in crate::rdma) fn port(&self, number: u8) -> io::Result<PortAttributes> {
        // SAFETY: all fields are numbers, for which zero is valid.
        let mut attributes: ffi::ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: an open context and a live variable.
        check(unsafe { ffi::___ibv_query_port(self.raw(), number, &raw mut attributes) })?;
        Ok(PortAttributes {
            state: attributes.state,
            link_layer: match attributes.link_layer {
                LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
                _ => LinkLayer::InfiniBand,
            },
            active_mtu_bytes: mtu_bytes(attributes.active_mtu),
            max_mtu_bytes: mtu_bytes(attributes.max_mtu),
            lid: attributes.lid,
            max_message_bytes: attributes.max_msg_sz,
            grh_required: attributes.flags & FLAG_GRH_REQUIRED != 0,
        })
    }

    /// The next asynchronous event, if there is one. Waits for none.
    pub(in crate::rdma) fn take_async_event(&self) -> Option<AsyncEvent> {
        let mut event = std::mem::MaybeUninit::<ffi::ibv_async_event>::zeroed();
        // SAFETY: an open context and room for an event; the descriptor does not block.
        if unsafe { ffi::ibv_get_async_event(self.raw(), event.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the event was filled in. Its kind is read as a number: the kernel may know
        // kinds that the enumeration of the bindings lacks.
        let kind = unsafe { (&raw const (*event.as_ptr()).event_type).cast::<u32>().read() };
        let (mut port, mut queue_pair) = (None, None);
        match kind {
            // SAFETY: events of these kinds name a queue pair; destroying it waits until this
            // event is acknowledged.
            1..=7 | 16 => queue_pair = Some(unsafe { (*(*event.as_ptr()).element.qp).qp_num }),
            // SAFETY: events of these kinds name a port.
            9..=13 | 17 | 18 => port = Some(unsafe { (*event.as_ptr()).element.port_num } as u32),
            _ => {}
        }
        // SAFETY: the event taken above, acknowledged once.
        unsafe { ffi::ibv_ack_async_event(event.as_mut_ptr()) };
        Some(AsyncEvent { kind, port, queue_pair })
    }
}

/// Readable when there is an asynchronous event.
impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context is.
        unsafe { BorrowedFd::borrow_raw((*self.raw()).async_fd) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed once; everything made from it is gone, since it held
        // an `Arc` of this context.
        log_destroyed("device context", unsafe { ffi::ibv_close_device(self.raw()) });
    }
}

/// `enum ibv_mtu` in bytes.
fn mtu_bytes(mtu: u32) -> u32 {
    match mtu {
        1..=5 => 128 << mtu,
        _ => 0,
    }
}
