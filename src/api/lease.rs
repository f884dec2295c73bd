//! `Lease`: the address of a VM, by the name of the VM.
//! Out of scope: the assignment of addresses.
//!
//! A lease outlives the VM's uid, so that a replaced VM keeps its address. In CNI mode it records the address that the IPAM plugin
//! assigned.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::meta::{Name, Timestamp};
use super::network::{Block, Mac};

/// One leased address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The VM's name.
    pub name: Name,
    /// The VM's group.
    pub group: Name,
    /// The address.
    #[serde(flatten)]
    pub address: Address,
    /// When the address was leased.
    pub since: Timestamp,
}

/// The address of a VM. The keys determine the mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Address {
    /// Isolated mode: a /30.
    Isolated {
        /// The pool that the block was taken from.
        pool: Ipv4Network,
        /// The /30: network, gateway, VM, broadcast.
        block: Block,
    },
    /// Bridge mode: one address of the bridge's subnet.
    Bridge {
        /// The bridge.
        bridge: String,
        /// The gateway on it, with the subnet's prefix length.
        gateway: Ipv4Network,
        /// The VM's address.
        ip: Ipv4Addr,
    },
    /// CNI mode: the result of the plugins.
    Cni {
        /// The network's name.
        network: String,
        /// The VM's address, with the prefix length of its subnet.
        #[serde(rename = "plugged")]
        address: Ipv4Network,
        /// Its gateway, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<Ipv4Addr>,
        /// The VM's MAC; `None` if an earlier version recorded the lease.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mac: Option<Mac>,
    },
}

impl Address {
    /// The pool, or the bridge's subnet.
    pub fn range(&self) -> Ipv4Network {
        match self {
            Self::Isolated { pool, .. } => *pool,
            Self::Bridge { gateway, .. } => subnet(*gateway),
            Self::Cni { address, .. } => subnet(*address),
        }
    }

    /// The VM's address.
    pub fn ip(&self) -> Ipv4Addr {
        match self {
            Self::Isolated { block, .. } => block.guest(),
            Self::Bridge { ip, .. } => *ip,
            Self::Cni { address, .. } => address.ip(),
        }
    }

    /// The VM's gateway, if it has one.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Isolated { block, .. } => Some(block.gateway()),
            Self::Bridge { gateway, .. } => Some(gateway.ip()),
            Self::Cni { gateway, .. } => *gateway,
        }
    }

    /// The prefix length of the VM's on-link network.
    pub fn prefix_len(&self) -> u8 {
        match self {
            Self::Isolated { .. } => Block::PREFIX_LEN,
            Self::Bridge { gateway, .. } => gateway.prefix(),
            Self::Cni { address, .. } => address.prefix(),
        }
    }

    /// The /30; `None` in other modes.
    pub fn block(&self) -> Option<Block> {
        match self {
            Self::Isolated { block, .. } => Some(*block),
            Self::Bridge { .. } | Self::Cni { .. } => None,
        }
    }
}

/// The network around an address with a prefix length.
pub fn subnet(address: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(address.network(), address.prefix()).expect("it was a prefix length before")
}
