//! Conflicts between what VMs of different CNI groups request: host ports, addresses and MACs.
//! Out of scope: other listeners and containers on the host; conflicts within one group or one VM ([`CniOptions::objections`]).
//!
//! # Why
//! The portmap plugin accepts the same host port twice without an error and serves one of the two mappings. The `static` IPAM plugin keeps
//! no state, so it assigns the same address twice; no plugin compares MACs.
//!
//! [`CniOptions::objections`]: super::super::cni::CniOptions::objections

use std::net::Ipv4Addr;

use super::super::cni::{CniOptions, PortMapping};
use super::super::host_group::HostGroup;
use super::super::manifest::{Draft, Problem};
use super::super::meta::Name;
use super::super::network::{CniSpec, Mac, NetworkSpec};
use super::Definition;

/// A resource that a VM or group requests exclusively.
#[derive(Clone, Copy)]
enum Request<'a> {
    Port(&'a PortMapping),
    /// The name of the CNI network, and the address.
    Ip(&'a str, Ipv4Addr),
    Mac(&'a str, Mac),
}

impl Request<'_> {
    fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Port(one), Self::Port(other)) => one.conflicts_with(other),
            (Self::Ip(one, ip), Self::Ip(other, taken)) => (one, ip) == (other, taken),
            (Self::Mac(one, mac), Self::Mac(other, taken)) => (one, mac) == (other, taken),
            (Self::Port(_) | Self::Ip(..) | Self::Mac(..), _) => false,
        }
    }

    fn refusal(&self, owner: &str) -> String {
        match self {
            Self::Port(mapping) => {
                let (port, protocol) = (mapping.host_port, mapping.protocol);
                format!("host port {port}/{protocol} is already mapped by {owner}")
            }
            Self::Ip(network, ip) => {
                format!("address {ip} of CNI network `{network}` is already requested by {owner}")
            }
            Self::Mac(network, mac) => {
                format!("MAC {mac} in CNI network `{network}` is already requested by {owner}")
            }
        }
    }
}

/// The request of an existing group or VM.
pub(super) struct Requested<'a> {
    what: Request<'a>,
    group: &'a Name,
    /// A VM made on demand; `None`: the VMs that the group's `count` covers.
    vm: Option<&'a Name>,
    definition: Option<Definition<'a>>,
}

impl Requested<'_> {
    fn owner(&self) -> String {
        let group = self.group;
        match (self.vm, self.definition) {
            (Some(vm), _) => format!("vm/{vm}"),
            (None, Some(place)) => format!("group \"{group}\" {}", place.describe()),
            (None, None) => format!("hostgroup/{group}"),
        }
    }
}

/// The requests of the VMs that a group's `count` covers.
pub(super) fn group_requests<'a>(
    group: &'a Name,
    spec: &'a CniSpec,
    definition: Option<Definition<'a>>,
) -> impl Iterator<Item = Requested<'a>> {
    requests(&spec.network_name, &spec.cni).map(move |request| Requested {
        what: request,
        group,
        vm: None,
        definition,
    })
}

/// The requests of the group's VMs that were made on demand.
pub(super) fn on_demand_requests(group: &HostGroup) -> impl Iterator<Item = Requested<'_>> {
    let network = cni(&group.spec.template.network);
    let entries = group.orders.values().map(move |entry| (entry, network));
    entries.flat_map(|(entry, network)| {
        let network = network.map_or("", |spec| &spec.network_name);
        requests(network, &entry.overrides.cni).map(|request| Requested {
            what: request,
            group: &group.meta.name,
            vm: Some(&entry.name),
            definition: None,
        })
    })
}

/// The first conflict of `draft` with existing requests, if any. VMs made on demand in the same group are not compared:
/// [`on_demand_problems`](super::on_demand_problems) does that.
pub(super) fn conflict(existing: &[Requested], draft: &Draft, spec: &CniSpec) -> Option<Problem> {
    let message = requests(&spec.network_name, &spec.cni).find_map(|request| {
        let others = existing.iter().filter(|other| *other.group != draft.name);
        first_conflict(others, &request)
    })?;
    Some(draft.problem("cni", message))
}

/// The first conflict of the requests of a VM made on demand, in a group with `network`, with all groups and all other such VMs.
pub fn request_conflict<'a>(
    groups: impl Iterator<Item = &'a HostGroup>,
    network: &NetworkSpec,
    options: &CniOptions,
) -> Option<String> {
    let network = &cni(network)?.network_name;
    let in_force = groups.filter(|group| !group.meta.deleting);
    let existing: Vec<Requested> = in_force
        .flat_map(|group| {
            let spec = cni(&group.spec.template.network).filter(|_| group.spec.count > 0);
            let own = spec.map(|spec| group_requests(&group.meta.name, spec, None));
            own.into_iter().flatten().chain(on_demand_requests(group))
        })
        .collect();
    requests(network, options).find_map(|request| first_conflict(existing.iter(), &request))
}

fn first_conflict<'a>(
    mut taken: impl Iterator<Item = &'a Requested<'a>>,
    what: &Request,
) -> Option<String> {
    let other = taken.find(|other| other.what.conflicts(what))?;
    Some(what.refusal(&other.owner()))
}

fn requests<'a>(network: &'a str, options: &'a CniOptions) -> impl Iterator<Item = Request<'a>> {
    let ports = options.port_mappings.iter().map(Request::Port);
    let ips = options.ips.iter();
    let ips = ips.map(move |requested| Request::Ip(network, requested.ip));
    let mac = options.mac.map(|mac| Request::Mac(network, mac));
    ports.chain(ips).chain(mac)
}

fn cni(network: &NetworkSpec) -> Option<&CniSpec> {
    match network {
        NetworkSpec::Cni(spec) => Some(spec),
        NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => None,
    }
}
