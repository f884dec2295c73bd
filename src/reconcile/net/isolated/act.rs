//! Executes one step for a VM's data path.
//! Out of scope: which steps are executed, and in which order.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::plan::{Desired, filter_program};
use crate::api::network::{Block, Mac, TapOwner};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, Ipv6Addresses, State, VethEnd};
use crate::host::netlink::Handle;
use crate::host::{self, Error, addr, fs, link, neigh, netns, route, sysctl, tap, tc};
use crate::owner::{TAP, UPLINK, link_group};
use crate::reconcile::firewall::bridge;
use crate::reconcile::net::isolated::{Action, IsolatedNet, Side};
use crate::reconcile::net::{MTU, NEXT_HOP, files, host_links, settings};

/// The number of checks for a veth after its namespace was deleted, and their interval: 600 ms in all.
const VETH_REMOVAL_CHECKS: u32 = 60;
const VETH_REMOVAL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

pub(super) async fn act(
    net: &IsolatedNet,
    desired: &Desired,
    action: &Action,
) -> Result<(), Error> {
    match action {
        Action::WriteRecord | Action::UpdateRecord => match &desired.slot {
            Some(slot) => files::write_record(&desired.vm_dir(), &slot.record),
            None => Ok(()),
        },
        Action::CreateNetns => create_netns(net, desired).await,
        Action::LinkHandle => desired.paths().link_handle(),
        Action::SetSysctls(keys) => set_sysctls(net, keys),
        Action::DeleteNetnsLink(side) => delete_netns_link(net, *side).await,
        Action::DeleteHostLink(owned) => delete_host_link(net, desired, owned.resource()).await,
        Action::CreateTap(owner) => create_tap(net, desired, *owner).await,
        Action::SetTapFilter { .. } => set_tap_filter(net, desired).await,
        Action::CreateVeth => create_veth(net, desired).await,
        Action::LabelHostLink => {
            let label = Change {
                alias: Some(desired.label.to_string()),
                ipv6_addresses: Some(Ipv6Addresses::None),
                group: Some(link_group::ISOLATED),
                ipv4: host_links::VETH_IPV4.to_vec(),
                ..Change::default()
            };
            change(net, desired, Side::Host, label).await?;
            let name = desired.names().host_link;
            host_links::write_veth(&net.home, &name)
        }
        Action::ClearMaster(side) => {
            let detached = Change {
                master: Some(0),
                ..Change::default()
            };
            change(net, desired, *side, detached).await
        }
        Action::Configure(side) => configure(net, desired, *side).await,
        Action::AddAddress(side, address) => add_address(net, desired, *side, *address).await,
        Action::AddNeighbour(side, ip, mac) => add_neighbour(net, desired, *side, *ip, *mac).await,
        Action::AddBlockRoute(side, block) => add_block_route(net, desired, *side, *block).await,
        Action::AddDefaultRoute => add_default_route(net, desired).await,
        Action::UnlinkHandle => fs::remove(&desired.handle()),
        Action::DeleteNetns(owned) => {
            net.session.close();
            absent_is_done(netns::delete(owned.resource()).await)
        }
        Action::RemoveRunDir => desired.paths().remove_dir(),
    }
}

async fn create_netns(net: &IsolatedNet, desired: &Desired) -> Result<(), Error> {
    match desired.paths().create_netns(settings::write_all).await? {
        Some(netns) => net.session.enter(netns).await.map(drop),
        None => Ok(()),
    }
}

fn set_sysctls(net: &IsolatedNet, keys: &BTreeMap<String, String>) -> Result<(), Error> {
    let keys: Vec<(&str, &str)> = keys.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    // Settings of links are not written through directories that are kept open: the directory of a link is removed with the link.
    let (link_settings, others): (Vec<_>, Vec<_>) = keys
        .into_iter()
        .partition(|(key, _)| settings::is_link_setting(key));
    let inside = net.session.inside()?;
    inside.netns.write_sysctls(&others)?;
    inside.netns.run_here(|| sysctl::write_many(&link_settings))
}

async fn delete_netns_link(net: &IsolatedNet, side: Side) -> Result<(), Error> {
    let name = match side {
        Side::Tap => TAP,
        Side::Uplink => UPLINK,
        Side::Host => return Ok(()),
    };
    delete_link(&net.session.inside()?.netlink, name).await
}

/// When its namespace is deleted, the kernel removes the veth after a while. The link is deleted only if that takes too long.
async fn delete_host_link(net: &IsolatedNet, desired: &Desired, name: &str) -> Result<(), Error> {
    if desired.slot.is_none() {
        for _ in 0..VETH_REMOVAL_CHECKS {
            if link::get(&net.netlink, name).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(VETH_REMOVAL_INTERVAL).await;
        }
    }
    delete_link(&net.netlink, name).await
}

