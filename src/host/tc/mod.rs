//! Filters where frames come into a link (traffic control): classic BPF programs, and redirects to another link.
//! Out of scope: how they are written in netlink (`write`, `read`); the desired state.
//!
//! # Why
//! Redirects match everything through `u32`: kernels for microVM hosts are often built without `matchall`. Programs are classic
//! BPF, given as instructions: they need no object file, no BPF file system and no descriptor, and can be read back whole.

mod read;
mod write;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle};

use super::netlink::{self, Handle};
use super::{Error, Kind};

/// The priority of filters of ours: before everybody else's.
pub const PRIORITY: u16 = 1;

/// The number of filters of ours. What gets a number from the kernel gets 1, 2… (programs) or 0x800… (`u32`), never this.
pub const NUMBER: u32 = 0x51c;

/// What a program answers for a frame that later filters may still judge; when there are none, it comes in
/// (`TC_ACT_UNSPEC` of `include/uapi/linux/pkt_cls.h`).
pub const PASS: u32 = u32::MAX;

/// What a program answers for a frame that comes in, whatever later filters say (`TC_ACT_OK`). It is also the answer of a program
/// that reads behind the end of a frame.
pub const ACCEPT: u32 = 0;

/// What a program answers for a frame that does not come in (`TC_ACT_SHOT`).
pub const DROP: u32 = 2;

/// The most instructions that we put into a program. The kernel takes 4096 (`BPF_MAXINSNS`), but tells of a filter only if it fits into a
/// datagram, which may be as small as 3.5 KiB (`NLMSG_GOODSIZE`); else [`list`] fails.
pub const LONGEST: usize = 384;

/// What frames that come in meet first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The queueing discipline `clsact`.
    Clsact,
    /// The older one, `ingress`; it takes the same filters.
    Ingress,
}

/// An instruction of classic BPF (`struct sock_filter`, `Documentation/networking/filter.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip if a test holds.
    pub jt: u8,
    /// How many if it does not.
    pub jf: u8,
    /// An operand.
    pub k: u32,
}

/// A filter as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The smaller the earlier.
    pub priority: u16,
    /// The EtherType that it is asked for; 3 (`ETH_P_ALL`): every.
    pub protocol: u16,
    /// Frames meet chain 0 only, unless one of its filters sends them on.
    pub chain: u32,
    /// Tells apart those of a priority; for `u32`, the number of its table is in the upper 12 bits.
    pub handle: u32,
    /// What it does.
    pub what: What,
}

/// What a filter does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Asks a program, whose answer is final (`direct-action`).
    Program(Vec<Insn>),
    /// Every frame goes out by the link with this index, instead of coming in.
    Redirect(u32),
    /// What we never make: its kind.
    Other(String),
}

impl Filter {
    /// [`NUMBER`] when it is of ours, whichever table it is in.
    pub fn number(&self) -> u32 {
        match &self.what {
            What::Redirect(_) => self.handle & 0xfff,
            What::Other(kind) if kind == "u32" => self.handle & 0xfff,
            What::Program(_) | What::Other(_) => self.handle,
        }
    }
}

/// What filters can be put on; `None`: nothing yet.
///
/// Not for every look: the kernel answers this question to all who listen for traffic control (`RTNLGRP_TC`), too. Whether a filter is
/// there is what [`list`] says, and [`add_hook`] says if there is a hook already.
pub async fn hook(handle: &Handle, index: u32) -> Result<Option<Hook>, Error> {
    let thing = || format!("number {index}");
    let doing = "look at the ingress of link";
    let mut question = write::hook(index);
    // Whichever is there: what takes an emptied place has no handle.
    question.header.handle = TcHandle::UNSPEC;
    let answer = handle
        .get_echoed(RouteNetlinkMessage::GetQueueDiscipline(question))
        .await;
    let found = match answer {
        Ok(Some(RouteNetlinkMessage::NewQueueDiscipline(found))) => found,
        // It had one once.
        Ok(None) => return Ok(None),
        Ok(Some(_)) => return Err(netlink::unexpected(doing, thing())),
        // Of a link that is gone it is ENODEV.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::io(doing, thing(), e)),
    };
    let kind = found.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    match kind {
        Some("clsact") => Ok(Some(Hook::Clsact)),
        Some("ingress") => Ok(Some(Hook::Ingress)),
        _ => Err(netlink::unexpected(doing, thing())),
    }
}

/// Makes a `clsact`. `Exists` when there is one, or an `ingress`.
pub async fn add_hook(handle: &Handle, index: u32) -> Result<(), Error> {
    let mut message = write::hook(index);
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    let made = handle
        .change(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await;
    made.map_err(|e| match Kind::of(&e) {
        // The answer when there is an `ingress` in its place.
        _ if e.raw_os_error() == Some(libc::EINVAL) => io_exists(),
        _ => e,
    })
    .map_err(|e| Error::io("add clsact to link", format!("number {index}"), e))
}

/// The filters for what comes in at a link, in the order in which frames meet them. None, too, when there is no such link: look at
/// the link, or its [`hook`], first.
pub async fn list(handle: &Handle, index: u32) -> Result<Vec<Filter>, Error> {
    let answer = handle
        .dump(RouteNetlinkMessage::GetTrafficFilter(write::ingress(index)))
        .await
        .map_err(|e| Error::io("list the filters of link", format!("number {index}"), e))?;
    let mut filters = Vec::new();
    for part in answer {
        let RouteNetlinkMessage::NewTrafficFilter(message) = part else {
            return Err(netlink::unexpected("list", "filters"));
        };
        filters.extend(read::filter(message));
    }
    Ok(filters)
}

/// Puts a program of ours ([`PRIORITY`], [`NUMBER`], every EtherType) where frames come in, in place of the one that is there:
/// there is no moment with neither. `Absent` when there is no [`hook`].
pub async fn replace_program(handle: &Handle, index: u32, program: &[Insn]) -> Result<(), Error> {
    let fail = |e| Error::io("set the program of link", format!("number {index}"), e);
    if program.is_empty() || program.len() > LONGEST {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    }
    let message = write::program(index, program);
    handle
        .change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE)
        .await
        .map_err(fail)
}

/// Sends all that comes in at a link out by another, with a filter of ours ([`PRIORITY`], [`NUMBER`]). `Exists` when there is one
/// of ours. No netfilter and no bridge sees what is redirected.
pub async fn add_redirect(handle: &Handle, index: u32, to: u32) -> Result<(), Error> {
    let message = write::redirect(index, to);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    handle
        .change(RouteNetlinkMessage::NewTrafficFilter(message), flags)
        .await
        .map_err(|e| match e.raw_os_error() {
            // What `u32` says when a number is taken (`idr_alloc_u32`).
            Some(libc::ENOSPC) => io_exists(),
            _ => e,
        })
        .map_err(|e| Error::io("redirect link", format!("number {index}"), e))
}

/// Deletes the filter with that priority, chain and handle. `Absent` when there is none.
pub async fn delete(handle: &Handle, index: u32, filter: &Filter) -> Result<(), Error> {
    let message = write::position(index, filter);
    handle
        .change(RouteNetlinkMessage::DelTrafficFilter(message), 0)
        .await
        .map_err(|e| Error::io("delete a filter of link", format!("number {index}"), e))
}

fn io_exists() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::EEXIST)
}
