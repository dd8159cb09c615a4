//! System calls on sockets and event descriptors.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt;

use super::{CongestionControl, StreamConfig};

/// Prepares a connected socket: small frames leave at once, a dead network is noticed.
pub(crate) fn configure(socket: &TcpStream, config: &StreamConfig) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(socket, 5)?;
    let user_timeout = config.silent_after.saturating_mul(2).max(Duration::from_secs(5));
    sockopt::set_tcp_user_timeout(socket, user_timeout.as_millis().min(u32::MAX.into()) as u32)?;
    if let Some(bytes) = config.socket_buffer_bytes {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    match &config.congestion_control {
        CongestionControl::System => {}
        CongestionControl::Bursts => send_bursts_at_once(socket),
        CongestionControl::Named(name) => sockopt::set_tcp_congestion(socket, name)?,
    }
    Ok(())
}

/// See [`CongestionControl::Bursts`].
pub(crate) fn send_bursts_at_once(socket: &TcpStream) {
    // A kernel without it keeps its own choice, which works as well, only slower.
    let _ = sockopt::set_tcp_congestion(socket, "cubic");
}

/// How long ago the kernel last received data on this socket, in milliseconds.
pub(crate) fn since_last_data(socket: &TcpStream) -> io::Result<Duration> {
    // SAFETY: all fields of `tcp_info` are integers, for which zero is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len_bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers name live variables, the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len_bytes,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::from_millis(info.tcpi_last_data_recv.into()))
}

/// Receives what is there; an error of kind `WouldBlock` if nothing is.
pub(crate) fn receive_now(socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    let (received, _) = rustix::net::recv(socket, into, rustix::net::RecvFlags::DONTWAIT)?;
    Ok(received)
}

/// Sends what fits; an error of kind `WouldBlock` if nothing does.
pub(crate) fn send_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    use rustix::net::SendFlags;
    Ok(rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// An event descriptor: readable from the first signal until it is cleared.
#[derive(Debug)]
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Signal(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn raise(&self) {
        // It fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn clear(&self) {
        // It fails only when there is nothing to clear.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The end of a timeout, however long it is.
pub(crate) fn deadline_after(timeout: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(LONGEST)
}

/// Waits until one of the descriptors is ready or the deadline has passed; without a deadline
/// as long as it takes. May return early with nothing ready.
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the descriptor was found ready or broken.
pub(crate) fn is_ready(fd: &PollFd<'_>) -> bool {
    !fd.revents().is_empty()
}

/// Watches for incoming bytes.
pub(crate) fn readable<F: AsFd>(fd: &F) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::IN)
}

/// Watches for room to send.
pub(crate) fn writable<F: AsFd>(fd: &F) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::OUT)
}

/// Watches for the peer's end only.
pub(crate) fn hung_up<F: AsFd>(fd: &F) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::RDHUP)
}
