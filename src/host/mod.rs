//! TOUCHES: thin functions over the kernel. No traits, no VM words.
//! Not here: what ought to be; whose a thing is.

pub mod addr;
pub mod bridge;
pub mod conntrack;
pub mod cpu;
pub mod error;
pub mod events;
pub mod fdb;
pub mod fs;
pub mod iptables;
pub mod link;
pub mod neigh;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod route;
pub mod rule;
pub mod sysctl;
pub mod tap;
pub mod tc;

pub use error::{Error, Kind};
pub use netlink::Handle;
