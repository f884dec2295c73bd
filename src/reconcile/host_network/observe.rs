//! Observes the rules in the host's own tables, and the bridges.
//! Out of scope: what is desired.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use tracing::debug;

use super::limits::timeouts_name;
use super::state::{BridgeSeen, Desired, Observed};
use super::{HostNetwork, Scope, drops, plan, rules};
use crate::api::lease::subnet;
use crate::api::network::{Block, Mac};
use crate::host::iptables::{Flavour, builtin_chains, legacy_drops_forwarded};
use crate::host::link::Link;
use crate::host::rule::{Ruleset, TableName};
use crate::host::{self, addr, bridge, conntrack, cttimeout, link, route, routing_rule, sysctl};
use crate::owner::{Instance, link_group};
use crate::reconcile::limits::Timeouts;
use crate::reconcile::net::host_links;

/// The host's forwarding switch. We turn it on but never off, because other programs may need it.
pub(super) const FORWARDING: &str = "net.ipv4.ip_forward";

pub(super) async fn observe(
    host_network: &HostNetwork,
    desired: &Desired,
) -> Result<Observed, host::Error> {
    let backend = host_network.backend.clone();
    let bridges = observe_bridges(host_network, desired).await?;
    let listed = link::list_bridges(&host_network.netlink).await?;
    let on_link = observe_on_link(host_network, &listed).await?;
    let uplink = observe_uplink(host_network).await?;
    let foreign = foreign_bridges(&listed, uplink.as_ref());
    let warnings = match &uplink {
        Some(uplink) => warnings(host_network, uplink).await?,
        None => Vec::new(),
    };
    let routing = routing_rule::list(&host_network.netlink).await?;
    let policy = timeouts_name(&desired.instance);
    let named = named_chains(&desired.instance);
    let scope = host_network.scope;
    let mut observed = host_network
        .home
        .run(move || {
            Ok(Observed {
                ruleset: match scope {
                    Scope::All => Ruleset::default(),
                    Scope::Named | Scope::NamedOnly => backend.read_named(&named)?,
                },
                forwarding: sysctl::read(FORWARDING)? == "1",
                bridges,
                conntrack_max: conntrack::max(),
                on_link,
                foreign,
                warnings,
                drops: None,
                routing,
                timeouts: observe_timeouts(&policy)?,
            })
        })
        .await?;
    let reads_all = match scope {
        Scope::All => true,
        Scope::Named => !plan::needs_no_change(desired, &observed),
        Scope::NamedOnly => false,
    };
    if reads_all {
        let backend = host_network.backend.clone();
        let read = host_network.home.run(move || backend.read(&TABLES));
        observed.ruleset = read.await?;
    }
    observed.drops = observe_drops(host_network, desired, &observed, uplink.as_ref()).await;
    Ok(observed)
}

/// A kernel without nf_tables has no foreign chains there. Any other error does not block the host's rules.
async fn observe_drops(
    host_network: &HostNetwork,
    desired: &Desired,
    observed: &Observed,
    uplink: Option<&Link>,
) -> Option<Vec<super::HostDrop>> {
    let guarded = drops::routed_ranges(desired, observed);
    let chains = &host_network.forward_chains;
    let flavour = host_network.backend.kind;
    let found = drops::evaluate(
        &host_network.home,
        &host_network.netlink,
        chains,
        flavour,
        guarded,
        uplink,
    )
    .await;
    found
        .inspect_err(|error| debug!(%error, "cannot read foreign chains"))
        .ok()
        .map(|found| drops::host_drops(&found))
}

pub(super) async fn routed_ranges(
    host_network: &HostNetwork,
    desired: &Desired,
) -> Result<Vec<drops::RoutedRange>, host::Error> {
    let observed = Observed {
        bridges: observe_bridges(host_network, desired).await?,
        ..Observed::default()
    };
    Ok(drops::routed_ranges(desired, &observed))
}

/// Where our rules are if nothing has drifted: our chains, and the chains that contain our jumps. A jump of ours in another chain is found
/// when whole tables are read.
fn named_chains(instance: &Instance) -> Vec<(TableName, String)> {
    let mut places = Vec::new();
    for table in TABLES {
        let builtin = builtin_chains(table).iter();
        places.extend(builtin.map(|chain| (table, (*chain).to_owned())));
        let ours = rules::PLACES.iter().filter(|(at, _)| *at == table);
        places.extend(ours.map(|(_, role)| (table, instance.chain(role))));
    }
    places.push((TableName::Filter, rules::DOCKER_USER.to_owned()));
    places
}

/// All tables that we write to.
const TABLES: [TableName; 4] = [
    TableName::Raw,
    TableName::Mangle,
    TableName::Nat,
    TableName::Filter,
];

/// A kernel without timeout policies has none of ours; the error is reported when a policy is to be created.
fn observe_timeouts(name: &str) -> Result<Option<Timeouts>, host::Error> {
    match cttimeout::get(name) {
        // `nfnetlink_rcv_msg`: the subsystem does not exist.
        Err(error) if error.source.kind() == std::io::ErrorKind::InvalidInput => Ok(None),
        found => found,
    }
}

