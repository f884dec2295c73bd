//! Sends one ARP request on a link with the addresses of a host behind it.
//! Out of scope: the reply, which goes to that host.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Error;

/// `ETH_P_ARP` of `include/uapi/linux/if_ether.h`.
const ETH_P_ARP: u16 = 0x0806;

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
}

/// Broadcasts an ARP request for `target` on `link`; in the calling thread's network namespace.
///
/// The owner of `target` replies to the sender and stores the sender's MAC; if the sender had another MAC for the target, it stores
/// the new one (`arp_process` updates an existing entry even without a request of its own).
pub fn send_request(link: &str, sender: Sender, target: Ipv4Addr) -> Result<(), Error> {
    let fail = |error| Error::io("send an ARP request on", link, error);
    let name =
        std::ffi::CString::new(link).map_err(|_| fail(io::ErrorKind::InvalidInput.into()))?;
    // SAFETY: the name ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let index = i32::try_from(index).unwrap_or_default();
    if index == 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call. Protocol 0: it receives nothing.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if socket < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: it was opened just now and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut destination: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    destination.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    destination.sll_protocol = ETH_P_ARP.to_be();
    destination.sll_ifindex = index;
    destination.sll_halen = 6;
    destination.sll_addr[..6].fill(0xff);
    let frame = request_frame(sender, target);
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: both pointers are to values of the lengths given, which live until the call returns.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const destination).cast(),
            length,
        )
    };
    match sent < 0 {
        true => Err(fail(io::Error::last_os_error())),
        false => Ok(()),
    }
}

/// An Ethernet frame with an ARP request for IPv4 (RFC 826).
fn request_frame(sender: Sender, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(sender.mac);
    frame.extend(ETH_P_ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender.mac);
    frame.extend(sender.ip.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}
