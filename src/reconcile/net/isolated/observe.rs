//! Observes a VM's data path.
//! Out of scope: what is desired.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::plan::{Desired, HostLink, Inside, Observed, TapSeen, Uplink};
use crate::api::network::{Block, Mac, TapOwner};
use crate::host::link::Link;
use crate::host::netlink::Handle;
use crate::host::tap::Layer;
use crate::host::tc::{self, What};
use crate::host::{self, Kind, addr, link, neigh, route, sysctl};
use crate::owner::{TAP, UPLINK};
use crate::reconcile::firewall::{antispoof, bridge};
use crate::reconcile::net::isolated::IsolatedNet;
use crate::reconcile::net::place::{EnteredNetns, Seen};
use crate::reconcile::net::{NEXT_HOP, host_links, routed, settings};

pub(super) async fn observe(net: &IsolatedNet, desired: &Desired) -> Result<Observed, host::Error> {
    let place = desired.paths();
    let Seen {
        record,
        dir,
        handle,
    } = place.observe()?;
    let host_link = observe_host_link(net, desired).await?;
    let (netns, entered) = place.observe_netns(&net.session).await?;
    let inside = match &entered {
        Some(entered) => Some(observe_inside(entered, desired).await?),
        None => None,
    };
    Ok(Observed {
        record,
        dir,
        netns,
        handle,
        host_link,
        inside,
    })
}

/// Returns the last observation of this run, with the present record.
pub(super) fn with_current_record(
    desired: &Desired,
    seen: Observed,
) -> Result<Observed, host::Error> {
    let Seen {
        record,
        dir,
        handle,
    } = desired.paths().observe()?;
    Ok(Observed {
        record,
        dir,
        handle,
        ..seen
    })
}

/// The host's forwarding switch, which sets `forwarding` of every link.
const FORWARDING_SWITCH: &str = "net.ipv4.ip_forward";

async fn observe_host_link(
    net: &IsolatedNet,
    desired: &Desired,
) -> Result<Option<HostLink>, host::Error> {
    let name = desired.names().host_link;
    let Some(mut seen) = link::get(&net.netlink, &name).await? else {
        return Ok(None);
    };
    // Turned off together with all links: the host network's reconciler restores it on all of them.
    if let Some(ipv4) = seen.ipv4.as_mut().filter(|ipv4| ipv4.forwarding == 0)
        && net.home.run_here(|| sysctl::read(FORWARDING_SWITCH))? == "0"
    {
        ipv4.forwarding = 1;
    }
    let guest = desired.slot.as_ref().map(|slot| slot.block.guest());
    let neighbours = permanent_neighbour(&net.netlink, seen.index, guest).await?;
    let routed = match guest {
        Some(guest) => routed::is_routed(&net.netlink, guest, seen.index).await?,
        None => false,
    };
    // A link that is down has no route yet.
    let route_conflict = match guest {
        Some(guest) if seen.up && !routed => {
            routed::route_conflict(&net.netlink, guest, seen.index, Block::PREFIX_LEN).await?
        }
        Some(_) | None => None,
    };
    let addresses = match addresses(&net.netlink, seen.index).await {
        Ok(addresses) => addresses,
        // The kernel reports that the link was removed after it was found.
        Err(error) if error.kind == Kind::Absent => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(HostLink {
        addresses,
        configured: host_links::is_veth(&seen),
        has_master: seen.master.is_some(),
        alias: seen.alias,
        mac: mac(seen.mac),
        index: seen.index,
        peer: seen.peer_index,
        up: seen.up,
        mtu: seen.mtu,
        neighbours,
        routed,
        route_conflict,
    }))
}

async fn observe_inside(
    EnteredNetns { netns, netlink }: &EnteredNetns,
    desired: &Desired,
) -> Result<Inside, host::Error> {
    // Two requests and not one list: a request for one link also makes the kernel process a pending change of its carrier, without which
    // the link drops every packet (`linkwatch_sync_dev` in `rtnl_getlink`; otherwise that may take a second).
    let tap = link::get(netlink, TAP).await?;
    let uplink = link::get(netlink, UPLINK).await?;
    let drifted = settings::drifted(netns, &[tap.as_ref(), uplink.as_ref()])?;
    let guest = desired.slot.as_ref().map(|slot| slot.block.guest());
    let routes = route::list(netlink).await?;
    let default_via = routes
        .iter()
        .filter(|r| r.dst.prefix() == 0 && r.link == uplink.as_ref().map(|up| up.index))
        .filter_map(|r| r.gateway)
        .find(|via| *via == NEXT_HOP);
    let tap = match tap {
        None => None,
        Some(tap) => Some(TapSeen {
            owner: tap_owner(&tap),
            mac: mac(tap.mac),
            up: tap.up,
            mtu: tap.mtu,
            addresses: addresses(netlink, tap.index).await?,
            neighbours: permanent_neighbour(netlink, tap.index, guest).await?,
            routes: routes
                .iter()
                .filter(|r| r.link == Some(tap.index) && r.gateway.is_none())
                .map(|r| r.dst)
                .collect(),
            program: program(netlink, tap.index).await?,
            has_master: tap.master.is_some(),
        }),
    };
    let uplink = match uplink {
        None => None,
        Some(up) => Some(Uplink {
            index: up.index,
            peer: up.peer_index,
            mac: mac(up.mac),
            up: up.up,
            mtu: up.mtu,
            neighbours: permanent_neighbour(netlink, up.index, Some(NEXT_HOP)).await?,
            has_master: up.master.is_some(),
        }),
    };
    Ok(Inside {
        tap,
        uplink,
        default_via,
        drifted,
    })
}

/// Returns the permanent neighbour with this address. This is not a dump: the kernel keeps the neighbours of all namespaces in one table
/// (`neigh_table`), and a dump traverses all of it.
async fn permanent_neighbour(
    netlink: &Handle,
    index: u32,
    ip: Option<Ipv4Addr>,
) -> Result<BTreeMap<Ipv4Addr, Mac>, host::Error> {
    let Some(ip) = ip else {
        return Ok(BTreeMap::new());
    };
    let found = neigh::get(netlink, index, ip).await?;
    Ok(found
        .map(|found| (found.ip, Mac(found.mac)))
        .into_iter()
        .collect())
}

/// Returns the digest of our program on a link, if it is the only filter there: everything in the namespace is ours.
async fn program(netlink: &Handle, index: u32) -> Result<Option<String>, host::Error> {
    let filters = tc::list(netlink, index).await?;
    match filters.as_slice() {
        [only] if bridge::is_ours(only) => match &only.action {
            What::Program(program) => Ok(Some(antispoof::digest(program))),
            What::Redirect(_) | What::Other(_) => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Who may open the TAP, if it is the kind of TAP that we create.
pub(in crate::reconcile::net) fn tap_owner(link: &Link) -> Option<TapOwner> {
    let tun = link.tun.as_ref()?;
    let is_supported =
        tun.layer == Layer::Tap && tun.persist && !tun.packet_info && !tun.multi_queue;
    is_supported.then(|| TapOwner {
        uid: tun.owner.unwrap_or(0),
        gid: tun.group,
    })
}

pub(in crate::reconcile::net) async fn addresses(
    netlink: &Handle,
    index: u32,
) -> Result<BTreeSet<Ipv4Network>, host::Error> {
    let found = addr::list(netlink, addr::Of::Index(index)).await?;
    Ok(found.into_iter().map(|addr| addr.net).collect())
}

/// A link without a MAC was not created by us.
pub(in crate::reconcile::net) fn mac(found: Option<[u8; 6]>) -> Mac {
    Mac(found.unwrap_or_default())
}
