//! A network namespace without a name.
//!
//! It lives as long as a descriptor of it or a process in it: when the demonstration ends, however
//! it ends, the kernel removes the namespace and every interface in it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::exit::{Code, Failure};

/// A network namespace of our own.
#[derive(Debug)]
pub struct NetNs {
    descriptor: OwnedFd,
}

impl NetNs {
    /// A new one, empty but for a loopback interface that is down.
    pub fn create() -> Result<Self, Failure> {
        let made = std::thread::scope(|scope| scope.spawn(unshared).join());
        let failed = |e: &dyn std::fmt::Display| {
            Failure::new(
                Code::Machine,
                format!(
                    "making a network namespace: {e}; root with CAP_SYS_ADMIN and a kernel with CONFIG_NET_NS are \
                     needed"
                ),
            )
        };
        match made {
            Ok(Ok(descriptor)) => Ok(Self { descriptor }),
            Ok(Err(e)) => Err(failed(&e)),
            Err(_) => Err(failed(&"its thread ended")),
        }
    }

    /// Runs `work` on a thread that is in the namespace. Sockets made and processes started there
    /// stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
        let outcome = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            inside.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread into the namespace, for the rest of its life.
    fn enter(&self) -> Result<(), Failure> {
        self.join().map_err(|e| Failure::new(Code::Machine, format!("entering a network namespace: {e}")))
    }

    /// The same by one system call and nothing else, as between fork and exec.
    pub(super) fn join(&self) -> std::io::Result<()> {
        Ok(move_into_link_name_space(self.descriptor.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// The same namespace.
    pub(super) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { descriptor: self.descriptor.try_clone()? })
    }

    /// A path that names the namespace while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.descriptor.as_raw_fd()))
    }
}

/// Gives the calling thread a namespace of its own, and the descriptor of it.
fn unshared() -> std::io::Result<OwnedFd> {
    // SAFETY: NEWNET changes only the network namespace of the calling thread; memory and the table of
    // descriptors, which other threads rely on, stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_outside_see_nothing_of_it() {
        if !rustix::process::geteuid().is_root() {
            assert_eq!(NetNs::create().unwrap_err().code as u8, Code::Machine as u8);
            return;
        }
        let inside = NetNs::create().unwrap();
        let namespace = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let interfaces = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let (before, within) = (namespace(), inside.run(namespace).unwrap());
        assert_ne!(within, before);
        let seen = inside.run(interfaces).unwrap();
        assert_eq!(seen.lines().skip(2).filter(|line| !line.trim_start().starts_with("lo:")).count(), 0);
        assert_eq!(namespace(), before);
    }
}
