//! Executes one step for the host's own rules and bridges.
//! Out of scope: which steps are executed.

use ipnetwork::Ipv4Network;

use super::HostNetwork;
use super::limits::{excess, timeouts_name};
use super::observe::{FORWARDING, describe};
use super::state::{Action, Commit, Desired};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::iptables::{self, Edit, Input, Lock};
use crate::host::link::{Change, Ipv6Addresses, Link, State};
use crate::host::routing_rule::{self, RoutingRule};
use crate::host::rule::TableName;
use crate::host::{Error, addr, bridge, conntrack, cttimeout, link, sysctl};
use crate::owner::{self, link_group};
use crate::reconcile::limits::{Limit, timeouts};
use crate::reconcile::net::{MTU, host_links};
use crate::store::HostRequirements;

const TABLES: [TableName; 4] = [
    TableName::Raw,
    TableName::Mangle,
    TableName::Nat,
    TableName::Filter,
];

pub(super) async fn act(
    host_network: &HostNetwork,
    desired: &Desired,
    action: &Action,
) -> Result<(), Error> {
    match action {
        Action::EnableForwarding => {
            host_network
                .home
                .run(|| sysctl::write(FORWARDING, "1"))
                .await
        }
        Action::AddRoutingRule(priority, to) => {
            let rule = RoutingRule::via_main_table(*priority, *to);
            exists_is_done(routing_rule::add(&host_network.netlink, &rule).await)
        }
        Action::RemoveRoutingRule(priority, to) => {
            let rule = RoutingRule::via_main_table(*priority, *to);
            absent_is_done(routing_rule::delete(&host_network.netlink, &rule).await)
        }
        Action::SetTimeouts => {
            let name = timeouts_name(&desired.instance);
            let set = move || cttimeout::set(&name, &timeouts());
            host_network.home.run(set).await
        }
        Action::RemoveTimeouts => {
            let name = timeouts_name(&desired.instance);
            host_network
                .home
                .run(move || cttimeout::delete(&name))
                .await
        }
        Action::Commit(commit) => {
            let input = Input::edits(&edits(commit));
            let backend = host_network.backend.clone();
            let limit = desired.instance.chain("LIMIT");
            let is_limited = commit
                .write_chains
                .iter()
                .any(|(_, chain)| chain.name == limit);
            let requirements = desired.requirements.clone();
            let restore = move || {
                iptables::restore(&backend, &input, Lock::Shared)?;
                match is_limited && conntrack::count()? > 0 {
                    true => delete_excess_flows(&requirements),
                    false => Ok(()),
                }
            };
            let deadline = host_network.backend.timeout;
            host_network.home.run_for(deadline, restore).await
        }
        Action::CreateBridge(name) => create_bridge(host_network, desired, name).await,
        Action::LabelBridge(name) => {
            let label = Change {
                alias: Some(desired.instance.host_network_label().to_string()),
                ..Change::default()
            };
            change_bridge(host_network, desired, name, label).await
        }
        Action::ConfigureBridge(name) => configure_bridge(host_network, desired, name).await,
        Action::AddGateway(name, address) => {
            let address = on_bridge(host_network, desired, name, *address).await?;
            exists_is_done(addr::add(&host_network.netlink, address).await)
        }
        Action::RemoveGateway(name, address) => {
            let address = on_bridge(host_network, desired, name, *address).await?;
            absent_is_done(addr::delete(&host_network.netlink, address).await)
        }
        Action::SetBridgeUp(name) => {
            let up = Change {
                state: Some(State::Up),
                ..Change::default()
            };
            change_bridge(host_network, desired, name, up).await
        }
        Action::DeleteBridge(owned) => {
            match find_managed_bridge(host_network, desired, owned.resource()).await {
                Ok(bridge) => {
                    absent_is_done(link::delete(&host_network.netlink, bridge.index).await)
                }
                Err(error) => absent_is_done(Err(error)),
            }
        }
    }
}

/// Deletes the excess flows of the calling thread's namespace.
fn delete_excess_flows(requirements: &HostRequirements) -> Result<(), Error> {
    let share = Limit::default_for(conntrack::max());
    conntrack::delete(&excess(requirements, share, conntrack::list()?))
}

