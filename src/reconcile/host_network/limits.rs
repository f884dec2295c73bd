//! The host's rules that keep one VM from filling the kernel tables of the host: connection tracking and neighbours. Pure.
//! Out of scope: the values of the limits ([`crate::reconcile::limits`]); the rules that decide which addresses a VM may reach.
//!
//! # Why
//! - New connections are counted in `mangle PREROUTING`: after connection tracking (priority -200), before any address is rewritten and
//!   before the packet is routed, so that one counter covers forwarded packets and packets for the host itself. An entry is inserted into
//!   the table only at the end of the packet's path (`nf_conntrack_confirm`): a packet that is dropped here leaves no entry.
//! - One counter per source: `connlimit` with a mask of 30 for the /30s of isolated VMs, of 32 on a bridge. The number of rules depends on
//!   pools and subnets, not on VMs. On a managed bridge, all sources outside its subnets count as one source.
//! - The counters belong to the rules, so these chains contain nothing that changes with a VM or its policy.
//! - TCP uses our own timeouts from the creation of the entry: `connlimit` does not count closed TCP connections, and with the kernel's
//!   default timeouts their entries remain for two minutes.
//! - A neighbour that does not answer occupies an entry in the kernel's only neighbour table for seconds, and only a destination on one of
//!   the host's own links is a neighbour. The number of neighbours that have not answered is limited, in equal parts for each pool and
//!   subnet of VMs, so that the VMs of one group do not use up the entries of the others.
//! - A rule on the host has one counter for all VMs on a bridge. So refused packets of a VM on a bridge also take tokens from a bucket of
//!   that VM ([`super::refusals`]), without a rule for each VM.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::refusals;
use super::rule_input::{BridgeKind, BridgeSubnet, RuleInput};
use crate::api::lease::subnet;
use crate::host::conntrack::Flow;
use crate::host::rule::{
    ConnLimit, CtState, Distinct, Match, Protocol, Rule, Side as End, SourceRate, Target,
};
use crate::owner::Instance;
use crate::reconcile::limits::Limit;
use crate::store::HostRequirements;

/// The maximum number of distinct destinations on the host's links that do not answer, for all VMs together: a quarter of the kernel's
/// default size of the neighbour table (`gc_thresh3`).
const NEIGHBOURS: u32 = 256;

/// The chain that counts and drops what VMs on bridges send beyond their limit.
pub(super) const REFUSED: &str = "REFUSED";

/// The minimum of [`NEIGHBOURS`] for the VMs of one pool or subnet.
const FEWEST_NEIGHBOURS: u32 = 16;

/// The name of the timeout policy for TCP: four characters, because the kernel shows no more of it with a rule.
pub fn timeouts_name(instance: &Instance) -> String {
    instance.as_str().chars().take(4).collect()
}

/// `raw`: entries for packets from VMs are created with our timeouts.
pub(super) fn timeouts(input: &RuleInput<'_>) -> Vec<Rule> {
    let policy = Target::Timeout(timeouts_name(input.instance));
    vec![Rule::when().protocol(Protocol::Tcp).then(policy)]
}

/// `mangle`: packets from VMs.
pub(super) fn from_vms(input: &RuleInput<'_>) -> Vec<Rule> {
    let known = [CtState::Established, CtState::Related];
    let mut rules = vec![Rule::when().ctstate(known).then(Target::Return)];
    rules.push(Rule::when().jump(input.instance.chain("NEAR")));
    for sources in sources(input) {
        rules.extend(sources.limit_rules(input));
    }
    let unknown = input.instance.chain("ODD");
    let to_unknown = |bridge: &str| Rule::when().in_if(bridge).jump(&unknown);
    rules.extend(
        managed_bridges(input.bridge_subnets)
            .into_iter()
            .map(to_unknown),
    );
    // iptables has no match for "not TCP".
    let tcp = Rule::when().unconfirmed().protocol(Protocol::Tcp);
    rules.push(tcp.then(Target::Return));
    let others = |sources: Sources<'_>| {
        let limit = sources.connlimit(sources.limit.other_protocols());
        let target = sources.drop_target(input);
        sources.new_entries().connlimit(limit).then(target)
    };
    rules.extend(sources(input).into_iter().map(others));
    rules
}

