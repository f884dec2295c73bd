//! The Net stage: a VM's record and its data path, in one directory per mode, and what the modes share.
//! Out of scope: rules and forwarding (the Firewall stage); which address a VM has (the Lease stage).

pub mod bridge;
pub mod cni;
mod files;
mod found;
pub(super) mod host_links;
pub mod isolated;
mod place;
pub mod routed;
mod settings;

pub use place::NetnsSeen;

/// The next hop of the VM's namespace: an address that no pool can contain, so that it is on-link everywhere. No host has it; a permanent
/// neighbour entry maps it to the MAC of the host's veth end.
pub const NEXT_HOP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 0, 1);

/// Bytes, on every link of the data path.
pub const MTU: u32 = 1500;

/// The file in a VM's run directory that identifies the owner of the VM's resources.
pub const RECORD: &str = "record.json";

/// The file in a VM's run directory that the older iptables back end locks while it writes the namespace's rules.
pub const LOCK: &str = "xtables.lock";
