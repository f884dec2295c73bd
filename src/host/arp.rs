//! Sends one ARP request on a link with the addresses of a host behind it.
//! Out of scope: the reply, which goes to that host.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{Error, ifindex};

const ETH_P_ARP: u16 = libc::ETH_P_ARP as u16;
const ETH_P_IP: u16 = libc::ETH_P_IP as u16;
/// The number of bytes of a MAC.
const ETH_ALEN: u8 = libc::ETH_ALEN as u8;

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
    let index = ifindex::of(link).map_err(fail)?;
    let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
    // Protocol 0: it receives nothing.
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
        .map_err(|error| fail(error.into()))?;
    let destination = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ETH_P_ARP.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: ETH_ALEN,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    };
    let frame = request_frame(sender, target);
    // SAFETY: both pointers are to values of the lengths given, which live until the call returns. rustix has no sockaddr_ll.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const destination).cast(),
            size_of_val(&destination) as libc::socklen_t,
        )
    };
    match sent < 0 {
        true => Err(fail(io::Error::last_os_error())),
        false => Ok(()),
    }
}

/// An Ethernet frame with an ARP request for IPv4 (RFC 826).
fn request_frame(sender: Sender, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; usize::from(ETH_ALEN)];
    frame.extend(sender.mac);
    frame.extend(ETH_P_ARP.to_be_bytes());
    // `struct arphdr`; an IPv4 address has four bytes.
    frame.extend(libc::ARPHRD_ETHER.to_be_bytes());
    frame.extend(ETH_P_IP.to_be_bytes());
    frame.extend([ETH_ALEN, 4]);
    frame.extend(libc::ARPOP_REQUEST.to_be_bytes());
    frame.extend(sender.mac);
    frame.extend(sender.ip.octets());
    frame.extend([0; libc::ETH_ALEN as usize]);
    frame.extend(target.octets());
    frame
}