async fn delete_link(netlink: &Handle, name: &str) -> Result<(), Error> {
    match link::get(netlink, name).await? {
        None => Ok(()),
        Some(found) => absent_is_done(link::delete(netlink, found.index).await),
    }
}

async fn create_tap(net: &IsolatedNet, desired: &Desired, owner: TapOwner) -> Result<(), Error> {
    let owner = tap::Owner {
        uid: owner.uid,
        gid: owner.gid,
    };
    let attributes = Change {
        mac: Some(desired.names().tap_mac.0),
        mtu: Some(MTU),
        ..Change::default()
    };
    let inside = net.session.inside()?;
    exists_is_done(
        inside
            .netns
            .run_here(|| tap::create(TAP, owner, &attributes)),
    )
}

async fn set_tap_filter(net: &IsolatedNet, desired: &Desired) -> Result<(), Error> {
    let Some(slot) = &desired.slot else {
        return Ok(());
    };
    let (netlink, tap) = find(net, desired, Side::Tap).await?;
    exists_is_done(tc::add_hook(&netlink, tap).await)?;
    // Everything in the namespace is ours: another filter could pass or take frames before ours.
    for filter in tc::list(&netlink, tap).await? {
        if !bridge::is_ours(&filter) {
            absent_is_done(tc::delete(&netlink, tap, &filter).await)?;
        }
    }
    tc::replace_program(&netlink, tap, &filter_program(slot, &desired.names())).await
}

async fn create_veth(net: &IsolatedNet, desired: &Desired) -> Result<(), Error> {
    let names = desired.names();
    let host_end = VethEnd {
        name: names.host_link,
        mac: names.host_mac.0,
        mtu: MTU,
        group: link_group::ISOLATED,
    };
    let uplink = VethEnd {
        name: UPLINK.to_owned(),
        mac: names.uplink_mac.0,
        mtu: MTU,
        group: 0,
    };
    let inside = net.session.inside()?;
    exists_is_done(link::create_veth(&net.netlink, &host_end, &uplink, &inside.netns).await)
}

async fn configure(net: &IsolatedNet, desired: &Desired, side: Side) -> Result<(), Error> {
    let names = desired.names();
    let mac = match side {
        Side::Host => names.host_mac,
        Side::Uplink => names.uplink_mac,
        Side::Tap => names.tap_mac,
    };
    let expected = Change {
        mac: Some(mac.0),
        mtu: Some(MTU),
        state: Some(State::Up),
        ..Change::default()
    };
    change(net, desired, side, expected).await
}

async fn change(
    net: &IsolatedNet,
    desired: &Desired,
    side: Side,
    change: Change,
) -> Result<(), Error> {
    let (netlink, index) = find(net, desired, side).await?;
    link::set(&netlink, index, &change).await
}

async fn add_address(
    net: &IsolatedNet,
    desired: &Desired,
    side: Side,
    address: Ipv4Network,
) -> Result<(), Error> {
    let (netlink, index) = find(net, desired, side).await?;
    let added = addr::add(
        &netlink,
        addr::Addr {
            index,
            net: address,
        },
    );
    exists_is_done(added.await)
}

async fn add_neighbour(
    net: &IsolatedNet,
    desired: &Desired,
    side: Side,
    ip: Ipv4Addr,
    mac: Mac,
) -> Result<(), Error> {
    let (netlink, index) = find(net, desired, side).await?;
    let neighbour = neigh::Neigh {
        index,
        ip,
        mac: mac.0,
    };
    neigh::replace(&netlink, neighbour).await
}

async fn add_block_route(
    net: &IsolatedNet,
    desired: &Desired,
    side: Side,
    block: Block,
) -> Result<(), Error> {
    let (netlink, index) = find(net, desired, side).await?;
    let route = route::Route::on_link(block.network(), index);
    exists_is_done(route::add(&netlink, &route).await)
}

async fn add_default_route(net: &IsolatedNet, desired: &Desired) -> Result<(), Error> {
    let (netlink, index) = find(net, desired, Side::Uplink).await?;
    exists_is_done(route::add(&netlink, &route::Route::default_via(NEXT_HOP, index)).await)
}

/// Returns the link on that side, and the netlink socket of its namespace.
async fn find(
    net: &IsolatedNet,
    desired: &Desired,
    side: Side,
) -> Result<(Handle, u32), host::Error> {
    let (netlink, name) = match side {
        Side::Host => (net.netlink.clone(), desired.names().host_link),
        Side::Uplink => (net.session.inside()?.netlink, UPLINK.to_owned()),
        Side::Tap => (net.session.inside()?.netlink, TAP.to_owned()),
    };
    let index = net.link_indexes.index(&netlink, &name, |_| Ok(())).await?;
    Ok((netlink, index))
}
