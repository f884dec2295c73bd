//! Executes one step for the host's own rules and bridges.
//! Out of scope: which steps are executed.

use super::Ground;
use super::limits::{excess, timeouts_name};
use super::observe::{FORWARDING, look};
use super::plan::{Action, Commit, Desired};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::iptables::{self, Edit, Input, Lock};
use crate::host::link::{Change, Ipv6Addresses, Link, State};
use crate::host::routing_rule::{self, RoutingRule};
use crate::host::rule::TableName;
use crate::host::{Error, addr, bridge, conntrack, cttimeout, link, sysctl};
use crate::owner::{self, link_group};
use crate::reconcile::limits::{Limit, timeouts};
use crate::reconcile::net::{MTU, host_links};
use crate::store::Footing;

const TABLES: [TableName; 4] = [
    TableName::Raw,
    TableName::Mangle,
    TableName::Nat,
    TableName::Filter,
];

pub(super) async fn act(ground: &Ground, desired: &Desired, action: &Action) -> Result<(), Error> {
    match action {
        Action::EnableForwarding => ground.home.run(|| sysctl::write(FORWARDING, "1")).await,
        Action::AddRoutingRule(priority, to) => {
            let rule = RoutingRule::by_main(*priority, *to);
            exists_is_done(routing_rule::add(&ground.netlink, &rule).await)
        }
        Action::RemoveRoutingRule(priority, to) => {
            let rule = RoutingRule::by_main(*priority, *to);
            absent_is_done(routing_rule::delete(&ground.netlink, &rule).await)
        }
        Action::SetTimeouts => {
            let name = timeouts_name(&desired.instance);
            let set = move || cttimeout::set(&name, &timeouts());
            ground.home.run(set).await
        }
        Action::RemoveTimeouts => {
            let name = timeouts_name(&desired.instance);
            ground.home.run(move || cttimeout::delete(&name)).await
        }
        Action::Commit(commit) => {
            let input = Input::edits(&edits(commit));
            let backend = ground.backend.clone();
            let limit = desired.instance.chain("LIMIT");
            let is_limited = commit.write.iter().any(|(_, chain)| chain.name == limit);
            let footing = desired.footing.clone();
            let restore = move || {
                iptables::restore(&backend, &input, Lock::Shared)?;
                match is_limited && conntrack::count()? > 0 {
                    true => cut_excess(&footing),
                    false => Ok(()),
                }
            };
            let deadline = ground.backend.deadline;
            ground.home.run_for(deadline, restore).await
        }
        Action::CreateBridge(name) => create(ground, desired, name).await,
        Action::LabelBridge(name) => {
            let label = Change {
                alias: Some(desired.instance.ground_label().to_string()),
                ..Change::default()
            };
            change(ground, desired, name, label).await
        }
        Action::ConfigureBridge(name) => configure(ground, desired, name).await,
        Action::AddGateway(name, address) => {
            let index = find(ground, desired, name).await?.index;
            let address = addr::Addr {
                index,
                net: *address,
            };
            exists_is_done(addr::add(&ground.netlink, address).await)
        }
        Action::RemoveGateway(name, address) => {
            let index = find(ground, desired, name).await?.index;
            let address = addr::Addr {
                index,
                net: *address,
            };
            absent_is_done(addr::delete(&ground.netlink, address).await)
        }
        Action::RaiseBridge(name) => {
            let up = Change {
                state: Some(State::Up),
                ..Change::default()
            };
            change(ground, desired, name, up).await
        }
        Action::DeleteBridge(owned) => match find(ground, desired, owned.thing()).await {
            Ok(bridge) => absent_is_done(link::delete(&ground.netlink, bridge.index).await),
            Err(error) => absent_is_done(Err(error)),
        },
    }
}

/// Deletes the excess flows of the calling thread's namespace.
fn cut_excess(footing: &Footing) -> Result<(), Error> {
    let share = Limit::share(conntrack::max());
    conntrack::delete(&excess(footing, share, conntrack::list()?))
}

async fn create(ground: &Ground, desired: &Desired, name: &str) -> Result<(), Error> {
    let birth = bridge::Birth {
        name: name.to_owned(),
        mac: owner::bridge_mac(&desired.instance, name).0,
        mtu: MTU,
        group: link_group::BRIDGE,
    };
    exists_is_done(bridge::create(&ground.netlink, &birth).await)?;
    close(ground, desired, name).await
}

/// From here on the host accepts no configuration on the bridge. This applies to managed bridges; another bridge of that name is not
/// changed.
async fn close(ground: &Ground, desired: &Desired, name: &str) -> Result<(), Error> {
    find(ground, desired, name).await?;
    host_links::write_bridge(&ground.home, name)
}

async fn configure(ground: &Ground, desired: &Desired, name: &str) -> Result<(), Error> {
    let found = find(ground, desired, name).await?;
    let mac = owner::bridge_mac(&desired.instance, name).0;
    let right = Change {
        // If the same MAC is set again, the kernel also removes the bridge's permanent neighbours (`neigh_changeaddr`).
        mac: (found.mac != Some(mac)).then_some(mac),
        mtu: Some(MTU),
        group: Some(link_group::BRIDGE),
        ipv6_addresses: Some(Ipv6Addresses::Bare),
        master: Some(0),
        ..Change::default()
    };
    close(ground, desired, name).await?;
    change(ground, desired, name, right).await?;
    let bridge = find(ground, desired, name).await?;
    bridge::calm(
        &ground.netlink,
        bridge.index,
        bridge.bridge.unwrap_or_default(),
    )
    .await
}

async fn change(
    ground: &Ground,
    desired: &Desired,
    name: &str,
    change: Change,
) -> Result<(), Error> {
    let bridge = find(ground, desired, name).await?;
    link::set(&ground.netlink, bridge.index, &change).await
}

/// Returns the bridge if it is managed. Another program may have created a bridge of that name in the meantime.
async fn find(ground: &Ground, desired: &Desired, name: &str) -> Result<Link, Error> {
    let found = link::get(&ground.netlink, name).await?;
    let gone = || std::io::Error::from_raw_os_error(libc::ENODEV);
    let found = found.ok_or_else(|| Error::io("find bridge", name, gone()))?;
    match look(&found).owned(desired, name) {
        Some(_) => Ok(found),
        None => Err(Error::other("change bridge", name, "it is not ours")),
    }
}

/// One edit per table. A table without changes is omitted.
fn edits(commit: &Commit) -> Vec<Edit> {
    let edit = |table: TableName| {
        let chains = commit.write.iter().filter(|(t, _)| *t == table);
        let gone = commit.remove.iter().filter(|(t, _)| *t == table);
        let unjump = commit.unjump.iter().filter(|(t, _, _)| *t == table);
        let jumps = commit.jump.iter().filter(|jump| jump.table == table);
        Edit {
            chains: chains.map(|(_, chain)| chain.clone()).collect(),
            gone: gone.map(|(_, name)| name.clone()).collect(),
            remove: unjump
                .map(|(_, c, rule)| (c.clone(), rule.clone()))
                .collect(),
            on_top: jumps
                .flat_map(|jump| {
                    jump.rules
                        .iter()
                        .map(|rule| (jump.chain.clone(), rule.clone()))
                })
                .collect(),
            ..Edit::of(table)
        }
    };
    TABLES
        .into_iter()
        .map(edit)
        .filter(|edit| *edit != Edit::of(edit.table))
        .collect()
}
