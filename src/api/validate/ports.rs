//! Ports of the host that CNI groups map to their VMs, beside each other.
//! Out of scope: who else listens on the host; mappings of one group or one VM ([`CniOptions::objections`]).
//!
//! # Why
//! The portmap plugin takes a port twice without a word, and serves the mapping that came first.
//!
//! [`CniOptions::objections`]: super::super::cni::CniOptions::objections

use super::super::cni::PortMapping;
use super::super::host_group::HostGroup;
use super::super::manifest::{Draft, Problem};
use super::super::network::NetworkSpec;
use super::Place;

/// A port that is taken.
pub(super) struct Mapped<'a> {
    pub mapping: &'a PortMapping,
    /// `group "web"`, `vm/own`.
    pub owner: String,
    pub place: Option<Place<'a>>,
}

impl Mapped<'_> {
    fn describe(&self) -> String {
        match self.place {
            Some(place) => format!("{} {}", self.owner, place.describe()),
            None => self.owner.clone(),
        }
    }
}

/// What speaks against `draft`, while these are taken: the first is enough.
pub(super) fn objection(taken: &[Mapped], draft: &Draft, ports: &[PortMapping]) -> Option<Problem> {
    let taken_by = |mapping: &PortMapping| {
        let other = taken
            .iter()
            .find(|taken| taken.mapping.is_the_port_of(mapping))?;
        Some(words(mapping, &other.describe()))
    };
    let message = ports.iter().find_map(taken_by)?;
    Some(draft.problem("cni", message))
}

/// The ports of VMs that were made on demand.
pub(super) fn of_orders(group: &HostGroup) -> impl Iterator<Item = Mapped<'_>> {
    group.orders.values().flat_map(|order| {
        let ports = order.ask.cni.port_mappings.iter();
        ports.map(|mapping| Mapped {
            mapping,
            owner: format!("vm/{}", order.name),
            place: None,
        })
    })
}

/// What speaks against these ports of a VM that is made on demand, beside all groups and all other such VMs.
pub fn objection_to_ports<'a>(
    groups: impl Iterator<Item = &'a HostGroup>,
    ports: &[PortMapping],
) -> Option<String> {
    let taken = groups
        .filter(|group| !group.meta.deleting)
        .flat_map(|group| {
            let of_group = of_network(&group.spec.template.network).iter();
            let of_group = of_group.map(|mapping| Mapped {
                mapping,
                owner: format!("hostgroup/{}", group.meta.name),
                place: None,
            });
            of_group.chain(of_orders(group))
        });
    let taken: Vec<Mapped> = taken.collect();
    ports.iter().find_map(|mapping| {
        let other = taken
            .iter()
            .find(|taken| taken.mapping.is_the_port_of(mapping))?;
        Some(words(mapping, &other.owner))
    })
}

/// The ports that a group's own VMs have.
pub(super) fn of_network(network: &NetworkSpec) -> &[PortMapping] {
    match network {
        NetworkSpec::Cni(spec) => &spec.cni.port_mappings,
        NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => &[],
    }
}

fn words(mapping: &PortMapping, owner: &str) -> String {
    let (port, protocol) = (mapping.host_port, mapping.protocol);
    format!("port {port}/{protocol} of the host leads to {owner} already")
}
