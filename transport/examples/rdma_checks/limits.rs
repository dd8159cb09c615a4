//! Memory that cannot be registered, and much that can.

use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use romulus_transport::rdma::RdmaFabric;
use romulus_transport::{Arena, Fabric, Memory, TransportError};

use super::pair::{PATIENCE, Pair, Place, expect_parts, patient};

/// A mapping of its own, unmapped at the end.
struct Mapping(NonNull<u8>, usize);

// SAFETY: an address; nobody reads or writes through this value.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, unmapped once.
        unsafe { libc::munmap(self.0.as_ptr().cast(), self.1) };
    }
}

fn map(len_bytes: usize, protection: i32) -> Memory {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, protection, flags, -1, 0) };
    assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let base = NonNull::new(address.cast()).expect("an address");
    // SAFETY: the owner keeps it mapped; nobody reads or writes it through a reference.
    unsafe { Memory::new(base, len_bytes, Arc::new(Mapping(base, len_bytes))) }
}

/// What the program started by `too_low_a_memory_limit_is_named` does.
pub fn register_and_report(place: &Place, bytes: usize) {
    let pair = Pair::of(place.socket(), patient(), patient(), |_| {});
    match pair.and_then(|pair| pair.initiator.register(Memory::anonymous(bytes))) {
        Ok(_) => println!("registered"),
        Err(TransportError::Registration(why)) => println!("refused: {why}"),
        Err(error) => println!("failed: {error}"),
    }
}

pub fn too_low_a_memory_limit_is_named(place: &Place) {
    let program = std::env::current_exe().expect("this program");
    let report = |limit: &str, bytes: &str| {
        // Root may lock what it likes, so the capability goes as well.
        let output = Command::new("setpriv")
            .args(["--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock", "prlimit", limit])
            .arg(&program)
            .args(["--address", &place.address.to_string(), "--register-bytes", bytes])
            .output()
            .expect("setpriv and prlimit of util-linux");
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    };
    let enough = report("--memlock=67108864", "1048576");
    assert_eq!(enough, "registered");
    let too_much = report("--memlock=8388608", "33554432");
    expect_parts(
        &too_much,
        &[
            "refused:",
            "33554432 bytes",
            "8388608 bytes (RLIMIT_MEMLOCK)",
            "ulimit -l unlimited",
            "LimitMEMLOCK",
        ],
    );
    let not_even_a_connection = report("--memlock=65536", "4096");
    expect_parts(&not_even_a_connection, &["refused:", "65536 bytes (RLIMIT_MEMLOCK)"]);
}

/// A mapping of a file that has only half its length: as with foreign mappings, the kernel
/// cannot reach the pages.
fn map_beyond_a_file(len_bytes: usize) -> Memory {
    // SAFETY: a name with its end, and flags.
    let file = unsafe { libc::memfd_create(c"half".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(file >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    let file = std::fs::File::from(unsafe { std::os::fd::OwnedFd::from_raw_fd(file) });
    file.set_len(len_bytes as u64 / 2).expect("half the length");
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), len_bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let base = NonNull::new(address.cast()).expect("an address");
    // SAFETY: the owner keeps it mapped; nobody reads or writes it through a reference.
    unsafe { Memory::new(base, len_bytes, Arc::new(Mapping(base, len_bytes))) }
}

pub fn memory_that_cannot_be_pinned_is_named(place: &Place) {
    let pair = Pair::new(place);
    let refused = pair.initiator.register(map_beyond_a_file(1 << 20));
    let Err(TransportError::Registration(why)) = refused else { panic!("{refused:?}") };
    expect_parts(&why, &["1048576 bytes", "cannot be pinned", "staged capture"]);
    // Memory that may only be read can be sent, but not exposed.
    pair.initiator.register(map(1 << 20, libc::PROT_READ)).expect("read-only memory to send from");
    let fabric = RdmaFabric::new(patient());
    let mut listener = fabric.listen(place.socket()).expect("listening");
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).expect("connecting");
    let mut responder = listener.accept(PATIENCE).expect("accepting").expect("a channel");
    let arena = Arena::new([map(1 << 20, libc::PROT_READ)]);
    let refused = responder.answer(&initiator.offer().expect("an offer"), arena);
    assert!(matches!(refused, Err(TransportError::Registration(_))), "{refused:?}");
    // A refusal leaves the rest in order.
    pair.works();
}

pub fn much_memory_is_registered_in_slices(place: &Place) {
    let pair = Pair::new(place);
    let memory = map(600 << 20, libc::PROT_READ | libc::PROT_WRITE);
    memory.write((300 << 20) - 1, &[1, 2]);
    let start = Instant::now();
    let region = pair.initiator.register(memory).expect("600 MiB");
    println!("    registering 600 MiB that were never touched took {:?}", start.elapsed());
    // A write across the border of slices, wherever that lies: the middle of 600 MiB is one
    // where there are two, and none hurts where there is not.
    for (local_offset, remote_offset) in
        [((256 << 20) - 100, 0), ((300 << 20) - 100, 1000), ((512 << 20) - 100, 2000)]
    {
        let write = romulus_transport::Write { region, local_offset, remote_offset, len_bytes: 200 };
        pair.initiator.write(&[write]).expect("writing");
    }
    pair.initiator.mark(1).expect("marking");
    super::pair::expect_event(&*pair.responder, &mut Default::default());
    let bytes = pair.target_bytes();
    assert!(bytes[..200].iter().all(|byte| *byte == 0) && bytes[200] == 7);
    assert_eq!(bytes[1000 + 98..1000 + 102], [0, 1, 2, 0]);
    assert!(bytes[2000..2200].iter().all(|byte| *byte == 0) && bytes[2200] == 7);
}