/// The networks of the host's links that can have more neighbours than the limit, and all private networks, of which a host may have many.
/// The link of an isolated VM has its own /30 without other hosts; a small subnet of VMs on a bridge of this or another daemon limits its
/// neighbours by its size.
async fn observe_on_link(
    host_network: &HostNetwork,
    bridges: &[Link],
) -> Result<BTreeSet<Ipv4Network>, host::Error> {
    let addresses = addr::list(&host_network.netlink, addr::Of::All).await?;
    let counts = |net: &Ipv4Network| {
        let is_block = net.prefix() == Block::PREFIX_LEN && net.ip().is_link_local();
        let is_private = net.ip().is_private() || net.ip().is_link_local();
        let is_alone = net.prefix() >= 31 || net.ip().is_loopback() || is_block;
        !is_alone && (is_private || net.prefix() < 24)
    };
    let of_vms = |bridge: &&Link| bridge.group == link_group::BRIDGE;
    let of_vms: BTreeSet<u32> = bridges.iter().filter(of_vms).map(|b| b.index).collect();
    let is_small = |addr: &addr::Addr| addr.net.prefix() >= 24 && of_vms.contains(&addr.index);
    let others = addresses.iter().filter(|addr| !is_small(addr));
    let networks = others.map(|addr| addr.net);
    Ok(networks.filter(counts).map(subnet).collect())
}

/// A public address, which is reached by the host's default route. Nothing is sent to it.
const PUBLIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

/// Another public address.
const OTHER_PUBLIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// The link of the host's default route, if there is one.
async fn observe_uplink(host_network: &HostNetwork) -> Result<Option<Link>, host::Error> {
    match route::lookup(&host_network.netlink, PUBLIC_ADDRESS).await? {
        Some((index, _)) => link::at(&host_network.netlink, index).await,
        None => Ok(None),
    }
}

/// Bridges of other programs. The host's uplink may be a bridge, too: destinations behind it are the internet and not neighbours.
fn foreign_bridges(bridges: &[Link], uplink: Option<&Link>) -> BTreeSet<String> {
    let uplink = uplink.map(|uplink| uplink.index);
    let foreign = bridges
        .iter()
        .filter(|bridge| bridge.group != link_group::BRIDGE && Some(bridge.index) != uplink);
    foreign.map(|bridge| bridge.name.clone()).collect()
}

/// Conditions that keep replies from the internet from reaching VMs. The link does not belong to us, so it is not changed.
async fn warnings(host_network: &HostNetwork, uplink: &Link) -> Result<Vec<String>, host::Error> {
    let name = &uplink.name;
    if uplink.ipv4.is_some_and(|ipv4| ipv4.forwarding == 0) {
        return Ok(vec![format!(
            "forwarding is off on {name}, the link of the default route, so no reply reaches a VM: sysctl -w net.ipv4.conf.{name}.forwarding=1"
        )]);
    }
    // The route back to the source is validated first, whatever the destination.
    let result = route::lookup_inbound(
        &host_network.netlink,
        PUBLIC_ADDRESS,
        OTHER_PUBLIC_ADDRESS,
        uplink.index,
    )
    .await?;
    let mut warnings = match result {
        route::Inbound::Refused(libc::EXDEV) => vec![format!(
            "rp_filter drops replies that arrive on {name}, the link of the default route: sysctl -w net.ipv4.conf.{name}.rp_filter=2"
        )],
        route::Inbound::Refused(_) | route::Inbound::To(_) => Vec::new(),
    };
    // A packet that iptables-legacy drops is not accepted by a rule in nf_tables. The reverse case is a foreign chain.
    if host_network.backend.kind == Flavour::Nft {
        let dropped = host_network.home.run(legacy_drops_forwarded).await;
        warnings.extend(match dropped {
            // Nothing but this warning depends on it.
            Err(error) => Some(format!("ip_tables has a table filter that may drop forwarded packets: {error}")),
            Ok(Some(true)) => Some("FORWARD of iptables-legacy has policy DROP, and sliced writes to nf_tables: iptables-legacy -P FORWARD ACCEPT".to_owned()),
            Ok(Some(false)) => None,
            Ok(None) => Some("ip_tables has a table filter that may drop forwarded packets, and iptables-legacy, which reads it, is not installed".to_owned()),
        });
    }
    Ok(warnings)
}

async fn observe_bridges(
    host_network: &HostNetwork,
    desired: &Desired,
) -> Result<BTreeMap<String, BridgeSeen>, host::Error> {
    let mut seen = BTreeMap::new();
    for bridge in link::list_bridges(&host_network.netlink).await? {
        let is_required = desired.requirements.bridges.contains_key(&bridge.name);
        let mut found = describe(&bridge);
        if is_required || found.owned(desired, &bridge.name).is_some() {
            let addresses = addr::list(&host_network.netlink, addr::Of::Index(bridge.index)).await;
            // The kernel reports that the link was removed after it was listed.
            let Some(addresses) = host::error::absent_is_none(addresses)? else {
                continue;
            };
            found.addresses = addresses.into_iter().map(|found| found.net).collect();
            seen.insert(bridge.name, found);
        }
    }
    for name in desired.requirements.bridges.keys() {
        if !seen.contains_key(name)
            && let Some(other) = link::get(&host_network.netlink, name).await?
        {
            seen.insert(name.clone(), describe(&other));
        }
    }
    Ok(seen)
}

pub(super) fn describe(link: &Link) -> BridgeSeen {
    let info = link.bridge.unwrap_or_default();
    BridgeSeen {
        is_bridge: link.bridge.is_some(),
        alias: link.alias.clone(),
        mac: Mac(link.mac.unwrap_or_default()),
        mtu: link.mtu,
        up: link.up,
        configured: (info.stp, info.forward_delay) == (false, 0)
            && (info.snooping, info.vlan_filtering, info.group_fwd_mask) == (false, false, 0)
            && info
                .max_learned
                .is_none_or(|most| most == bridge::MAX_LEARNED)
            && link.master.is_none()
            && host_links::is_bridge(link),
        addresses: Default::default(),
    }
}
