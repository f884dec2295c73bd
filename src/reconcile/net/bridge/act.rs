//! Executes one step for a VM's bridge port.
//! Out of scope: which steps are executed, and in which order.

use super::BridgeNet;
use super::observe::describe;
use super::plan::{Action, Desired, Location, Slot, is_managed_bridge};
use crate::api::network::TapOwner;
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, Ipv6Addresses, Link};
use crate::host::{Error, bridge, fdb, link, neigh, tap};
use crate::owner::link_group;
use crate::reconcile::net::{files, found, host_links};

pub(super) async fn act(
    bridge_net: &BridgeNet,
    desired: &Desired,
    action: &Action,
) -> Result<(), Error> {
    match (action, &desired.slot) {
        (Action::DeleteTap(owned), _) => delete_tap(bridge_net, owned.resource()).await,
        (Action::RenameTap(owned), _) => rename_tap(bridge_net, desired, owned.resource()).await,
        (Action::UnpinNeighbour(remains), _) => unpin_neighbour(bridge_net, desired, remains).await,
        (Action::RemoveRunDir, _) => files::remove(&desired.vm_dir()),
        (Action::WriteRecord | Action::UpdateRecord, Some(slot)) => {
            files::write_record(&desired.vm_dir(), &slot.record)
        }
        (Action::CreateTap(owner), Some(slot)) => {
            create_tap(bridge_net, desired, slot, *owner).await
        }
        (Action::Configure, Some(slot)) => configure(bridge_net, desired, slot).await,
        (Action::Enslave, Some(slot)) => enslave(bridge_net, desired, slot).await,
        (Action::SetPort, Some(slot)) => set_port(bridge_net, desired, slot).await,
        (Action::PinMac, Some(_)) => pin_mac(bridge_net, desired).await,
        (Action::PinNeighbour, Some(slot)) => pin_neighbour(bridge_net, desired, slot).await,
        (
            Action::WriteRecord
            | Action::UpdateRecord
            | Action::CreateTap(_)
            | Action::Configure
            | Action::Enslave
            | Action::SetPort
            | Action::PinMac
            | Action::PinNeighbour,
            None,
        ) => Ok(()),
    }
}

async fn delete_tap(bridge_net: &BridgeNet, name: &str) -> Result<(), Error> {
    bridge_net.link_indexes.clear();
    match link::get(&bridge_net.netlink, name).await? {
        None => Ok(()),
        Some(found) => absent_is_done(link::delete(&bridge_net.netlink, found.index).await),
    }
}

async fn rename_tap(bridge_net: &BridgeNet, desired: &Desired, name: &str) -> Result<(), Error> {
    bridge_net.link_indexes.clear();
    match link::get(&bridge_net.netlink, name).await? {
        None => Ok(()),
        Some(found) => {
            absent_is_done(link::rename(&bridge_net.netlink, found.index, &desired.tap).await)
        }
    }
}

async fn create_tap(
    bridge_net: &BridgeNet,
    desired: &Desired,
    slot: &Slot,
    owner: TapOwner,
) -> Result<(), Error> {
    let bridge = found::get(&bridge_net.netlink, &slot.bridge).await?;
    let seen = describe(&bridge);
    let owner = tap::Owner {
        uid: owner.uid,
        gid: owner.gid,
    };
    let attributes = Change {
        alias: Some(desired.label.to_string()),
        mac: Some(desired.names().port_mac.0),
        mtu: Some(bridge.mtu),
        master: is_managed_bridge(desired, slot, &seen).then_some(bridge.index),
        ipv6_addresses: Some(Ipv6Addresses::None),
        group: Some(link_group::PORT),
        ipv4: host_links::PORT_IPV4.to_vec(),
        ..Change::default()
    };
    let create = || {
        tap::create(&desired.tap, owner, &attributes)?;
        host_links::write_port(&bridge_net.home, &desired.tap)
    };
    let created = exists_is_done(bridge_net.home.run_here(create));
    created.map_err(|error| port_limit_error(slot, error))
}

/// Port numbers have ten bits, and 0 is not used (`find_portno`, net/bridge/br_if.c).
fn port_limit_error(slot: &Slot, error: Error) -> Error {
    match error.source.raw_os_error() {
        Some(libc::EXFULL) => Error::other(
            "add a port to bridge",
            &slot.bridge,
            "it has 1023 ports, and no bridge can have more",
        ),
        _ => error,
    }
}

