//! Nodes with what they report and what is used of them; the subnets of groups on nodes.
//! Out of scope: changing them ([`super::node_actions`]).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Error, Snapshot};
use crate::api::meta::{Name, Timestamp, Uid};
use crate::api::placement::Labels;
use crate::api::view::{
    FleetList, FleetNode, FleetNodeState, FleetNodeStatus, FleetSubnet, NodeResources, NodeVm,
};
use crate::fleet::object::{NodeStatus, Resources, Vm};
use crate::fleet::schedule;

/// All nodes, or that of this name.
pub fn nodes(snapshot: &Snapshot, name: Option<&Name>) -> FleetList<FleetNode> {
    let mut used: BTreeMap<&Name, (usize, NodeResources)> = BTreeMap::new();
    for stored in snapshot.vms.values() {
        for (node, resources) in copies(&stored.value) {
            let (vms, sum) = used.entry(node).or_default();
            *vms += 1;
            add(sum, resources);
        }
    }
    let names = snapshot.node_names().into_iter();
    let selected = names.filter(|node| name.is_none_or(|name| *node == name));
    FleetList {
        items: selected
            .map(|node| {
                let (vms, used) = used.get(node).copied().unwrap_or_default();
                view(snapshot, node, vms, used)
            })
            .collect(),
        unreadable: snapshot.unreadable.clone(),
    }
}

/// The nodes that may have a copy of a VM, with what the copy uses.
fn copies(vm: &Vm) -> impl Iterator<Item = (&Name, &Resources)> {
    let binding = vm.binding.iter();
    let bound = binding.map(|binding| (&binding.node, &binding.resources));
    let moving = vm.binding.iter().flat_map(|binding| &binding.moving_from);
    let moving = moving.map(|moving| (&moving.node, &moving.resources));
    let previous = vm.previous.iter().map(|copy| (&copy.node, &copy.resources));
    bound.chain(moving).chain(previous)
}

fn add(sum: &mut NodeResources, more: &Resources) {
    let more = amounts(more);
    sum.vcpus = sum.vcpus.saturating_add(more.vcpus);
    sum.ram_bytes = sum.ram_bytes.saturating_add(more.ram_bytes);
    sum.disk_bytes = sum.disk_bytes.saturating_add(more.disk_bytes);
    sum.isolated = sum.isolated.saturating_add(more.isolated);
    sum.bridge_ports = sum.bridge_ports.saturating_add(more.bridge_ports);
}

fn amounts(resources: &Resources) -> NodeResources {
    let Resources {
        vcpus,
        ram_bytes,
        disk_bytes,
        isolated,
        bridge_ports,
    } = *resources;
    NodeResources {
        vcpus,
        ram_bytes,
        disk_bytes,
        isolated,
        bridge_ports,
    }
}

fn view(snapshot: &Snapshot, name: &Name, vms: usize, used: NodeResources) -> FleetNode {
    let admin = snapshot.nodes.get(name).map(|stored| &stored.value);
    let status = snapshot.node_statuses.get(name).map(|stored| &stored.value);
    let drain = admin.and_then(|admin| admin.drain);
    let gone = admin.and_then(|admin| admin.gone.as_ref());
    let mut states = vec![match snapshot.alive.contains(name) {
        true => FleetNodeState::Ready,
        false => FleetNodeState::Unknown,
    }];
    if admin.is_some_and(|admin| admin.unschedulable) {
        states.push(FleetNodeState::SchedulingDisabled);
    }
    if drain.is_some() {
        states.push(FleetNodeState::Draining);
    }
    if gone.is_some() {
        states.push(FleetNodeState::Gone);
    }
    let mut labels: Labels = status.map(|it| it.labels.clone()).unwrap_or_default();
    labels.extend(admin.map(|it| it.labels.clone()).unwrap_or_default());
    FleetNode {
        name: name.clone(),
        states,
        delete_local: drain.is_some_and(|drain| drain.delete_local),
        gone_at: gone.map(|gone| gone.at),
        labels,
        vms,
        used,
        status: status.map(report),
    }
}

