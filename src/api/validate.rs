//! What one group cannot know of itself: whether it is at peace with the others.
//! Out of scope: reading YAML, the store, which pools are leased.
//!
//! # Why
//! VM names need no check: `<group>-<index>` is unique when group names are, because an index has no `-`, so that all before the
//! last `-` is the group (`a-1-1` is the first VM of `a-1`, and no VM of `a`). A test below holds that down. VMs made on demand
//! have names that no group could count ([`HostGroup::is_counted_name`]).

mod bridges;
mod capacity;
mod cni;

use std::collections::HashMap;

use ipnetwork::Ipv4Network;

use super::cni::CniOptions;
use super::host_group::{HostGroup, HostGroupSpec, Origin};
use super::manifest::{Draft, Location, Problem};
use super::meta::Name;
use super::network::{BridgeSpec, CniSpec, NetworkSpec};
use super::pool;
use bridges::Bridged;
use capacity::Total;
use cni::Requested;

pub use capacity::{MAX_GROUPS, MAX_ISOLATED, MAX_RULES, MAX_VMS};
pub use cni::objection_to_requests;

/// A draft, and where the group would belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// What is wanted.
    pub draft: &'a Draft,
    /// Who wants it.
    pub origin: Origin,
}

/// What each of `claims` is refused for: the index of the claim, and the problem. `standing` are groups that stay as they are
/// whatever is claimed; among the claims the earlier wins, see [`by_precedence`]. VMs that were made on demand in a group of `stored` keep
/// what they have when a claim changes the group.
pub fn conflicts(
    stored: &[HostGroup],
    standing: &[&HostGroup],
    claims: &[Claim],
) -> Vec<(usize, Problem)> {
    let mut ground = Ground::default();
    for group in standing {
        ground.take(&group.meta.name, &group.spec, Place::Stored(&group.origin));
        ground.total.add(&group.spec, group.orders.len());
        ground.requested.extend(cni::of_orders(group));
    }
    let living = stored.iter().filter(|group| !group.meta.deleting);
    let stored: HashMap<&Name, &HostGroup> = living.map(|g| (&g.meta.name, g)).collect();
    let changed = |claim: &Claim| stored.get(&claim.draft.name).copied();
    for group in claims.iter().filter_map(changed) {
        ground.requested.extend(cni::of_orders(group));
    }
    let mut refused = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let draft = claim.draft;
        let on_demand = changed(claim).map_or(0, |group| group.orders.len());
        let problems = ground.objections(draft, on_demand);
        if problems.is_empty() {
            ground.take(&draft.name, &draft.spec, Place::Written(&draft.at));
            ground.total.add(&draft.spec, on_demand);
        }
        refused.extend(problems.into_iter().map(|problem| (index, problem)));
    }
    refused
}

/// Puts claims in the order in which they win: what runs and claims what it has, then what runs and changes it, then what
/// comes from elsewhere, then what is new; within each the order given.
pub fn by_precedence<'a>(stored: &[HostGroup], mut claims: Vec<Claim<'a>>) -> Vec<Claim<'a>> {
    let stored: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();
    claims.sort_by_key(|claim| match stored.get(&claim.draft.name) {
        Some(group) if group.origin != claim.origin => 2,
        Some(group) if !keeps(&group.spec, &claim.draft.spec) => 1,
        Some(_) => 0,
        None => 3,
    });
    claims
}

/// What each of `claims` is refused for by VMs that were made on demand in the group it changes: they keep what they have, so
/// it must go on allowing that.
pub fn objections_of_orders(stored: &[HostGroup], claims: &[Claim]) -> Vec<(usize, Problem)> {
    let stored: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();
    let mut refused = Vec::new();
    for (index, Claim { draft, .. }) in claims.iter().enumerate() {
        let Some(group) = stored.get(&draft.name) else {
            continue;
        };
        let template = &draft.spec.template;
        for (place, order) in &group.orders {
            for (field, why) in order.objections(*place, template) {
                let message = format!("vm/{}, made on demand, {why}", order.name);
                refused.push((index, draft.problem(field, message)));
            }
        }
        let vms = draft.spec.count as usize + group.orders.len();
        if !group.orders.is_empty() && vms > 1 && template.storage.has_writable_disk() {
            let message = format!(
                "a disk is written to by one VM at most, and with those made on demand the group has {vms}"
            );
            refused.push((index, draft.problem("disks", message)));
        }
    }
    refused
}

/// Whether `slicectl apply` may bring these drafts: none may belong to a file, and all must be at peace.
pub fn check_apply(stored: &[HostGroup], drafts: &[Draft]) -> Result<(), Vec<Problem>> {
    let brings = |group: &HostGroup| drafts.iter().any(|draft| draft.name == group.meta.name);
    let standing: Vec<&HostGroup> = stored
        .iter()
        .filter(|group| !group.meta.deleting)
        .filter(|group| group.origin != Origin::Apply || !brings(group))
        .collect();
    let claim = |draft| Claim {
        draft,
        origin: Origin::Apply,
    };
    let claims = by_precedence(stored, drafts.iter().map(claim).collect());
    let living: Vec<HostGroup> = stored
        .iter()
        .filter(|group| !group.meta.deleting)
        .cloned()
        .collect();
    let problems: Vec<Problem> = conflicts(stored, &standing, &claims)
        .into_iter()
        .chain(objections_of_orders(&living, &claims))
        .map(|(_, problem)| problem)
        .collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems),
    }
}

