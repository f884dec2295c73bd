//! The connection of a guest, computed from its identity and its address. Pure.
//! Out of scope: CNI mode, where the result of the plugins specifies the connection.

use crate::api::lease::Address;
use crate::api::meta::Uid;
use crate::api::network::{Block, Connection};
use crate::owner::{self, Instance, RunDir, TAP};

use super::net::MTU;

/// The connection of an isolated VM.
pub fn isolated(instance: &Instance, run_dir: &RunDir, uid: Uid, block: Block) -> Connection {
    let names = owner::vm_names(instance, uid);
    Connection {
        netns: Some(run_dir.netns(&names)),
        tap: TAP.to_owned(),
        host_link: Some(names.host_link),
        mac: names.guest_mac,
        ip: block.guest(),
        prefix_len: Block::PREFIX_LEN,
        gateway: Some(block.gateway()),
        addresses: Vec::new(),
        routes: Vec::new(),
        mtu: MTU,
        dns: Vec::new(),
        warnings: Vec::new(),
    }
}

/// The connection of a VM on a bridge, with its TAP and the MTU of the bridge.
pub fn on_bridge(
    instance: &Instance,
    uid: Uid,
    address: &Address,
    (bridge, tap): (&str, String),
    mtu: u32,
) -> Connection {
    Connection {
        netns: None,
        tap,
        host_link: Some(bridge.to_owned()),
        mac: owner::vm_names(instance, uid).guest_mac,
        ip: address.ip(),
        prefix_len: address.prefix_len(),
        gateway: address.gateway(),
        addresses: Vec::new(),
        routes: Vec::new(),
        mtu,
        dns: Vec::new(),
        warnings: Vec::new(),
    }
}
