//! Detects conflicts between groups, and between groups and the limits of a host.
//! Out of scope: reading YAML, the store, leased pools.
//!
//! # Why
//! VM names need no check: `<group>-<index>` is unique if group names are, because an index contains no `-`, so the part before the
//! last `-` is the group (`a-1-1` is the first VM of `a-1`, not a VM of `a`). A test below verifies this. VMs made on demand have
//! names that `count` of a group cannot produce ([`HostGroup::is_counted_name`]).

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
use bridges::BridgeGroup;
use capacity::Total;
use cni::Requested;

pub use capacity::{MAX_GROUPS, MAX_ISOLATED, MAX_RULES, MAX_VMS};
pub use cni::request_conflict;

/// A draft, and the origin that the group would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// The desired group.
    pub draft: &'a Draft,
    /// The origin of the draft.
    pub origin: Origin,
}

/// The problems of `claims`, each with the index of its claim. `other_groups` are groups that no claim changes. Of two claims in conflict, the
/// first one wins, see [`by_precedence`]. VMs made on demand in a group of `stored` keep their resources when a claim changes the group.
pub fn conflicts(
    stored: &[HostGroup],
    other_groups: &[&HostGroup],
    claims: &[Claim],
) -> Vec<(usize, Problem)> {
    let mut used = UsedResources::default();
    for group in other_groups {
        used.take(
            &group.meta.name,
            &group.spec,
            Definition::Stored(&group.origin),
        );
        used.total.add(&group.spec, group.orders.len());
        used.requested.extend(cni::on_demand_requests(group));
    }
    let existing = stored.iter().filter(|group| !group.meta.deleting);
    let stored: HashMap<&Name, &HostGroup> = existing.map(|g| (&g.meta.name, g)).collect();
    let changed = |claim: &Claim| stored.get(&claim.draft.name).copied();
    for group in claims.iter().filter_map(changed) {
        used.requested.extend(cni::on_demand_requests(group));
    }
    let mut refused = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let draft = claim.draft;
        let on_demand = changed(claim).map_or(0, |group| group.orders.len());
        let problems = used.objections(draft, on_demand);
        if problems.is_empty() {
            used.take(&draft.name, &draft.spec, Definition::Written(&draft.at));
            used.total.add(&draft.spec, on_demand);
        }
        refused.extend(problems.into_iter().map(|problem| (index, problem)));
    }
    refused
}

/// Sorts claims by precedence: existing groups that keep their resources, existing groups that change them, existing groups with another
/// origin, new groups. The order within each class is preserved.
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

/// The problems of `claims` with VMs made on demand, each with the index of its claim: such VMs are not changed, so a changed group must
/// still allow them.
pub fn on_demand_problems(stored: &[HostGroup], claims: &[Claim]) -> Vec<(usize, Problem)> {
    let stored: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();
    let mut refused = Vec::new();
    for (index, Claim { draft, .. }) in claims.iter().enumerate() {
        let Some(group) = stored.get(&draft.name) else {
            continue;
        };
        let template = &draft.spec.template;
        for (vm_index, entry) in &group.orders {
            for (field, predicate) in entry.objections(*vm_index, template) {
                let message = format!("vm/{}, made on demand, {predicate}", entry.name);
                refused.push((index, draft.problem(field, message)));
            }
        }
        let vms = draft.spec.count as usize + group.orders.len();
        if !group.orders.is_empty() && vms > 1 && template.storage.has_writable_disk() {
            let message = format!(
                "at most one VM may write to a disk, and with those made on demand the group has {vms}"
            );
            refused.push((index, draft.problem("disks", message)));
        }
    }
    refused
}

