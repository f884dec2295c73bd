//! TAP devices.
//! Out of scope: the desired state.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl};

use super::{Error, Kind, ifindex, link, rtnl};

pub use super::link_info::{Layer, TunInfo};

const DEVICE: &str = "/dev/net/tun";

/// `IFF_TUN_EXCL` of `include/uapi/linux/if_tun.h`: refuse to attach to a device that exists.
const IFF_TUN_EXCL: libc::c_int = 0x8000;

/// The user that may attach to a TAP device without being root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group that the user must also be in, if set.
    pub gid: Option<u32>,
}

/// Whether frames start with a `virtio_net_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Plain Ethernet frames.
    Plain,
    /// Ten bytes of `virtio_net_hdr` first, as VMMs require.
    VnetHdr,
}

/// Creates a persistent TAP device in the calling thread's namespace, with one queue and a `virtio_net_hdr`. Its owner and `change`
/// (label, MAC, ...) are set before it becomes persistent: a crash leaves no unlabelled device. Blocks.
/// `Exists` if the name is in use.
pub fn create(name: &str, owner: Owner, change: &link::Change) -> Result<(), Error> {
    let fail = |e| Error::io("create tap", name, e);
    let device = open().map_err(fail)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | IFF_TUN_EXCL;
    attach_to(&device, name, flags).map_err(|e| match Kind::of(&e) {
        // The error with TUN_EXCL.
        Kind::Busy => fail(io::Error::from_raw_os_error(libc::EEXIST)),
        _ => fail(e),
    })?;
    control::<{ libc::TUNSETOWNER as Opcode }>(&device, owner.uid).map_err(fail)?;
    if let Some(gid) = owner.gid {
        control::<{ libc::TUNSETGROUP as Opcode }>(&device, gid).map_err(fail)?;
    }
    link::set_blocking(name, change)?;
    control::<{ libc::TUNSETPERSIST as Opcode }>(&device, 1).map_err(fail)
}

/// Attaches to a TAP device of the calling thread's namespace: a read returns a frame that the kernel sends to
/// the guest, a write injects a frame from the guest. Does not block. `Absent` if it does not exist, `Busy` if a process is
/// attached.
pub fn attach(name: &str, framing: Framing) -> Result<File, Error> {
    let fail = |e| Error::io("attach to tap", name, e);
    // TUNSETIFF would create a device that does not exist.
    ifindex::of(name).map_err(fail)?;
    let device = open().map_err(fail)?;
    let flags = match framing {
        Framing::Plain => libc::IFF_TAP | libc::IFF_NO_PI,
        Framing::VnetHdr => libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
    };
    attach_to(&device, name, flags).map_err(fail)?;
    Ok(device)
}

fn open() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
}

/// `struct ifreq` as TUNSETIFF uses it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    unused: [u8; 22],
}

fn attach_to(device: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    const ATTACH: Opcode = libc::TUNSETIFF as Opcode;
    const { assert!(size_of::<Request>() == size_of::<libc::ifreq>()) };
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: flags as u16,
        unused: [0; 22],
    };
    request.name[..bytes.len()].copy_from_slice(bytes);
    let _guard = rtnl::turn();
    // SAFETY: TUNSETIFF reads and writes one ifreq. rustix declares every ioctl(2) unsafe: it cannot know the argument of a request.
    Ok(unsafe { ioctl(device, Updater::<ATTACH, _>::new(&mut request)) }?)
}

/// The TUN ioctls that take a number by value.
fn control<const REQUEST: Opcode>(device: &File, value: u32) -> io::Result<()> {
    // SAFETY: the requests of this file (owner, group, persistence) take a number by value and touch no memory.
    Ok(unsafe { ioctl(device, IntegerSetter::<REQUEST>::new_usize(value as usize)) }?)
}
