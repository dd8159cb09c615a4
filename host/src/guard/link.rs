//! The socket between a protector and its guard: one greeting with descriptors, then single
//! bytes.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// The guard is ready.
pub const READY: u8 = b'R';
/// The protector has let go of the guest: nothing left to guard.
pub const DETACHED: u8 = b'D';

const MAX_GREETING_BYTES: usize = 64 * 1024;
const MAX_DESCRIPTORS: usize = 3;

/// Sends the greeting: length, bytes, descriptors.
pub fn send_greeting(
    link: &mut UnixStream,
    greeting: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if greeting.len() > MAX_GREETING_BYTES || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other("the guard's settings are too long"));
    }
    let len = (greeting.len() as u32).to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    let sent = rustix::net::sendmsg(&*link, &[IoSlice::new(&len)], &mut control, SendFlags::NOSIGNAL)?;
    link.write_all(&len[sent..])?;
    link.write_all(greeting)
}

/// Receives the greeting.
pub fn receive_greeting(link: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut len = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        &*link,
        &mut [IoSliceMut::new(&mut len)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    link.read_exact(&mut len[received.bytes..])?;
    let len_bytes = u32::from_le_bytes(len) as usize;
    if len_bytes > MAX_GREETING_BYTES {
        return Err(io::Error::other("the guard's settings are too long"));
    }
    let mut greeting = vec![0; len_bytes];
    link.read_exact(&mut greeting)?;
    Ok((greeting, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_greeting_carries_bytes_and_descriptors() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        send_greeting(&mut here, b"hello", &[reader.as_fd()]).unwrap();
        drop(reader);
        let (greeting, descriptors) = receive_greeting(&mut there).unwrap();
        assert_eq!(greeting, b"hello");
        let [received] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        writer.write_all(b"x").unwrap();
        let mut byte = [0];
        std::fs::File::from(received).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn a_long_or_broken_greeting_is_an_error() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive_greeting(&mut there).is_err());
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop(here);
        assert!(receive_greeting(&mut there).is_err());
    }
}