fn report(status: &NodeStatus) -> FleetNodeStatus {
    FleetNodeStatus {
        architecture: status.architecture.clone(),
        hypervisors: status.hypervisors.clone(),
        capacity: amounts(&status.capacity),
        allocatable: amounts(&status.allocatable),
        version: status.version.clone(),
        api: status.api.clone(),
        boot_id: status.boot_id.clone(),
    }
}

/// The VMs that may have a copy on a node, each with the reason why the scheduler leaves it there: what the scheduler itself decides
/// for these objects.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] while a VM cannot be read: it may be on the node.
pub fn node_vms(snapshot: Snapshot, node: &Name, now: Timestamp) -> Result<Vec<NodeVm>, Error> {
    if !snapshot.node_names().contains(node) {
        return Err(Error::NotFound(format!("node/{node}")));
    }
    if let Some(value) = snapshot.unreadable_vm() {
        return Err(Error::conflict(format!(
            "which VMs node/{node} has is not known: {value}"
        )));
    }
    let vms = snapshot.vms.values().map(|stored| &stored.value);
    let on_node = vms.filter(|vm| copies(vm).any(|(other, _)| other == node));
    let names: Vec<Name> = on_node.map(|vm| vm.meta.name.clone()).collect();
    // Values of a node stop no other one.
    let mut unreadable = snapshot.unreadable.iter();
    let of_fleet = unreadable.find(|value| !value.is_of_node());
    let reasons: BTreeMap<Name, String> = match of_fleet {
        Some(value) => {
            let reason = format!(
                "the scheduler changes nothing while {} cannot be read",
                value.key
            );
            names
                .iter()
                .map(|name| (name.clone(), reason.clone()))
                .collect()
        }
        None => {
            let plan = schedule::plan(&snapshot.into_view(now), &mut Uid::random);
            let blocked = plan.blocked.into_iter();
            let here = blocked.filter(|blocked| blocked.node == *node);
            here.map(|blocked| (blocked.vm, blocked.reason)).collect()
        }
    };
    let vm = |name: Name| NodeVm {
        stays: reasons.get(&name).cloned(),
        name,
    };
    Ok(names.into_iter().map(vm).collect())
}

/// The subnets of groups in bridge mode on nodes.
pub fn subnets(snapshot: &Snapshot) -> FleetList<FleetSubnet> {
    let mut items = Vec::new();
    for (group, nodes) in &snapshot.ranges {
        items.extend(nodes.iter().map(|(node, found)| FleetSubnet {
            group: group.clone(),
            node: node.clone(),
            subnet: found.subnet,
            via: address(snapshot, node),
        }));
    }
    FleetList {
        items,
        unreadable: snapshot.unreadable.clone(),
    }
}

/// The address in the URL of a node's API, as the node reports it; `None` if it is not the address of a host.
fn address(snapshot: &Snapshot, node: &Name) -> Option<Ipv4Addr> {
    address_in(snapshot.node_statuses.get(node)?.value.api.as_deref()?)
}

fn address_in(url: &str) -> Option<Ipv4Addr> {
    let authority = url.strip_prefix("https://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().ok().map(|_| host)?,
        None => authority,
    };
    let address: Ipv4Addr = host.parse().ok()?;
    let is_of_host = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_broadcast();
    is_of_host.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_of_a_host_is_taken_from_the_url_that_a_node_reports() {
        for (url, expected) in [
            ("https://10.0.0.7:8080", Some([10, 0, 0, 7])),
            ("https://10.0.0.7", Some([10, 0, 0, 7])),
            ("https://10.0.0.7:8080/", Some([10, 0, 0, 7])),
            ("http://10.0.0.7:8080", None),
            ("https://node-a:8080", None),
            ("https://[2001:db8::1]:8080", None),
            ("https://0.0.0.0:8080", None),
            ("https://127.0.0.1:8080", None),
            ("https://224.0.0.1:8080", None),
            ("https://10.0.0.7;reboot:8080", None),
            ("https://10.0.0.7 dev eth0:8080", None),
            ("https://10.0.0.7\nreboot\n:8080", None),
            ("https://$(reboot):8080", None),
            ("https://10.0.0.7:8080;reboot", None),
            ("https://user@10.0.0.7:8080", None),
            ("https://10.0.0.7:8080/;reboot", None),
            ("", None),
        ] {
            assert_eq!(address_in(url), expected.map(Ipv4Addr::from), "{url}");
        }
    }
}
