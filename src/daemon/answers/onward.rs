//! The state of the host that affects a packet after it has left a VM's namespace.
//! Out of scope: evaluation (`reconcile::explain`).

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::engine::Engine;
use crate::host::iptables::Translations;
use crate::host::rule::{Rule, TableName, Test};
use crate::host::{Error, link, route};
use crate::owner::{Instance, link_group};
use crate::reconcile::host_network::apart;

/// The observed state of the host.
pub(super) struct HostState {
    /// Subnets that daemons of this host block for isolated VMs.
    pub closed: Vec<Ipv4Network>,
    /// The VM's link that the route to the destination uses.
    pub neighbour: Option<String>,
    /// NAT tables of the host that may change the destination.
    pub translations: Vec<Translations>,
}

pub(super) async fn observe(engine: &Engine, destination: Ipv4Addr) -> Result<HostState, Error> {
    let host = &engine.host;
    let backend = host.backend.clone();
    let read = move || Ok((backend.translations()?, backend.read(&[TableName::Mangle])?));
    let (translations, mangle) = host.host_netns.run(read).await?;
    let of_a_daemon =
        |name: &str| Instance::from_chain(name).is_some_and(|of| of.chain(apart::ROLE) == name);
    let chains = mangle.tables().iter().flat_map(|table| &table.chains);
    let rules = chains
        .filter(|chain| of_a_daemon(&chain.name))
        .flat_map(|chain| &chain.rules);
    let closed = rules.filter_map(|rule| match rule {
        Rule::Known { when, .. } => match (when.in_group, when.dst) {
            (Some(_), Some(Test::Is(subnet))) => Some(subnet),
            _ => None,
        },
        Rule::Foreign(_) => None,
    });
    let closed = closed.collect();
    let route = route::lookup(&host.netlink, destination).await?;
    let neighbour = match route {
        Some((index, _)) => {
            let links = link::list(&host.netlink).await?;
            let found = links.into_iter().find(|link| link.index == index);
            found.filter(|link| link.group & link_group::MASK == link_group::ANY)
        }
        None => None,
    };
    Ok(HostState {
        closed,
        neighbour: neighbour.map(|link| link.name),
        translations,
    })
}
