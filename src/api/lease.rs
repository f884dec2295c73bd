//! `Lease`: which address a VM's name has. It outlives the VM's uid, so that a replaced VM keeps its address. In CNI mode
//! there is none: the plugins' own address management has it.
//! Not here: who gets which.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::meta::{Name, Timestamp};
use super::network::Block;

/// One leased address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The VM's name.
    pub name: Name,
    /// The VM's group.
    pub group: Name,
    /// What was leased.
    #[serde(flatten)]
    pub address: Address,
    /// When it was taken.
    pub since: Timestamp,
}

/// What a VM has: the keys tell the modes apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Address {
    /// Isolated mode: a /30 of its own.
    Block {
        /// The pool that the block was taken from.
        pool: Ipv4Network,
        /// Network, gateway, VM, broadcast.
        block: Block,
    },
    /// Bridge mode: one address of the bridge's subnet.
    Bridged {
        /// The bridge.
        bridge: String,
        /// The gateway on it, with the subnet's prefix length.
        gateway: Ipv4Network,
        /// The VM.
        ip: Ipv4Addr,
    },
}

impl Address {
    /// The pool, or the bridge's subnet.
    pub fn range(&self) -> Ipv4Network {
        match self {
            Self::Block { pool, .. } => *pool,
            Self::Bridged { gateway, .. } => subnet(*gateway),
        }
    }

    /// The VM's address.
    pub fn ip(&self) -> Ipv4Addr {
        match self {
            Self::Block { block, .. } => block.guest(),
            Self::Bridged { ip, .. } => *ip,
        }
    }

    /// The VM's gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        match self {
            Self::Block { block, .. } => block.gateway(),
            Self::Bridged { gateway, .. } => gateway.ip(),
        }
    }

    /// The prefix length of what is on-link for the VM.
    pub fn prefix_len(&self) -> u8 {
        match self {
            Self::Block { .. } => Block::PREFIX_LEN,
            Self::Bridged { gateway, .. } => gateway.prefix(),
        }
    }

    /// The /30, in isolated mode.
    pub fn block(&self) -> Option<Block> {
        match self {
            Self::Block { block, .. } => Some(*block),
            Self::Bridged { .. } => None,
        }
    }
}

/// The network around an address with a prefix length.
pub fn subnet(address: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(address.network(), address.prefix()).expect("it was a prefix length before")
}