async fn create_bridge(
    host_network: &HostNetwork,
    desired: &Desired,
    name: &str,
) -> Result<(), Error> {
    let params = bridge::NewBridge {
        name: name.to_owned(),
        mac: owner::bridge_mac(&desired.instance, name).0,
        mtu: MTU,
        group: link_group::BRIDGE,
    };
    exists_is_done(bridge::create(&host_network.netlink, &params).await)?;
    write_bridge_settings(host_network, desired, name).await
}

/// From here on the host accepts no configuration on the bridge. This applies to managed bridges; another bridge of that name is not
/// changed.
async fn write_bridge_settings(
    host_network: &HostNetwork,
    desired: &Desired,
    name: &str,
) -> Result<(), Error> {
    find_managed_bridge(host_network, desired, name).await?;
    host_links::write_bridge(&host_network.home, name)
}

async fn configure_bridge(
    host_network: &HostNetwork,
    desired: &Desired,
    name: &str,
) -> Result<(), Error> {
    let found = find_managed_bridge(host_network, desired, name).await?;
    let mac = owner::bridge_mac(&desired.instance, name).0;
    let expected = Change {
        // If the same MAC is set again, the kernel also removes the bridge's permanent neighbours (`neigh_changeaddr`).
        mac: (found.mac != Some(mac)).then_some(mac),
        mtu: Some(MTU),
        group: Some(link_group::BRIDGE),
        ipv6_addresses: Some(Ipv6Addresses::None),
        master: Some(0),
        ..Change::default()
    };
    write_bridge_settings(host_network, desired, name).await?;
    change_bridge(host_network, desired, name, expected).await?;
    let bridge = find_managed_bridge(host_network, desired, name).await?;
    bridge::calm(
        &host_network.netlink,
        bridge.index,
        bridge.bridge.unwrap_or_default(),
    )
    .await
}

async fn change_bridge(
    host_network: &HostNetwork,
    desired: &Desired,
    name: &str,
    change: Change,
) -> Result<(), Error> {
    let bridge = find_managed_bridge(host_network, desired, name).await?;
    link::set(&host_network.netlink, bridge.index, &change).await
}

/// Returns this address on a managed bridge.
async fn on_bridge(
    host_network: &HostNetwork,
    desired: &Desired,
    name: &str,
    net: Ipv4Network,
) -> Result<addr::Addr, Error> {
    let bridge = find_managed_bridge(host_network, desired, name).await?;
    Ok(addr::Addr {
        index: bridge.index,
        net,
    })
}

/// Returns the bridge if it is managed. Another program may have created a bridge of that name in the meantime.
async fn find_managed_bridge(
    host_network: &HostNetwork,
    desired: &Desired,
    name: &str,
) -> Result<Link, Error> {
    let found = link::get(&host_network.netlink, name).await?;
    let not_found = || std::io::Error::from_raw_os_error(libc::ENODEV);
    let found = found.ok_or_else(|| Error::io("find bridge", name, not_found()))?;
    match describe(&found).owned(desired, name) {
        Some(_) => Ok(found),
        None => Err(Error::other("change bridge", name, "it is not ours")),
    }
}

/// One edit per table. A table without changes is omitted.
fn edits(commit: &Commit) -> Vec<Edit> {
    let edit = |table: TableName| {
        let chains = commit.write_chains.iter().filter(|(t, _)| *t == table);
        let not_found = commit.remove_chains.iter().filter(|(t, _)| *t == table);
        let unjump = commit.remove_jumps.iter().filter(|(t, _, _)| *t == table);
        let jumps = commit
            .insert_jumps
            .iter()
            .filter(|jump| jump.table == table);
        Edit {
            chains: chains.map(|(_, chain)| chain.clone()).collect(),
            delete: not_found.map(|(_, name)| name.clone()).collect(),
            remove: unjump
                .map(|(_, c, rule)| (c.clone(), rule.clone()))
                .collect(),
            insert_top: jumps
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