/// Checks drafts of `slicectl apply`: none may be defined in a file, and none may conflict with other groups.
///
/// # Errors
/// All problems.
pub fn check_apply(stored: &[HostGroup], drafts: &[Draft]) -> Result<(), Vec<Problem>> {
    let replaces = |group: &HostGroup| drafts.iter().any(|draft| draft.name == group.meta.name);
    let fixed: Vec<&HostGroup> = stored
        .iter()
        .filter(|group| !group.meta.deleting)
        .filter(|group| group.origin != Origin::Apply || !replaces(group))
        .collect();
    let claim = |draft| Claim {
        draft,
        origin: Origin::Apply,
    };
    let claims = by_precedence(stored, drafts.iter().map(claim).collect());
    let existing: Vec<HostGroup> = stored
        .iter()
        .filter(|group| !group.meta.deleting)
        .cloned()
        .collect();
    let problems: Vec<Problem> = conflicts(stored, &fixed, &claims)
        .into_iter()
        .chain(on_demand_problems(&existing, &claims))
        .map(|(_, problem)| problem)
        .collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems),
    }
}

/// The problems of drafts for a fleet with its other groups: `stored` are all that are not being deleted. The limits of a host do not
/// apply: the scheduler decides how many VMs a node has.
pub fn fleet_conflicts(stored: &[HostGroup], drafts: &[Draft]) -> Vec<Problem> {
    let mut used = UsedResources {
        has_no_limits: true,
        ..UsedResources::default()
    };
    for group in stored {
        let name = &group.meta.name;
        if !drafts.iter().any(|draft| draft.name == *name) {
            used.take(name, &group.spec, Definition::Stored(&group.origin));
        }
    }
    let mut problems = Vec::new();
    for draft in drafts {
        let found = used.objections(draft, 0);
        if found.is_empty() {
            used.take(&draft.name, &draft.spec, Definition::Written(&draft.at));
        }
        problems.extend(found);
    }
    problems
}

/// Why a group of a fleet, which is copied to this host, conflicts with the other groups on it: the first problem, a sentence. The limits of a
/// host do not apply: the scheduler decides how many VMs it has.
pub fn copy_conflict(others: &[HostGroup], copy: &Draft) -> Option<String> {
    let mut used = UsedResources {
        has_no_limits: true,
        ..UsedResources::default()
    };
    for group in others.iter().filter(|group| group.meta.name != copy.name) {
        used.take(
            &group.meta.name,
            &group.spec,
            Definition::Stored(&group.origin),
        );
        used.requested.extend(cni::on_demand_requests(group));
    }
    let problem = used.objections(copy, 0).into_iter().next();
    problem.map(|problem| problem.message)
}

/// The place where a group is defined, for messages.
#[derive(Clone, Copy)]
enum Definition<'a> {
    Stored(&'a Origin),
    Written(&'a Location),
}

impl Definition<'_> {
    fn describe(self) -> String {
        match self {
            Self::Stored(Origin::Apply) => "created by slicectl apply".to_owned(),
            Self::Stored(Origin::File(path)) => format!("of {}", path.display()),
            Self::Stored(Origin::Fleet { .. }) => "of the fleet".to_owned(),
            Self::Written(at) => format!("at {at}"),
        }
    }
}

/// The resources that are in use.
#[derive(Default)]
struct UsedResources<'a> {
    names: HashMap<&'a Name, Definition<'a>>,
    ranges: Vec<(Ipv4Network, &'a Name, Definition<'a>)>,
    bridge_groups: Vec<BridgeGroup<'a>>,
    requested: Vec<Requested<'a>>,
    total: Total,
    /// The total is not limited: that of a fleet.
    has_no_limits: bool,
}

impl<'a> UsedResources<'a> {
    fn take(&mut self, name: &'a Name, spec: &'a HostGroupSpec, definition: Definition<'a>) {
        self.names.insert(name, definition);
        match group_resources(spec) {
            GroupResources::Range(range) => self.ranges.push((range, name, definition)),
            GroupResources::Bridge(spec, count) => self.bridge_groups.push(BridgeGroup {
                name,
                definition,
                spec,
                count,
            }),
            GroupResources::Cni(spec) => {
                let requested = cni::group_requests(name, spec, Some(definition));
                self.requested.extend(requested);
            }
            GroupResources::None => {}
        }
    }

