//! The index of a link by its name, without netlink: also between fork and exec.
//! Out of scope: everything else about links ([`super::link`]).

use std::io;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The index of a link in the calling thread's network namespace. ENODEV: no link has this name. Makes only system calls.
pub(super) fn of(link: &str) -> io::Result<u32> {
    // Any socket will do (netdevice(7)). This family, which if_nametoindex(3) uses too, needs no module and no address.
    let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    Ok(rustix::net::netdevice::name_to_index(socket, link)?)
}
