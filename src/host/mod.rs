//! Thin functions over the kernel: no traits, no VM terms.
//! Out of scope: the desired state; the owner of an object.
//!
//! - Over rtnetlink ([`netlink`]): [`link`], [`bridge`] and bridge port settings, [`fdb`] (a bridge's forwarding entries),
//!   [`tap`], [`addr`], [`route`], [`routing_rule`], [`neigh`], [`tc`] (ingress filters of a link); [`events`] reports changes.
//! - Packet filters: [`iptables`], with each rule as a [`rule`]; [`conntrack`], [`hashlimit`].
//! - The rest: [`netns`], [`sysctl`], [`process`], [`cpu`], [`fs`], [`ramdir`], [`image`], [`named`] (files at paths that an unprivileged
//!   user specified), [`key_file`], [`acl`]; operations that may block, with a timeout: [`blocking`].

pub mod acl;
pub mod addr;
pub mod arp;
mod async_fd;
pub mod blocking;
pub mod bridge;
pub mod cgroup;
pub mod conntrack;
pub mod cpu;
pub mod cttimeout;
pub mod error;
pub mod events;
pub mod fdb;
pub mod fs;
pub mod hashlimit;
pub mod holders;
mod ifindex;
pub mod image;
pub mod iptables;
pub mod key_file;
pub mod link;
mod link_info;
pub mod lock;
pub mod mounts;
pub mod named;
pub mod neigh;
pub mod netlink;
pub mod netns;
pub mod private;
pub mod process;
pub mod ramdir;
pub mod route;
pub mod routing_rule;
mod rtnl;
pub mod rule;
mod syscall;
pub mod sysctl;
pub mod tap;
pub mod tc;

pub use error::{Error, Kind, error_chain};
pub use netlink::Handle;
