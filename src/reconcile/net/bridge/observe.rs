//! Observes a VM's bridge port. Without dumps: each request names its object, so that its cost does not depend on the number of VMs.
//! Out of scope: what is desired.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use super::BridgeNet;
use super::plan::{BridgeSeen, Desired, Entry, Observed, TapSeen};
use crate::api::network::Mac;
use crate::host::link::Link;
use crate::host::{self, addr, fdb, link, neigh};
use crate::reconcile::net::isolated::observe::{mac, tap_owner};
use crate::reconcile::net::routed::RouteConflict;
use crate::reconcile::net::{files, host_links, routed};

pub(super) async fn observe(
    bridge_net: &BridgeNet,
    desired: &Desired,
) -> Result<Observed, host::Error> {
    let files::Seen { record, dir } = files::observe(&desired.vm_dir())?;
    let mut tap = link::get(&bridge_net.netlink, &desired.tap).await?;
    let mut observed = Observed {
        record,
        dir,
        ..Observed::default()
    };
    if observed.record.is_some() && tap.is_none() {
        tap = find_renamed(bridge_net, desired).await?;
        observed.renamed = tap.as_ref().map(|tap| tap.name.clone());
    }
    let mut bridge = None;
    if let Some(location) = desired.location() {
        bridge = link::get(&bridge_net.netlink, &location.bridge).await?;
        if let Some(bridge) = &bridge {
            let pinned = neigh::get(&bridge_net.netlink, bridge.index, location.ip).await?;
            observed.neighbour = pinned.map(|pinned| Mac(pinned.mac));
        } else if desired.slot.is_some() {
            let why = "it does not exist yet; the host network's reconciler creates it";
            let not_found = io::Error::new(io::ErrorKind::NotFound, why);
            return Err(host::Error::io("find bridge", location.bridge, not_found));
        }
    }
    if desired.slot.is_some()
        && let Some(bridge) = bridge.as_ref().filter(|bridge| is_bridge(bridge))
    {
        observed.entry = observe_entry(bridge_net, desired, bridge.index, tap.as_ref()).await?;
    }
    if let (Some(slot), Some(bridge)) = (&desired.slot, &bridge) {
        observed.route_conflict = observe_route_conflict(bridge_net, bridge.index, slot.ip).await?;
    }
    let master = bridge.as_ref().map(|bridge| bridge.index);
    if let Some(bridge) = &bridge {
        let mut seen = describe(bridge);
        if desired.slot.as_ref().is_some_and(|slot| slot.isolated) {
            seen.host_addresses = addr::list_all_of(&bridge_net.netlink, bridge.index).await?;
        }
        observed.bridge = Some(seen);
    }
    observed.tap = tap.map(|tap| describe_tap(&tap, master));
    Ok(observed)
}

/// A dump, which is not needed for the port of a VM that is created for the first time.
async fn find_renamed(
    bridge_net: &BridgeNet,
    desired: &Desired,
) -> Result<Option<Link>, host::Error> {
    let label = desired.label.to_string();
    let is_ours = |link: &Link| link.alias.as_deref() == Some(&label) && tap_owner(link).is_some();
    let links = link::list(&bridge_net.netlink).await?;
    Ok(links.into_iter().find(is_ours))
}

/// If the host has no address in the subnet, another machine is the gateway, or the host network's reconciler is about to add ours.
async fn observe_route_conflict(
    bridge_net: &BridgeNet,
    bridge: u32,
    ip: Ipv4Addr,
) -> Result<Option<RouteConflict>, host::Error> {
    if routed::is_routed(&bridge_net.netlink, ip, bridge).await? {
        return Ok(None);
    }
    let addresses = addr::list(&bridge_net.netlink, addr::Of::Index(bridge)).await?;
    match addresses.iter().find(|addr| addr.net.contains(ip)) {
        None => Ok(None),
        Some(gateway) => {
            routed::route_conflict(&bridge_net.netlink, ip, bridge, gateway.net.prefix()).await
        }
    }
}

fn describe_tap(tap: &Link, master: Option<u32>) -> TapSeen {
    let flags = tap.port.unwrap_or_default();
    TapSeen {
        alias: tap.alias.clone(),
        owner: tap_owner(tap),
        mac: mac(tap.mac),
        mtu: tap.mtu,
        enslaved: tap.master.is_some() && tap.master == master,
        isolated: flags.isolated,
        learning: flags.learning,
        unicast_flood: flags.unicast_flood,
        configured: host_links::is_port(tap),
        guarded: flags.protected,
    }
}

async fn observe_entry(
    bridge_net: &BridgeNet,
    desired: &Desired,
    bridge: u32,
    tap: Option<&Link>,
) -> Result<Option<Entry>, host::Error> {
    let guest = desired.names().guest_mac;
    let found = fdb::get(&bridge_net.netlink, bridge, guest.0).await?;
    let leads_here = |entry: &fdb::Entry| tap.is_some_and(|tap| tap.index == entry.port);
    Ok(found.map(|entry| match entry.kind {
        fdb::Sort::Sticky if leads_here(&entry) => Entry::Sticky,
        fdb::Sort::Sticky | fdb::Sort::Static | fdb::Sort::Local | fdb::Sort::Learned => {
            Entry::Other
        }
    }))
}

pub(super) fn describe(bridge: &Link) -> BridgeSeen {
    BridgeSeen {
        is_bridge: is_bridge(bridge),
        alias: bridge.alias.clone(),
        mac: mac(bridge.mac),
        mtu: bridge.mtu,
        host_addresses: BTreeSet::new(),
    }
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}
