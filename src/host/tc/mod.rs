//! Ingress filters of links (traffic control): classic BPF programs, and redirects to another link.
//! Out of scope: their netlink encoding (`write`, `read`); the desired state.
//!
//! # Why
//! Redirects match all frames with `u32`: kernels for microVM hosts are often built without `matchall`. Programs are classic
//! BPF, passed as instructions: they need no object file, no BPF file system and no descriptor, and can be read back completely.

mod read;
mod write;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle};

use super::netlink::{self, Handle};
use super::{Error, Kind};

/// The priority of sliced's filters: before all others.
pub const PRIORITY: u16 = 1;

/// The handle of sliced's filters. The kernel assigns 1, 2, ... (programs) or 0x800... (`u32`), never this one.
pub const NUMBER: u32 = 0x51c;

/// The bits of a `u32` handle that identify a filter within its table (`TC_U32_NODE` of `include/uapi/linux/pkt_cls.h`).
const U32_NODE: u32 = 0xfff;

/// The return value of a program that leaves the decision to later filters; without any, the frame is accepted
/// (`TC_ACT_UNSPEC` of `include/uapi/linux/pkt_cls.h`).
pub const PASS: u32 = u32::MAX;

/// The return value of a program that accepts a frame without evaluating later filters (`TC_ACT_OK`). It is also the result of a program
/// that reads beyond the end of a frame.
pub const ACCEPT: u32 = 0;

/// The return value of a program that drops a frame (`TC_ACT_SHOT`).
pub const DROP: u32 = 2;

/// The maximum number of instructions of a program. The kernel accepts 4096 (`BPF_MAXINSNS`), but dumps a filter only if it fits in a
/// datagram, which may be as small as 3.5 KiB (`NLMSG_GOODSIZE`); otherwise [`list`] fails.
pub const LONGEST: usize = 384;

/// The ingress hook of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The qdisc `clsact`.
    Clsact,
    /// The older qdisc `ingress`; it accepts the same filters.
    Ingress,
}

/// An instruction of classic BPF (`struct sock_filter`, `Documentation/networking/filter.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// The operation.
    pub code: u16,
    /// The number of instructions to skip if the test is true.
    pub jt: u8,
    /// The number to skip if it is false.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// A filter as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Lower values are evaluated first.
    pub priority: u16,
    /// The EtherType that it applies to; 3 (`ETH_P_ALL`): all.
    pub protocol: u16,
    /// Frames are evaluated in chain 0 only, unless one of its filters jumps to another.
    pub chain: u32,
    /// Identifies a filter among those of its priority; for `u32`, the upper 12 bits are the number of its table.
    pub handle: u32,
    /// The action.
    pub action: What,
}

/// The action of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Runs a program; its result is final (`direct-action`).
    Program(Vec<Insn>),
    /// Redirects every frame to the egress of the link with this index.
    Redirect(u32),
    /// A filter that sliced never creates, with its kind.
    Other(String),
}

impl Filter {
    /// [`NUMBER`] for a filter of sliced, in any table.
    pub fn number(&self) -> u32 {
        match &self.action {
            What::Redirect(_) => self.handle & U32_NODE,
            What::Other(kind) if kind == "u32" => self.handle & U32_NODE,
            What::Program(_) | What::Other(_) => self.handle,
        }
    }
}

/// The qdisc that ingress filters can be attached to; `None`: there is none.
///
/// Not for every observation: the kernel multicasts the response to all listeners of `RTNLGRP_TC`. Use [`list`] to check whether a filter
/// exists; [`add_hook`] reports if there is already a hook.
pub async fn hook(handle: &Handle, index: u32) -> Result<Option<Hook>, Error> {
    let object = || format!("with index {index}");
    let operation = "get the ingress qdisc of link";
    let mut request = write::hook(index);
    // Any qdisc: the default that replaces a deleted one has no handle.
    request.header.handle = TcHandle::UNSPEC;
    let response = handle
        .get_echoed(RouteNetlinkMessage::GetQueueDiscipline(request))
        .await;
    let found = match response {
        Ok(Some(RouteNetlinkMessage::NewQueueDiscipline(found))) => found,
        // It had one that was deleted.
        Ok(None) => return Ok(None),
        Ok(Some(_)) => return Err(netlink::unexpected(operation, object())),
        // For a link that does not exist the error is ENODEV.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::io(operation, object(), e)),
    };
    let kind = found.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    match kind {
        Some("clsact") => Ok(Some(Hook::Clsact)),
        Some("ingress") => Ok(Some(Hook::Ingress)),
        _ => Err(netlink::unexpected(operation, object())),
    }
}

/// Creates a `clsact` qdisc. `Exists` if there is one, or an `ingress`.
pub async fn add_hook(handle: &Handle, index: u32) -> Result<(), Error> {
    let mut message = write::hook(index);
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    let result = handle
        .change(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await;
    result
        .map_err(|e| match Kind::of(&e) {
            // The error if there is an `ingress` qdisc.
            _ if e.raw_os_error() == Some(libc::EINVAL) => already_exists(),
            _ => e,
        })
        .map_err(|e| Error::io("add clsact to link", format!("with index {index}"), e))
}

/// The ingress filters of a link, in evaluation order. Also empty if the link does not exist: check the link, or its [`hook`],
/// first.
pub async fn list(handle: &Handle, index: u32) -> Result<Vec<Filter>, Error> {
    let response = handle
        .dump(RouteNetlinkMessage::GetTrafficFilter(write::ingress(index)))
        .await
        .map_err(|e| Error::io("list the filters of link", format!("with index {index}"), e))?;
    let mut filters = Vec::new();
    for part in response {
        let RouteNetlinkMessage::NewTrafficFilter(message) = part else {
            return Err(netlink::unexpected("list", "filters"));
        };
        filters.extend(read::filter(message));
    }
    Ok(filters)
}

/// Sets the ingress program ([`PRIORITY`], [`NUMBER`], every EtherType) and atomically replaces an existing one.
/// `Absent` if there is no [`hook`].
pub async fn replace_program(handle: &Handle, index: u32, program: &[Insn]) -> Result<(), Error> {
    let fail = |e| {
        Error::io(
            "set the ingress program of link",
            format!("with index {index}"),
            e,
        )
    };
    if program.is_empty() || program.len() > LONGEST {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    }
    let message = write::program(index, program);
    handle
        .change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE)
        .await
        .map_err(fail)
}

/// Redirects all received frames of a link to the egress of another, with a filter ([`PRIORITY`], [`NUMBER`]). `Exists` if there is such
/// a filter. Redirected frames do not pass netfilter or a bridge.
pub async fn add_redirect(handle: &Handle, index: u32, to: u32) -> Result<(), Error> {
    let message = write::redirect(index, to);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    handle
        .change(RouteNetlinkMessage::NewTrafficFilter(message), flags)
        .await
        .map_err(|e| match e.raw_os_error() {
            // The error of `u32` if the handle is in use (`idr_alloc_u32`).
            Some(libc::ENOSPC) => already_exists(),
            _ => e,
        })
        .map_err(|e| Error::io("redirect link", format!("with index {index}"), e))
}

/// Deletes the filter with this priority, chain and handle. `Absent` if there is none.
pub async fn delete(handle: &Handle, index: u32, filter: &Filter) -> Result<(), Error> {
    let message = write::position(index, filter);
    handle
        .change(RouteNetlinkMessage::DelTrafficFilter(message), 0)
        .await
        .map_err(|e| Error::io("delete a filter of link", format!("with index {index}"), e))
}

fn already_exists() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::EEXIST)
}
