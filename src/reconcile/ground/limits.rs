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
use super::rules::{Carried, Side, Standing};
use crate::api::lease::subnet;
use crate::host::conntrack::Flow;
use crate::host::rule::{
    ConnLimit, CtState, Distinct, Match, Protocol, Rule, Side as End, SourceRate, Target,
};
use crate::owner::Instance;
use crate::reconcile::limits::Limit;
use crate::store::Footing;

/// The maximum number of distinct destinations on the host's links that do not answer, for all VMs together: a quarter of the kernel's
/// default size of the neighbour table (`gc_thresh3`).
const NEIGHBOURS: u32 = 256;

/// The chain that counts and drops what VMs on bridges send beyond their limit.
pub(super) const REFUSED: &str = "REFUSED";

/// The minimum of [`NEIGHBOURS`] for the VMs of one pool or subnet.
const FEWEST_NEIGHBOURS: u32 = 16;

/// The input for the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The limit of a VM whose group specifies none.
    pub share: Limit,
    /// The networks of the host's links whose neighbours are counted.
    pub on_link: BTreeSet<Ipv4Network>,
}

/// The name of the timeout policy for TCP: four characters, because the kernel shows no more of it with a rule.
pub fn timeouts_name(instance: &Instance) -> String {
    instance.as_str().chars().take(4).collect()
}

/// `raw`: entries for packets from VMs are created with our timeouts.
pub(super) fn timeouts(carried: &Carried<'_>) -> Vec<Rule> {
    let policy = Target::Timeout(timeouts_name(carried.instance));
    vec![Rule::when().protocol(Protocol::Tcp).then(policy)]
}

/// `mangle`: packets from VMs.
pub(super) fn from_vms(carried: &Carried<'_>) -> Vec<Rule> {
    let known = [CtState::Established, CtState::Related];
    let mut rules = vec![Rule::when().ctstate(known).then(Target::Return)];
    rules.push(Rule::when().jump(carried.instance.chain("NEAR")));
    for sources in sources(carried) {
        rules.extend(sources.open(carried));
    }
    let odd = carried.instance.chain("ODD");
    let to_odd = |bridge: &str| Rule::when().in_if(bridge).jump(&odd);
    rules.extend(ours(carried.sides).into_iter().map(to_odd));
    // iptables has no match for "not TCP".
    let tcp = Rule::when().unconfirmed().protocol(Protocol::Tcp);
    rules.push(tcp.then(Target::Return));
    let others = |sources: Sources<'_>| {
        let limit = sources.connlimit(sources.limit.other_protocols());
        let refuse = sources.refuse(carried);
        sources.new_entries().connlimit(limit).then(refuse)
    };
    rules.extend(sources(carried).into_iter().map(others));
    rules
}

/// `mangle`: packets from VMs, by whether the destination is on a link of the host. This is a separate chain because the networks of the
/// host change, and a counter restarts when its rule is written again.
pub(super) fn by_destination(carried: &Carried<'_>) -> Vec<Rule> {
    let lan = carried.instance.chain("LAN");
    let to_lan = |network: &Ipv4Network| Rule::when().dst(*network).jump(&lan);
    let networks = carried.limits.on_link.iter().map(to_lan);
    networks
        .chain([Rule::when().then(Target::Return)])
        .collect()
}

/// `mangle`: packets from managed bridges with a source in none of their subnets; such sources count as one.
pub(super) fn odd_sources(carried: &Carried<'_>) -> Vec<Rule> {
    let bridges = ours(carried.sides);
    let mut rules = Vec::new();
    for side in carried.sides {
        if bridges.contains(side.bridge.as_str()) {
            let known = Rule::when().in_if(&side.bridge).src(side.subnet);
            rules.push(known.then(Target::Return));
        }
    }
    for bridge in bridges {
        let sources = Sources {
            bridge: Some(bridge),
            network: None,
            limit: carried.limits.share,
            prefix: 0,
        };
        rules.extend(sources.open(carried));
    }
    rules
}

