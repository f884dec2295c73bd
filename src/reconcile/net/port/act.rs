//! Executes one step for a VM's bridge port.
//! Out of scope: which steps are executed, and in which order.

use super::Port;
use super::observe::describe;
use super::plan::{Action, Desired, Remains, Slot, is_ours};
use crate::api::network::TapOwner;
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, Ipv6Addresses, Link};
use crate::host::{Error, bridge, fdb, link, neigh, tap};
use crate::owner::link_group;
use crate::reconcile::net::{files, found, host_links};

pub(super) async fn act(port: &Port, desired: &Desired, action: &Action) -> Result<(), Error> {
    match (action, &desired.slot) {
        (Action::DeleteTap(owned), _) => delete_tap(port, owned.thing()).await,
        (Action::RenameTap(owned), _) => rename_tap(port, desired, owned.thing()).await,
        (Action::UnpinNeighbour(remains), _) => unpin_neighbour(port, desired, remains).await,
        (Action::RemoveRunDir, _) => files::remove(&desired.vm_dir()),
        (Action::WriteRecord, Some(slot)) => files::write_record(&desired.vm_dir(), &slot.record),
        (Action::CreateTap(owner), Some(slot)) => create_tap(port, desired, slot, *owner).await,
        (Action::Configure, Some(slot)) => configure(port, desired, slot).await,
        (Action::Enslave, Some(slot)) => enslave(port, desired, slot).await,
        (Action::SetPort, Some(slot)) => set_port(port, desired, slot).await,
        (Action::PinMac, Some(_)) => pin_mac(port, desired).await,
        (Action::PinNeighbour, Some(slot)) => pin_neighbour(port, desired, slot).await,
        (
            Action::WriteRecord
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

async fn delete_tap(port: &Port, name: &str) -> Result<(), Error> {
    port.found.forget();
    match link::get(&port.netlink, name).await? {
        None => Ok(()),
        Some(found) => absent_is_done(link::delete(&port.netlink, found.index).await),
    }
}

async fn rename_tap(port: &Port, desired: &Desired, name: &str) -> Result<(), Error> {
    port.found.forget();
    match link::get(&port.netlink, name).await? {
        None => Ok(()),
        Some(found) => absent_is_done(link::rename(&port.netlink, found.index, &desired.tap).await),
    }
}

async fn create_tap(
    port: &Port,
    desired: &Desired,
    slot: &Slot,
    owner: TapOwner,
) -> Result<(), Error> {
    let bridge = found::get(&port.netlink, &slot.bridge).await?;
    let seen = describe(&bridge);
    let owner = tap::Owner {
        uid: owner.uid,
        gid: owner.gid,
    };
    let born = Change {
        alias: Some(desired.label.to_string()),
        mac: Some(desired.names().port_mac.0),
        mtu: Some(bridge.mtu),
        master: is_ours(desired, slot, &seen).then_some(bridge.index),
        ipv6_addresses: Some(Ipv6Addresses::Bare),
        group: Some(link_group::PORT),
        ipv4: host_links::PORT_IPV4.to_vec(),
        ..Change::default()
    };
    let create = || {
        tap::create(&desired.tap, owner, &born)?;
        host_links::write_port(&port.home, &desired.tap)
    };
    let made = exists_is_done(port.home.run_here(create));
    made.map_err(|error| full(slot, error))
}

/// Port numbers have ten bits, and 0 is not used (`find_portno`, net/bridge/br_if.c).
fn full(slot: &Slot, error: Error) -> Error {
    match error.source.raw_os_error() {
        Some(libc::EXFULL) => Error::other(
            "add a port to bridge",
            &slot.bridge,
            "it has 1023 ports, and no bridge can have more",
        ),
        _ => error,
    }
}

async fn configure(port: &Port, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let right = Change {
        mac: Some(desired.names().port_mac.0),
        mtu: Some(found::get(&port.netlink, &slot.bridge).await?.mtu),
        ipv6_addresses: Some(Ipv6Addresses::Bare),
        group: Some(link_group::PORT),
        ipv4: host_links::PORT_IPV4.to_vec(),
        ..Change::default()
    };
    let tap = find_tap(port, desired).await?;
    link::set(&port.netlink, tap, &right).await?;
    host_links::write_port(&port.home, &desired.tap)
}

/// One at a time, so that each sees which MAC the bridge had before.
static ENSLAVING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A bridge without a MAC of its own takes the lowest MAC of its ports. Without other ports it would take the MAC of the first TAP, and
/// another one when that TAP is removed: its guests would lose their gateway each time. So it is set to the MAC that it had before.
async fn enslave(port: &Port, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let _one_at_a_time = ENSLAVING.lock().await;
    let before = found::get(&port.netlink, &slot.bridge).await?;
    let tap = found::get(&port.netlink, &desired.tap).await?;
    ours(desired, &tap)?;
    let under = Change {
        master: Some(before.index),
        ..Change::default()
    };
    let done = link::set(&port.netlink, tap.index, &under).await;
    done.map_err(|error| full(slot, error))?;
    let after = found::get(&port.netlink, &slot.bridge).await?;
    if after.mac == before.mac || after.mac != tap.mac {
        return Ok(());
    }
    let keep = Change {
        mac: before.mac,
        ..Change::default()
    };
    link::set(&port.netlink, before.index, &keep).await
}

async fn set_port(port: &Port, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let flags = bridge::Port {
        isolated: slot.isolated,
        learning: !slot.antispoof,
        unicast_flood: !slot.antispoof,
        guarded: true,
    };
    let tap = find_tap(port, desired).await?;
    bridge::set_port(&port.netlink, tap, flags).await
}

async fn pin_mac(port: &Port, desired: &Desired) -> Result<(), Error> {
    let tap = find_tap(port, desired).await?;
    let entry = fdb::Entry::sticky(tap, desired.names().guest_mac.0);
    fdb::replace(&port.netlink, entry).await
}

async fn pin_neighbour(port: &Port, desired: &Desired, slot: &Slot) -> Result<(), Error> {
    let pinned = neigh::Neigh {
        index: port
            .found
            .index(&port.netlink, &slot.bridge, |_| Ok(()))
            .await?,
        ip: slot.ip,
        mac: desired.names().guest_mac.0,
    };
    neigh::replace(&port.netlink, pinned).await
}

async fn unpin_neighbour(port: &Port, desired: &Desired, remains: &Remains) -> Result<(), Error> {
    let Some(bridge) = link::get(&port.netlink, &remains.bridge).await? else {
        return Ok(());
    };
    let pinned = neigh::Neigh {
        index: bridge.index,
        ip: remains.ip,
        mac: desired.names().guest_mac.0,
    };
    absent_is_done(neigh::delete(&port.netlink, pinned).await)
}

/// Returns the TAP's index, if it is ours: another program may have created a link of that name in the meantime.
async fn find_tap(port: &Port, desired: &Desired) -> Result<u32, Error> {
    let check = |tap: &Link| ours(desired, tap);
    port.found.index(&port.netlink, &desired.tap, check).await
}

fn ours(desired: &Desired, tap: &Link) -> Result<(), Error> {
    match desired.label.claim((), tap.alias.as_deref()) {
        Some(_) => Ok(()),
        None => Err(Error::other("change link", &desired.tap, "it is not ours")),
    }
}
