//! Limits the files that QEMU can write, once its memory has its full size.
//! Out of scope: the value of the limit ([`crate::reconcile::vmm`]).
//!
//! # Why
//! A VMM's log is bounded by `RLIMIT_FSIZE`, see [`crate::host::process::spawn()`]. It applies to ftruncate(2) as well, with which QEMU
//! sets the size of the memory that it shares with this process. So QEMU is started with a limit as large as its memory. A process may
//! lower the limits of another with the same user and group (prlimit(2)), and this one is the first to know when it can: QEMU initializes
//! its devices after its memory and before the guest runs.

use std::io;

use rustix::net::SocketAddrUnix;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit};

/// The limit of a VMM.
pub(super) struct VmmLimit {
    /// The name to which the socket of the VMM was bound.
    pub(super) socket: String,
    /// The maximum size of its files in bytes.
    pub(super) bytes: u64,
}

impl VmmLimit {
    /// Sets the limit. Called while the VMM is connected.
    pub(super) fn apply(&self) -> io::Result<()> {
        let limit = Rlimit {
            current: Some(self.bytes),
            maximum: Some(self.bytes),
        };
        let vmm = self.vmm()?.ok_or(io::ErrorKind::NotConnected)?;
        rustix::process::prlimit(Some(vmm), Resource::Fsize, limit)?;
        Ok(())
    }

    /// The process at the other end of the connection, which `VhostUserDaemon` does not reveal: it is found by the name of its socket.
    fn vmm(&self) -> io::Result<Option<Pid>> {
        let name = SocketAddrUnix::new(self.socket.as_str())?;
        let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let Some(fd) = entry?.file_name().to_str().and_then(|fd| fd.parse().ok()) else {
                continue;
            };
            // A copy; an error: another thread has closed it.
            let flags = PidfdGetfdFlags::empty();
            let Ok(fd) = rustix::process::pidfd_getfd(&own, fd, flags) else {
                continue;
            };
            let is_ours = rustix::net::getsockname(&fd)
                .ok()
                .and_then(|address| SocketAddrUnix::try_from(address).ok())
                .is_some_and(|address| address == name);
            if is_ours && rustix::net::getpeername(&fd).is_ok() {
                return Ok(Some(rustix::net::sockopt::socket_peercred(&fd)?.pid));
            }
        }
        Ok(None)
    }
}
