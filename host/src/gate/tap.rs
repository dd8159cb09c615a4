//! Taps that the gate owns: they live as long as their descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Length of the virtio header before each frame: the kernel's default, without the count of
/// merged buffers.
pub const VNET_HEADER_BYTES: usize = 10;

/// A tap with virtio headers and all offloads, so that large segments stay large.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes a tap in the network namespace of this thread. `%d` in the name is replaced by a
    /// number that is free. Reads and writes do not block.
    pub fn create(name: &str) -> io::Result<Self> {
        Self::open(name, libc::IFF_VNET_HDR)
    }

    /// As [`create`](Self::create), one queue of a tap with several: the first call makes the tap, the
    /// others join it.
    pub fn create_queue(name: &str) -> io::Result<Self> {
        Self::open(name, libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE)
    }

    /// As [`create`](Self::create), without virtio headers and offloads: plain frames.
    pub fn create_plain(name: &str) -> io::Result<Self> {
        Self::open(name, 0)
    }

    fn open(name: &str, features: libc::c_int) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let name = set_interface(&fd, name, features)?;
        if features & libc::IFF_VNET_HDR != 0 {
            set_offloads(&fd)?;
        }
        Ok(Self { fd, name })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one frame, its virtio header first. `None`: there is none.
    pub fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.fd, &mut *into) {
                Ok(length) => return Ok(Some(length)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes one frame, its virtio header first. `false`: not now.
    pub fn write(&self, frame: &[u8]) -> io::Result<bool> {
        loop {
            match rustix::io::write(&self.fd, frame) {
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM) => {
                    return Ok(false);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether this process may make taps in the network namespace of this thread; if not, why and what to
/// do.
pub fn can_make_taps() -> Result<(), String> {
    let advice = |error: &io::Error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; holding a card's packets needs CAP_NET_ADMIN: run romulus as root"
        }
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => "; load the module of taps: modprobe tun",
        _ => "",
    };
    let tap = Tap::create("rgate%d");
    tap.map(drop).map_err(|error| format!("making a tap by /dev/net/tun: {error}{}", advice(&error)))
}

fn set_interface(fd: &OwnedFd, name: &str, features: libc::c_int) -> io::Result<String> {
    // SAFETY: a C struct of integers and arrays, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name} is too long for an interface"),
        ));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    // The flags fill sixteen bits.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | features) as libc::c_short;
    // SAFETY: the request reads and writes one `ifreq`, which lives through the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    String::from_utf8(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The offloads of a guest's card, UDP segmentation too where the kernel has it (Linux 6.2).
fn set_offloads(fd: &OwnedFd) -> io::Result<()> {
    let common = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let with_udp = common | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let mut outcome = Ok(());
    for offloads in [with_udp, common] {
        // SAFETY: the request takes its argument by value.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) } >= 0 {
            return Ok(());
        }
        outcome = Err(io::Error::last_os_error());
    }
    outcome
}