    /// The problems of a draft. `on_demand` is the number of VMs made on demand in the group.
    fn objections(&self, draft: &Draft, on_demand: usize) -> Vec<Problem> {
        if let Some(definition) = self.names.get(&draft.name) {
            return vec![Problem {
                at: draft.at.clone(),
                field: format!("{}.name", draft.locations.group()),
                message: twice(&draft.name, *definition),
            }];
        }
        if !self.has_no_limits
            && let Some(problem) = self.total.exceeded_limit(draft, on_demand)
        {
            return vec![problem];
        }
        match group_resources(&draft.spec) {
            GroupResources::Range(range) => self.overlap(draft, range).into_iter().collect(),
            GroupResources::Bridge(spec, _) => {
                bridges::objections(&self.bridge_groups, draft, spec)
            }
            GroupResources::Cni(spec) => cni::conflict(&self.requested, draft, spec)
                .into_iter()
                .collect(),
            GroupResources::None => Vec::new(),
        }
    }

    /// The first overlap only: a wide range may overlap thousands of others.
    fn overlap(&self, draft: &Draft, range: Ipv4Network) -> Option<Problem> {
        let (taken, name, definition) = self
            .ranges
            .iter()
            .find(|(taken, ..)| pool::overlaps(*taken, range))?;
        let description = definition.describe();
        let message = format!("{range} overlaps {taken} of group \"{name}\" {description}");
        Some(draft.problem("network.range", message))
    }
}

fn twice(name: &Name, definition: Definition) -> String {
    match definition {
        Definition::Stored(Origin::Apply) => format!(
            "group \"{name}\" was created by slicectl apply; run `slicectl delete hostgroup/{name}` first, or change it with apply"
        ),
        Definition::Stored(Origin::Fleet { .. }) => {
            format!("group \"{name}\" is of the fleet; change it with slicectl apply --fleet")
        }
        Definition::Stored(Origin::File(path)) => format!(
            "group \"{name}\" is defined in the file {}; change it there",
            path.display()
        ),
        Definition::Written(at) => format!("group \"{name}\" is already defined at {at}"),
    }
}

/// The resources of a group that may conflict with other groups.
enum GroupResources<'a> {
    /// The resources are chosen such that they do not conflict.
    None,
    Range(Ipv4Network),
    /// The bridge settings and the group's count.
    Bridge(&'a BridgeSpec, u32),
    /// Host ports, addresses and a MAC.
    Cni(&'a CniSpec),
}

fn group_resources(spec: &HostGroupSpec) -> GroupResources<'_> {
    match &spec.template.network {
        NetworkSpec::Isolated(isolated) => isolated
            .range
            .map_or(GroupResources::None, GroupResources::Range),
        NetworkSpec::Bridge(bridge) => GroupResources::Bridge(bridge, spec.count),
        NetworkSpec::Cni(_) if spec.count == 0 => GroupResources::None,
        NetworkSpec::Cni(spec) => GroupResources::Cni(spec),
    }
}

/// Whether a changed spec claims the same resources as the previous one.
fn keeps(before: &HostGroupSpec, after: &HostGroupSpec) -> bool {
    match (group_resources(before), group_resources(after)) {
        (GroupResources::None, GroupResources::None) => true,
        (GroupResources::Range(a), GroupResources::Range(b)) => a == b,
        (GroupResources::Cni(a), GroupResources::Cni(b)) => {
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
        (GroupResources::Bridge(a, many), GroupResources::Bridge(b, few)) => {
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
        (
            GroupResources::None
            | GroupResources::Range(_)
            | GroupResources::Bridge(..)
            | GroupResources::Cni(_),
            _,
        ) => false,
    }
}

#[cfg(test)]
mod tests;
