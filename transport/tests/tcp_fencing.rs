//! I6, fencing: `close` does not return while a thread is still placing bytes in the arena.
//!
//! The arena's page is registered with userfaultfd, so that a thread that writes to it stays
//! inside its system call until the test supplies the page.

use std::io::{Error, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Arena, Endpoint, Event, Fabric, Memory, MessageBuffer, Write};

const PAGE_BYTES: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(120);

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const MODE_MISSING: u64 = 1;

/// An anonymous page, unmapped at the end.
struct Page(NonNull<u8>);

// SAFETY: an address; nobody reads or writes through this value.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `page`, unmapped once.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
    }
}

fn page() -> Memory {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, flags, -1, 0) };
    assert_ne!(address, libc::MAP_FAILED, "{}", Error::last_os_error());
    let base = NonNull::new(address.cast()).unwrap();
    // SAFETY: the owner keeps the page mapped, readable and writable; no reference into it exists.
    unsafe { Memory::new(base, PAGE_BYTES, Arc::new(Page(base))) }
}

/// Catches the first access to a page; `None` where the kernel does not let this user.
struct Catcher {
    fd: OwnedFd,
    address: u64,
}

impl Catcher {
    fn new(memory: &Memory) -> Option<Self> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        if fd < 0 {
            let error = Error::last_os_error();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            return None;
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let catcher = Catcher { fd, address: memory.pointer(0, PAGE_BYTES) as u64 };
        catcher.control(UFFDIO_API, &mut [0xaa, 0, 0]);
        catcher.control(UFFDIO_REGISTER, &mut [catcher.address, PAGE_BYTES as u64, MODE_MISSING, 0]);
        Some(catcher)
    }

    fn control<const WORDS: usize>(&self, request: libc::c_ulong, argument: &mut [u64; WORDS]) {
        // SAFETY: each request is called with the words of its own structure.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument.as_mut_ptr()) };
        assert_eq!(result, 0, "request {request:#x}: {}", Error::last_os_error());
    }

    /// Waits until somebody is caught.
    fn wait(&self) {
        let mut event = [0u8; 32];
        assert_eq!(rustix::io::read(&self.fd, &mut event).unwrap(), event.len());
        assert_eq!(event[0], 0x12, "a page fault");
    }

    /// Supplies the page and lets go.
    fn release(&self) {
        self.control(UFFDIO_ZEROPAGE, &mut [self.address, PAGE_BYTES as u64, 0, 0]);
    }
}

#[test]
fn i6_close_waits_for_a_thread_that_is_placing_bytes() {
    let target = page();
    let Some(catcher) = Catcher::new(&target) else {
        eprintln!("not tested: userfaultfd is not permitted here");
        return;
    };
    let fabric = TcpFabric::new(TcpConfig { silent_after: Duration::from_secs(60), ..TcpConfig::default() });
    let mut listener = fabric.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).unwrap();
    let mut responder = listener.accept(PATIENCE).unwrap().unwrap();
    let arena = Arena::new([target.clone()]);
    let answer = responder.answer(&initiator.offer().unwrap(), arena).unwrap();
    let initiator = initiator.establish(Some(&answer), PATIENCE).unwrap();
    let responder: Arc<dyn Endpoint> = responder.establish(None, PATIENCE).unwrap();

    let region = initiator.register(Memory::anonymous(PAGE_BYTES)).unwrap();
    let write = Write { region, local_offset: 0, remote_offset: 0, len_bytes: PAGE_BYTES as u64 };
    initiator.write(&[write]).unwrap();
    catcher.wait();

    let has_returned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| {
            responder.close();
            has_returned.store(true, Ordering::SeqCst);
        });
        // By then `close` has shut the sockets down, and has only the joining left to do.
        let event = initiator.next_event(&mut MessageBuffer::default(), PATIENCE).unwrap();
        assert!(matches!(event, Event::Closed(_)), "{event:?}");
        // A close that does not wait is given every chance to show it.
        let too_early = (0..20_000).any(|_| {
            std::thread::yield_now();
            has_returned.load(Ordering::SeqCst)
        });
        catcher.release();
        closing.join().unwrap();
        assert!(!too_early, "close returned while a thread was placing bytes");
    });
}