/// `mangle`: packets from VMs to a destination on a link of the host.
pub(super) fn to_neighbours(carried: &Carried<'_>) -> Vec<Rule> {
    if carried.limits.on_link.is_empty() {
        return Vec::new();
    }
    let sources = sources(carried);
    let most = NEIGHBOURS / u32::try_from(sources.len().max(1)).unwrap_or(NEIGHBOURS);
    let bounded = |sources: &Sources<'_>| {
        let network = sources.network.map(|network| network.network());
        let network = network.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let distinct = Distinct {
            name: format!("{}-{most}-{network}", carried.instance.link_prefix()),
            most: most.max(FEWEST_NEIGHBOURS),
        };
        let unanswered = sources.packets().ctstate([CtState::New]);
        unanswered.distinct(distinct).then(Target::Return)
    };
    sources.iter().map(bounded).collect()
}

/// `mangle`: packets that exceed the limit of a VM on a bridge. Both rules drop; the first takes a token from the source's bucket, which
/// counts the packet.
pub(super) fn refused(carried: &Carried<'_>) -> Vec<Rule> {
    if carried.sides.is_empty() {
        return Vec::new();
    }
    let counted = Rule::when().source_rate(refusals::bucket(carried.instance));
    let drop = |when: Match| when.then(Target::Drop);
    vec![drop(counted), drop(Rule::when())]
}

/// `mangle`: connections that others open to VMs on bridges. Isolated VMs receive only replies.
pub(super) fn to_vms(carried: &Carried<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for side in carried.sides {
        let limit = ConnLimit {
            above: limit_of(carried, side.subnet).all(),
            prefix: 32,
            of: End::Destination,
        };
        let new = Rule::when().dst(side.subnet).unconfirmed();
        let rule = new
            .not_in_if(&side.bridge)
            .out_if(&side.bridge)
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
    fn open(&self, carried: &Carried<'_>) -> [Rule; 2] {
        let rate = self.rate(carried);
        let open = self.connlimit(self.limit.all());
        let refuse = self.refuse(carried);
        [
            self.new_entries().connlimit(open).then(refuse.clone()),
            self.new_entries().source_rate(rate).then(refuse),
        ]
    }

    /// Dropped packets of VMs on a bridge are counted per source.
    fn refuse(&self, carried: &Carried<'_>) -> Target {
        match (self.bridge, self.network) {
            (Some(_), Some(_)) => Target::Jump(carried.instance.chain(REFUSED)),
            _ => Target::Drop,
        }
    }

    fn connlimit(&self, above: u32) -> ConnLimit {
        ConnLimit {
            above,
            prefix: self.prefix,
            of: End::Source,
        }
    }

    fn rate(&self, carried: &Carried<'_>) -> SourceRate {
        let (links, prefix, rate) = (
            carried.instance.link_prefix(),
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

fn sources<'a>(carried: &'a Carried<'_>) -> Vec<Sources<'a>> {
    let pools = carried.pools.iter().map(|pool| Sources {
        bridge: None,
        network: Some(*pool),
        limit: limit_of(carried, *pool),
        prefix: 30,
    });
    let sides = carried.sides.iter().map(|side| Sources {
        bridge: Some(&side.bridge),
        network: Some(side.subnet),
        limit: limit_of(carried, side.subnet),
        prefix: 32,
    });
    pools.chain(sides).collect()
}

/// Managed bridges: all packets from them are from VMs, whatever their source.
fn ours(sides: &[Side]) -> BTreeSet<&str> {
    let ours = sides.iter().filter(|side| side.standing == Standing::Ours);
    ours.map(|side| side.bridge.as_str()).collect()
}

/// Returns those flows that belong to VMs over their limit. Rules that were written again count from 0: all flows of a VM that is over its
/// limit are deleted, so that it never has more than the limit.
pub(super) fn excess(footing: &Footing, share: Limit, flows: Vec<Flow>) -> Vec<Flow> {
    let bridges = footing.bridges.values().flatten();
    let subnets = bridges.map(|gateway| (subnet(*gateway), 32));
    let pools = footing.pools.iter().map(|pool| (*pool, 30));
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
        let own = footing.max_connections.get(&range);
        let limit = own.map_or(share, |most| Limit::of(*most));
        counts
            .get(&(range, address))
            .is_some_and(|count| *count > limit.all())
    };
    let mut over = flows;
    over.retain(|flow| key(flow).is_some_and(is_over));
    over
}

fn limit_of(carried: &Carried<'_>, network: Ipv4Network) -> Limit {
    let own = carried.max_connections.get(&network);
    own.map_or(carried.limits.share, |most| Limit::of(*most))
}