/// `mangle`: packets from VMs, by whether the destination is on a link of the host. This is a separate chain because the networks of the
/// host change, and a counter restarts when its rule is written again.
pub(super) fn by_destination(input: &RuleInput<'_>) -> Vec<Rule> {
    let lan = input.instance.chain("LAN");
    let to_lan = |network: &Ipv4Network| Rule::when().dst(*network).jump(&lan);
    let networks = input.limits.on_link.iter().map(to_lan);
    networks
        .chain([Rule::when().then(Target::Return)])
        .collect()
}

/// `mangle`: packets from managed bridges with a source in none of their subnets; such sources count as one.
pub(super) fn unknown_sources(input: &RuleInput<'_>) -> Vec<Rule> {
    let bridges = managed_bridges(input.bridge_subnets);
    let mut rules = Vec::new();
    for bridge_subnet in input.bridge_subnets {
        if bridges.contains(bridge_subnet.bridge.as_str()) {
            let known = Rule::when()
                .in_if(&bridge_subnet.bridge)
                .src(bridge_subnet.subnet);
            rules.push(known.then(Target::Return));
        }
    }
    for bridge in bridges {
        let sources = Sources {
            bridge: Some(bridge),
            network: None,
            limit: input.limits.share,
            prefix: 0,
        };
        rules.extend(sources.limit_rules(input));
    }
    rules
}

/// `mangle`: packets from VMs to a destination on a link of the host.
pub(super) fn to_neighbours(input: &RuleInput<'_>) -> Vec<Rule> {
    if input.limits.on_link.is_empty() {
        return Vec::new();
    }
    let sources = sources(input);
    let maximum = NEIGHBOURS / u32::try_from(sources.len().max(1)).unwrap_or(NEIGHBOURS);
    let bounded = |sources: &Sources<'_>| {
        let network = sources.network.map(|network| network.network());
        let network = network.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let distinct = Distinct {
            name: format!("{}-{maximum}-{network}", input.instance.link_prefix()),
            max: maximum.max(FEWEST_NEIGHBOURS),
        };
        let unanswered = sources.packets().ctstate([CtState::New]);
        unanswered.distinct(distinct).then(Target::Return)
    };
    sources.iter().map(bounded).collect()
}

/// `mangle`: packets that exceed the limit of a VM on a bridge. Both rules drop; the first takes a token from the source's bucket, which
/// counts the packet.
pub(super) fn refused(input: &RuleInput<'_>) -> Vec<Rule> {
    if input.bridge_subnets.is_empty() {
        return Vec::new();
    }
    let counted = Rule::when().source_rate(refusals::bucket(input.instance));
    let drop = |when: Match| when.then(Target::Drop);
    vec![drop(counted), drop(Rule::when())]
}

/// `mangle`: connections that others open to VMs on bridges. Isolated VMs receive only replies.
pub(super) fn to_vms(input: &RuleInput<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for bridge_subnet in input.bridge_subnets {
        let limit = ConnLimit {
            above: limit_of(input, bridge_subnet.subnet).all(),
            prefix: 32,
            side: End::Destination,
        };
        let new = Rule::when().dst(bridge_subnet.subnet).unconfirmed();
        let rule = new
            .not_in_if(&bridge_subnet.bridge)
            .out_if(&bridge_subnet.bridge)
            .connlimit(limit);
        rules.push(rule.then(Target::Drop));
    }
    rules
}

/// Packets from one kind of VM, and the limits of each VM.
struct Sources<'a> {
    /// Their link, if it restricts more than the source does.
    bridge: Option<&'a str>,
    network: Option<Ipv4Network>,
    limit: Limit,
    /// The number of leading bits of the source that distinguish VMs.
    prefix: u8,
}

