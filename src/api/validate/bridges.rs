//! Conflicts between bridge groups: names of TAPs and bridges, gateways, subnets, addresses, ports.
//! Out of scope: problems of a single group (the manifest parser); other objects on the host.

use std::net::Ipv4Addr;

use super::super::lease::subnet;
use super::super::link_name::{MAX_PORTS, shared_tap, tap_number};
use super::super::manifest::{Draft, Problem};
use super::super::meta::Name;
use super::super::network::{Addresses, BridgeSpec};
use super::super::pool;
use super::Definition;

/// An existing bridge group.
pub(super) struct BridgeGroup<'a> {
    pub name: &'a Name,
    pub definition: Definition<'a>,
    pub spec: &'a BridgeSpec,
    pub count: u32,
}

/// The bridge group that is checked.
struct Candidate<'a> {
    spec: &'a BridgeSpec,
    count: u32,
}

/// A field and the message of its problem.
type Conflict = (&'static str, String);

/// The problems of `draft`, a group with the network `spec`, with the existing groups `there`: the first of each kind.
pub(super) fn objections(
    existing: &[BridgeGroup],
    draft: &Draft,
    spec: &BridgeSpec,
) -> Vec<Problem> {
    let candidate = Candidate {
        spec,
        count: draft.spec.count,
    };
    let checks: [fn(&Candidate, &BridgeGroup) -> Option<Conflict>; 5] =
        [taps, bridge_and_tap, gateways, subnets, addresses];
    let found = checks
        .iter()
        .filter_map(|check| existing.iter().find_map(|other| check(&candidate, other)));
    found
        .chain(ports(existing, &candidate))
        .map(|(field, message)| draft.problem(field, message))
        .collect()
}

impl BridgeGroup<'_> {
    fn describe(&self) -> String {
        format!("group \"{}\" {}", self.name, self.definition.describe())
    }

    fn shares_bridge(&self, candidate: &Candidate) -> bool {
        self.spec.bridge == candidate.spec.bridge
    }
}

fn taps(candidate: &Candidate, other: &BridgeGroup) -> Option<Conflict> {
    let (ours, theirs) = (&candidate.spec.tap_prefix, &other.spec.tap_prefix);
    let owner = other.describe();
    if ours == theirs {
        return Some((
            "network.tap_prefix",
            format!("\"{ours}\" is already the prefix of {owner}"),
        ));
    }
    let tap = shared_tap((ours, candidate.count), (theirs, other.count))?;
    let message = format!(
        "a TAP would have the name \"{tap}\", as one of the {} TAPs of {owner} with the prefix \"{theirs}\"",
        other.count
    );
    Some(("network.tap_prefix", message))
}

fn bridge_and_tap(candidate: &Candidate, other: &BridgeGroup) -> Option<Conflict> {
    let (ours, theirs) = (candidate.spec, other.spec);
    let owner = other.describe();
    let is_tap = |spec: &BridgeSpec, count, name: &str| {
        tap_number(&spec.tap_prefix, name).is_some_and(|number| number < count)
    };
    if is_tap(theirs, other.count, &ours.bridge) {
        let message = format!("\"{}\" is a TAP of {owner}", ours.bridge);
        return Some(("network.bridge", message));
    }
    is_tap(ours, candidate.count, &theirs.bridge).then(|| {
        let message = format!(
            "a TAP would have the name \"{}\", as the bridge of {owner}",
            theirs.bridge
        );
        ("network.tap_prefix", message)
    })
}

fn gateways(candidate: &Candidate, other: &BridgeGroup) -> Option<Conflict> {
    let (ours, theirs) = (candidate.spec.gateway?, other.spec.gateway?);
    (other.shares_bridge(candidate) && ours != theirs).then(|| {
        let message = format!(
            "{ours} differs from {theirs} of {} on bridge \"{}\"; all groups on a bridge must have the same gateway",
            other.describe(),
            candidate.spec.bridge
        );
        ("network.gateway", message)
    })
}

fn subnets(candidate: &Candidate, other: &BridgeGroup) -> Option<Conflict> {
    let ours = subnet(candidate.spec.gateway?);
    let theirs = subnet(other.spec.gateway?);
    (!other.shares_bridge(candidate) && pool::overlaps(ours, theirs)).then(|| {
        let message = format!(
            "{ours} of bridge \"{}\" overlaps {theirs} of bridge \"{}\" of {}",
            candidate.spec.bridge,
            other.spec.bridge,
            other.describe()
        );
        ("network.gateway", message)
    })
}

fn addresses(candidate: &Candidate, other: &BridgeGroup) -> Option<Conflict> {
    if !other.shares_bridge(candidate) {
        return None;
    }
    let ip = shared_address(&candidate.spec.addresses, &other.spec.addresses)?;
    let field = match candidate.spec.addresses {
        Addresses::Listed(_) => "network.addresses",
        Addresses::Range(..) | Addresses::Any => "network.range",
    };
    let message = format!("{ip} is also among the addresses of {}", other.describe());
    Some((field, message))
}

/// The first address that both specify. [`Addresses::Any`] shares none: such a group uses addresses that no other group specifies.
fn shared_address(a: &Addresses, b: &Addresses) -> Option<Ipv4Addr> {
    let find_listed = |listed: &[Ipv4Addr], others: &dyn Fn(&Ipv4Addr) -> bool| {
        listed.iter().copied().find(|ip| others(ip))
    };
    match (a, b) {
        (Addresses::Any, _) | (_, Addresses::Any) => None,
        (Addresses::Listed(a), Addresses::Listed(b)) => find_listed(a, &|ip| b.contains(ip)),
        (Addresses::Listed(listed), Addresses::Range(first, last))
        | (Addresses::Range(first, last), Addresses::Listed(listed)) => {
            find_listed(listed, &|ip| (first..=last).contains(&ip))
        }
        (Addresses::Range(a, b), Addresses::Range(c, d)) => {
            let (first, last) = (*a.max(c), *b.min(d));
            (first <= last).then_some(first)
        }
    }
}

fn ports(existing: &[BridgeGroup], candidate: &Candidate) -> Option<Conflict> {
    let sharing: Vec<&BridgeGroup> = existing
        .iter()
        .filter(|o| o.shares_bridge(candidate))
        .collect();
    let taken: u64 = sharing.iter().map(|other| u64::from(other.count)).sum();
    let total = taken + u64::from(candidate.count);
    // A group without VMs does not exceed the limit.
    if total <= u64::from(MAX_PORTS) || candidate.count == 0 || sharing.is_empty() {
        return None;
    }
    let others: Vec<String> = sharing
        .iter()
        .take(3)
        .map(|other| format!("{} of {}", other.count, other.describe()))
        .collect();
    let more = match sharing.len() > others.len() {
        true => " and others",
        false => "",
    };
    let message = format!(
        "bridge \"{}\" would have {total} ports, {} in addition to {}{more}; expected at most {MAX_PORTS}",
        candidate.spec.bridge,
        candidate.count,
        others.join(", ")
    );
    Some(("count", message))
}