/// Where a group was met.
#[derive(Clone, Copy)]
enum Place<'a> {
    Stored(&'a Origin),
    Written(&'a Location),
}

impl Place<'_> {
    fn describe(self) -> String {
        match self {
            Self::Stored(Origin::Apply) => "made by slicectl apply".to_owned(),
            Self::Stored(Origin::File(path)) => format!("of {}", path.display()),
            Self::Written(at) => format!("at {at}"),
        }
    }
}

/// What is taken already.
#[derive(Default)]
struct Ground<'a> {
    names: HashMap<&'a Name, Place<'a>>,
    ranges: Vec<(Ipv4Network, &'a Name, Place<'a>)>,
    bridged: Vec<Bridged<'a>>,
    requested: Vec<Requested<'a>>,
    total: Total,
}

impl<'a> Ground<'a> {
    fn take(&mut self, name: &'a Name, spec: &'a HostGroupSpec, place: Place<'a>) {
        self.names.insert(name, place);
        match footprint(spec) {
            Footprint::Range(range) => self.ranges.push((range, name, place)),
            Footprint::Bridge(spec, count) => self.bridged.push(Bridged {
                name,
                place,
                spec,
                count,
            }),
            Footprint::Cni(spec) => {
                let requested = cni::of_group(name, spec, Some(place));
                self.requested.extend(requested);
            }
            Footprint::None => {}
        }
    }

    /// `on_demand`: how many VMs of the group were made on demand.
    fn objections(&self, draft: &Draft, on_demand: usize) -> Vec<Problem> {
        if let Some(place) = self.names.get(&draft.name) {
            return vec![Problem {
                at: draft.at.clone(),
                field: format!("{}.name", draft.field),
                message: twice(&draft.name, *place),
            }];
        }
        if let Some(problem) = self.total.objection(draft, on_demand) {
            return vec![problem];
        }
        match footprint(&draft.spec) {
            Footprint::Range(range) => self.overlap(draft, range).into_iter().collect(),
            Footprint::Bridge(spec, _) => bridges::objections(&self.bridged, draft, spec),
            Footprint::Cni(spec) => cni::objection(&self.requested, draft, spec)
                .into_iter()
                .collect(),
            Footprint::None => Vec::new(),
        }
    }

    /// One is enough: a wide range may overlap thousands.
    fn overlap(&self, draft: &Draft, range: Ipv4Network) -> Option<Problem> {
        let (taken, name, place) = self
            .ranges
            .iter()
            .find(|(taken, ..)| pool::overlaps(*taken, range))?;
        let place = place.describe();
        let message = format!("{range} overlaps {taken} of group \"{name}\" {place}");
        Some(draft.problem("network.range", message))
    }
}

fn twice(name: &Name, place: Place) -> String {
    match place {
        Place::Stored(Origin::Apply) => format!(
            "group \"{name}\" was made by slicectl apply; `slicectl delete hostgroup/{name}` first, or change it with apply"
        ),
        Place::Stored(Origin::File(path)) => format!(
            "group \"{name}\" belongs to the file {}; change it there",
            path.display()
        ),
        Place::Written(at) => format!("group \"{name}\" is already at {at}"),
    }
}

/// What of a group's spec may collide with another's.
enum Footprint<'a> {
    /// What it takes is chosen where nobody else is.
    None,
    Range(Ipv4Network),
    /// With the group's count.
    Bridge(&'a BridgeSpec, u32),
    /// Host ports, addresses and a MAC.
    Cni(&'a CniSpec),
}

fn footprint(spec: &HostGroupSpec) -> Footprint<'_> {
    match &spec.template.network {
        NetworkSpec::Isolated(isolated) => isolated.range.map_or(Footprint::None, Footprint::Range),
        NetworkSpec::Bridge(bridge) => Footprint::Bridge(bridge, spec.count),
        NetworkSpec::Cni(_) if spec.count == 0 => Footprint::None,
        NetworkSpec::Cni(spec) => Footprint::Cni(spec),
    }
}

/// Whether an edition of a group claims what the one before did.
fn keeps(before: &HostGroupSpec, after: &HostGroupSpec) -> bool {
    match (footprint(before), footprint(after)) {
        (Footprint::None, Footprint::None) => true,
        (Footprint::Range(a), Footprint::Range(b)) => a == b,
        (Footprint::Cni(a), Footprint::Cni(b)) => {
            let claimed = |spec: &CniSpec| {
                let CniOptions {
                    port_mappings,
                    ips,
                    mac,
                    ..
                } = spec.cni.clone();
                (spec.network_name.clone(), port_mappings, ips, mac)
            };
            claimed(a) == claimed(b)
        }
        (Footprint::Bridge(a, many), Footprint::Bridge(b, few)) => {
            let claimed = |spec: &BridgeSpec| {
                let BridgeSpec {
                    bridge,
                    tap_prefix,
                    gateway,
                    addresses,
                    ..
                } = spec.clone();
                (bridge, tap_prefix, gateway, addresses)
            };
            many == few && claimed(a) == claimed(b)
        }
        (Footprint::None | Footprint::Range(_) | Footprint::Bridge(..) | Footprint::Cni(_), _) => {
            false
        }
    }
}

#[cfg(test)]
mod tests;