impl Sources<'_> {
    /// Matches packets that create an entry.
    fn new_entries(&self) -> Match {
        self.packets().unconfirmed()
    }

    fn packets(&self) -> Match {
        let mut when = Rule::when();
        if let Some(bridge) = self.bridge {
            when = when.in_if(bridge);
        }
        match self.network {
            Some(network) => when.src(network),
            None => when,
        }
    }

    /// Limits the number of open connections and the rate of new ones.
    fn limit_rules(&self, input: &RuleInput<'_>) -> [Rule; 2] {
        let rate = self.rate(input);
        let open = self.connlimit(self.limit.all());
        let target = self.drop_target(input);
        [
            self.new_entries().connlimit(open).then(target.clone()),
            self.new_entries().source_rate(rate).then(target),
        ]
    }

    /// Dropped packets of VMs on a bridge are counted per source.
    fn drop_target(&self, input: &RuleInput<'_>) -> Target {
        match (self.bridge, self.network) {
            (Some(_), Some(_)) => Target::Jump(input.instance.chain(REFUSED)),
            _ => Target::Drop,
        }
    }

    fn connlimit(&self, above: u32) -> ConnLimit {
        ConnLimit {
            above,
            prefix: self.prefix,
            side: End::Source,
        }
    }

    fn rate(&self, input: &RuleInput<'_>) -> SourceRate {
        let (links, prefix, rate) = (
            input.instance.link_prefix(),
            self.prefix,
            self.limit.new_rate(),
        );
        let (per_second, burst) = (rate.per_second(), rate.burst());
        SourceRate {
            name: format!("{links}-{per_second}-{burst}-{prefix}"),
            rate,
            prefix,
            expire: SourceRate::EXPIRE,
        }
    }
}

fn sources<'a>(input: &'a RuleInput<'_>) -> Vec<Sources<'a>> {
    let pools = input.pools.iter().map(|pool| Sources {
        bridge: None,
        network: Some(*pool),
        limit: limit_of(input, *pool),
        prefix: 30,
    });
    let bridge_subnets = input.bridge_subnets.iter().map(|bridge_subnet| Sources {
        bridge: Some(&bridge_subnet.bridge),
        network: Some(bridge_subnet.subnet),
        limit: limit_of(input, bridge_subnet.subnet),
        prefix: 32,
    });
    pools.chain(bridge_subnets).collect()
}

/// Managed bridges: all packets from them are from VMs, whatever their source.
fn managed_bridges(bridge_subnets: &[BridgeSubnet]) -> BTreeSet<&str> {
    let ours = bridge_subnets
        .iter()
        .filter(|bridge_subnet| bridge_subnet.kind == BridgeKind::Managed);
    ours.map(|side| side.bridge.as_str()).collect()
}

/// Returns those flows that belong to VMs over their limit. Rules that were written again count from 0: all flows of a VM that is over its
/// limit are deleted, so that it never has more than the limit.
pub(super) fn excess(requirements: &HostRequirements, share: Limit, flows: Vec<Flow>) -> Vec<Flow> {
    let bridges = requirements.bridges.values().flatten();
    let subnets = bridges.map(|gateway| (subnet(*gateway), 32));
    let pools = requirements.pools.iter().map(|pool| (*pool, 30));
    let ranges: Vec<(Ipv4Network, u8)> = pools.chain(subnets).collect();
    let key = |flow: &Flow| {
        let (range, prefix) = ranges.iter().find(|(range, _)| range.contains(flow.src))?;
        Some((*range, flow.src.to_bits() >> (32 - prefix)))
    };
    let mut counts: HashMap<(Ipv4Network, u32), u32> = HashMap::new();
    for key in flows.iter().filter_map(key) {
        *counts.entry(key).or_default() += 1;
    }
    let is_over = |(range, address): (Ipv4Network, u32)| {
        let specified = requirements.max_connections.get(&range);
        let limit = specified.map_or(share, |maximum| Limit::of(*maximum));
        counts
            .get(&(range, address))
            .is_some_and(|count| *count > limit.all())
    };
    let mut over = flows;
    over.retain(|flow| key(flow).is_some_and(is_over));
    over
}

fn limit_of(input: &RuleInput<'_>, network: Ipv4Network) -> Limit {
    let specified = input.max_connections.get(&network);
    specified.map_or(input.limits.share, |maximum| Limit::of(*maximum))
}
