//! The back end of QEMU's vsock device: a process beside each QEMU, which forwards connections of the host to the guest.
//! Out of scope: starting the process and confining it ([`crate::reconcile::vmm`]); the programs in the guest that listen.
//!
//! Firecracker and Cloud Hypervisor have a vsock device with a Unix socket on the host. QEMU has only the device: the queues of the guest are
//! handled by another process, with the vhost-user protocol. This module is that process, `sliced` with the argument [`ARGUMENT`]. It serves
//! the same Unix socket as the other VMMs. The kernel's `vhost-vsock`, with addresses that are shared by all VMs of a host, is not needed.
//!
//! # Lifetime
//! The process is started before QEMU and ends when QEMU closes the connection, also if QEMU is killed. If QEMU does not connect within
//! [`CONNECT_DEADLINE`], it ends as well. QEMU does not connect again after the process was killed: the vsock device of QEMU has no
//! reconnect, so it works again after the next start of the VM.
//!
//! | file | content |
//! |---|---|
//! | `packet` | pure: the header of a packet |
//! | `connection` | one connection: credit, buffer, half-close |
//! | `mux` | all connections of a guest: the protocol of clients, ports, deadlines |
//! | `device` | the queues and the memory of the guest |
//! | `vmm_limit` | limits the files of QEMU |

mod connection;
mod device;
mod mux;
mod packet;
mod vmm_limit;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use device::{Device, SharedDevice};
use mux::Mux;
use vmm_limit::VmmLimit;

pub use mux::MAX_CONNECTIONS;

/// The first argument of `sliced` for this process, followed by the names of the socket of clients and the socket of QEMU, which it creates
/// in its working directory, and by the maximum size of QEMU's files in bytes.
pub const ARGUMENT: &str = "__vsock";

/// Deadline for QEMU to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// If this process is started as the back end, serves until QEMU closes the connection. `None`: it is not.
pub fn main() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return None;
    }
    let arguments: Vec<String> = arguments.collect();
    let [clients, vmm, bytes] = arguments.as_slice() else {
        eprintln!("vsock: expected two names of sockets and a number of bytes");
        return Some(ExitCode::FAILURE);
    };
    let Ok(bytes) = bytes.parse() else {
        eprintln!("vsock: found {bytes:?}, expected a number of bytes");
        return Some(ExitCode::FAILURE);
    };
    // A thread that panics would leave a device that does not respond.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("vsock: {panic}");
        std::process::abort();
    }));
    Some(match serve(clients, vmm, bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock: {error}");
            ExitCode::FAILURE
        }
    })
}

fn serve(clients: &str, vmm: &str, file_bytes: u64) -> io::Result<()> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
    let mux = Mux::new(UnixListener::bind(clients)?)?;
    let draft = format!("{vmm}.new");
    let limit = VmmLimit {
        socket: draft.clone(),
        bytes: file_bytes,
    };
    let device = Device::new(mux, memory.clone(), limit)?;
    let device: SharedDevice = Arc::new(Mutex::new(device));
    let other = |error: vhost_user_backend::Error| io::Error::other(error.to_string());
    let daemon = VhostUserDaemon::new("vsock".to_owned(), Arc::clone(&device), memory);
    // Its threads end with the process; dropping it, on an error as well, would wait for them.
    let mut daemon = ManuallyDrop::new(daemon.map_err(other)?);
    for handler in daemon.get_epoll_handlers() {
        let device = device.lock().map_err(|_| io::ErrorKind::Other)?;
        for (fd, id) in device.events() {
            handler.register_listener(fd.as_fd().as_raw_fd(), EventSet::IN, id)?;
        }
    }
    let listener = listen(&draft, vmm)?;
    await_vmm(&listener)?;
    daemon.start(&mut Listener::from(listener)).map_err(other)?;
    match daemon.wait() {
        // QEMU has ended, at any point of the protocol.
        Ok(()) | Err(vhost_user_backend::Error::HandleRequest(_)) => Ok(()),
        Err(error) => Err(other(error)),
    }
}

/// Creates the socket of QEMU. It has its name only when connections to it succeed: the daemon starts QEMU as soon as it exists.
fn listen(draft: &str, name: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(draft)?;
    std::fs::rename(draft, name)?;
    Ok(listener)
}

fn await_vmm(listener: &UnixListener) -> io::Result<()> {
    let deadline = Timespec::try_from(CONNECT_DEADLINE).map_err(io::Error::other)?;
    let mut watched = [PollFd::new(listener, PollFlags::IN)];
    match rustix::event::poll(&mut watched, Some(&deadline))? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the VMM did not connect within 30s",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