async fn configure(bridge_net: &BridgeNet, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let expected = Change {
        mac: Some(desired.names().port_mac.0),
        mtu: Some(found::get(&bridge_net.netlink, &slot.bridge).await?.mtu),
        ipv6_addresses: Some(Ipv6Addresses::None),
        group: Some(link_group::PORT),
        ipv4: host_links::PORT_IPV4.to_vec(),
        ..Change::default()
    };
    let tap = find_tap(bridge_net, desired).await?;
    link::set(&bridge_net.netlink, tap, &expected).await?;
    host_links::write_port(&bridge_net.home, &desired.tap)
}

/// One at a time, so that each sees which MAC the bridge had before.
static ENSLAVING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A bridge without a MAC of its own takes the lowest MAC of its ports. Without other ports it would take the MAC of the first TAP, and
/// another one when that TAP is removed: its guests would lose their gateway each time. So it is set to the MAC that it had before.
async fn enslave(bridge_net: &BridgeNet, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let _one_at_a_time = ENSLAVING.lock().await;
    let before = found::get(&bridge_net.netlink, &slot.bridge).await?;
    let tap = found::get(&bridge_net.netlink, &desired.tap).await?;
    check_ours(desired, &tap)?;
    let under = Change {
        master: Some(before.index),
        ..Change::default()
    };
    let done = link::set(&bridge_net.netlink, tap.index, &under).await;
    done.map_err(|error| port_limit_error(slot, error))?;
    let after = found::get(&bridge_net.netlink, &slot.bridge).await?;
    if after.mac == before.mac || after.mac != tap.mac {
        return Ok(());
    }
    let keep = Change {
        mac: before.mac,
        ..Change::default()
    };
    link::set(&bridge_net.netlink, before.index, &keep).await
}

async fn set_port(bridge_net: &BridgeNet, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let flags = bridge::Port {
        isolated: slot.isolated,
        learning: !slot.antispoof,
        unicast_flood: !slot.antispoof,
        protected: true,
    };
    let tap = find_tap(bridge_net, desired).await?;
    bridge::set_port(&bridge_net.netlink, tap, flags).await
}

async fn pin_mac(bridge_net: &BridgeNet, desired: &Desired) -> Result<(), Error> {
    let tap = find_tap(bridge_net, desired).await?;
    let entry = fdb::Entry::sticky(tap, desired.names().guest_mac.0);
    fdb::replace(&bridge_net.netlink, entry).await
}

async fn pin_neighbour(
    bridge_net: &BridgeNet,
    desired: &Desired,
    slot: &Slot,
) -> Result<(), Error> {
    let neighbour = neigh::Neigh {
        index: bridge_net
            .link_indexes
            .index(&bridge_net.netlink, &slot.bridge, |_| Ok(()))
            .await?,
        ip: slot.ip,
        mac: desired.names().guest_mac.0,
    };
    neigh::replace(&bridge_net.netlink, neighbour).await
}

async fn unpin_neighbour(
    bridge_net: &BridgeNet,
    desired: &Desired,
    location: &Location,
) -> Result<(), Error> {
    let Some(bridge) = link::get(&bridge_net.netlink, &location.bridge).await? else {
        return Ok(());
    };
    let neighbour = neigh::Neigh {
        index: bridge.index,
        ip: location.ip,
        mac: desired.names().guest_mac.0,
    };
    absent_is_done(neigh::delete(&bridge_net.netlink, neighbour).await)
}

/// Returns the TAP's index, if it is ours: another program may have created a link of that name in the meantime.
async fn find_tap(bridge_net: &BridgeNet, desired: &Desired) -> Result<u32, Error> {
    let check = |tap: &Link| check_ours(desired, tap);
    bridge_net
        .link_indexes
        .index(&bridge_net.netlink, &desired.tap, check)
        .await
}

fn check_ours(desired: &Desired, tap: &Link) -> Result<(), Error> {
    match desired.label.claim((), tap.alias.as_deref()) {
        Some(_) => Ok(()),
        None => Err(Error::other("change link", &desired.tap, "it is not ours")),
    }
}
