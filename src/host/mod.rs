//! TOUCHES: thin functions over the kernel. No traits, no VM terms.
//! Out of scope: the desired state; the owner of an object.
//!
//! - Over rtnetlink ([`netlink`]): [`link`], [`bridge`] and what is particular to its ports, [`fdb`] (a bridge's forwarding entries),
//!   [`tap`], [`addr`], [`route`], [`routing_rule`], [`neigh`], [`tc`] (filters where frames come into a link); [`events`] reports changes.
//! - Packet filters: [`iptables`], with each rule as a [`rule`]; [`conntrack`], [`hashlimit`].
//! - The rest: [`netns`], [`sysctl`], [`process`], [`cpu`], [`fs`], [`ramdir`], [`image`], [`named`] (files that an unprivileged person
//!   has named), [`acl`]; what may block, for a bounded time: [`blocking`].

pub mod acl;
pub mod addr;
pub mod arp;
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
pub mod image;
pub mod iptables;
pub mod link;
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
pub mod sysctl;
pub mod tap;
pub mod tc;

pub use error::{Error, Kind};
pub use netlink::Handle;
