//! Plans which VMs of a group are created, changed, replaced and removed. Pure.
//! Out of scope: ranges.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Progress;
use crate::api::host_group::{HostGroup, MAX_COUNT, UpdatePolicy};
use crate::api::meta::{Name, Uid};
use crate::api::on_demand::OnDemandEntry;
use crate::api::vm::VmSpec;

/// The desired state of a group. The default is empty.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Desired {
    /// The number of VMs.
    pub count: u32,
    /// How they are updated.
    pub update: UpdatePolicy,
    /// The spec of each VM. None: the group is deleted.
    pub template: Option<VmSpec>,
    /// VMs on demand, in addition to these, by index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub orders: BTreeMap<u32, OnDemandEntry>,
}

impl Desired {
    /// The indexes of all desired VMs.
    fn places(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=self.count).chain(self.orders.keys().copied())
    }

    /// The desired spec of the VM with this index. None: no VM is desired.
    pub(super) fn spec(&self, index: u32) -> Option<Cow<'_, VmSpec>> {
        let template = self.template.as_ref()?;
        match self.orders.get(&index) {
            Some(order) => Some(Cow::Owned(order.overrides.spec(template))),
            None if (1..=self.count).contains(&index) => Some(Cow::Borrowed(template)),
            None => None,
        }
    }

    /// Whether a VM with this index is desired.
    pub fn requires(&self, index: u32) -> bool {
        self.spec(index).is_some()
    }
}

/// The stored state of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The group's name.
    pub name: Name,
    /// The group object is stored.
    pub group: bool,
    /// VMs by index.
    pub members: BTreeMap<u32, Member>,
    /// Names that have a lease.
    pub leases: BTreeSet<Name>,
}

/// One VM of the group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its uid.
    pub uid: Uid,
    /// Its current spec.
    pub spec: VmSpec,
    /// The group no longer assigns its address: it is replaced, and the replacement gets another address.
    #[serde(default)]
    pub misplaced: bool,
    /// Its replacement could not run on this host: it is left unchanged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preflight_failed: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// It is Ready at its newest generation, or paused or stopped as requested.
    pub ready: bool,
    /// None: it is one of the VMs that `count` requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<Box<Extra>>,
}

/// A VM on demand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extra {
    /// Its name.
    pub name: Name,
    /// The template that its spec was computed from.
    pub template: VmSpec,
}

impl Member {
    fn is_outdated(&self, desired_spec: &VmSpec) -> bool {
        self.misplaced || !self.spec.can_change_live_to(desired_spec)
    }

    /// Whether its spec and the template that it stores are as desired.
    fn is_current(&self, desired_spec: &VmSpec, template: &VmSpec) -> bool {
        let extra = self.on_demand.as_ref();
        self.spec == *desired_spec && extra.is_none_or(|extra| extra.template == *template)
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Create a VM.
    Create {
        /// Its index.
        index: u32,
        /// Its spec.
        spec: Box<VmSpec>,
        /// None: it is one of the VMs that `count` requires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        order: Option<Box<OnDemandEntry>>,
    },
    /// Change the spec of a VM without restarting it.
    Update {
        /// The VM.
        uid: Uid,
        /// The new spec.
        spec: Box<VmSpec>,
    },
    /// Delete a VM.
    Delete {
        /// The VM.
        uid: Uid,
    },
    /// Release a lease.
    Release {
        /// The name of the VM that had it.
        lease: Name,
    },
    /// Remove the group object.
    RemoveGroup,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create {
                order: Some(order), ..
            } => write!(f, "create VM {}", order.name),
            Self::Create {
                index, order: None, ..
            } => write!(f, "create VM {index}"),
            Self::Update { uid, .. } => write!(f, "change the policy of VM {uid}"),
            Self::Delete { uid } => write!(f, "delete VM {uid}"),
            Self::Release { lease } => write!(f, "release lease {lease}"),
            Self::RemoveGroup => f.write_str("remove the group"),
        }
    }
}

/// Returns the next steps. VMs are replaced one at a time, so one plan does not complete a rolling update.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    for (index, member) in &observed.members {
        if !desired.requires(*index) && !member.deleting {
            plan.push(Action::Delete { uid: member.uid });
        }
    }
    if let Some(template) = &desired.template {
        plan_members(desired, template, observed, &mut plan);
    }
    plan_leases(desired, observed, &mut plan);
    if desired.template.is_none() && observed.group && observed.members.is_empty() {
        plan.push(Action::RemoveGroup);
    }
    plan
}

fn plan_members(desired: &Desired, template: &VmSpec, observed: &Observed, plan: &mut Vec<Action>) {
    for index in desired.places() {
        let Some(desired_spec) = desired.spec(index) else {
            continue;
        };
        let order = desired.orders.get(&index);
        // The validation of manifests refuses a group whose VMs would have an invalid name.
        if order.is_none() && HostGroup::vm_name(&observed.name, index).is_none() {
            continue;
        }
        match observed.members.get(&index) {
            None => plan.push(Action::Create {
                index,
                spec: Box::new(desired_spec.into_owned()),
                order: order.cloned().map(Box::new),
            }),
            Some(member) if member.deleting || member.is_current(&desired_spec, template) => {}
            Some(member) if member.spec.can_change_live_to(&desired_spec) => {
                plan.push(Action::Update {
                    uid: member.uid,
                    spec: Box::new(desired_spec.into_owned()),
                })
            }
            Some(_) => {}
        }
    }
    plan.extend(replacement(desired, template, observed));
}

/// The VMs that a rolling update replaces, in order: a VM that is not Ready is replaced first. A VM whose replacement could not run on
/// this host is one of them; a VM that is being deleted is not.
pub fn outdated(desired: &Desired, observed: &Observed) -> Vec<Uid> {
    let replaced = ordered_outdated(desired, observed);
    replaced.into_iter().map(|member| member.uid).collect()
}

fn ordered_outdated<'o>(desired: &Desired, observed: &'o Observed) -> Vec<&'o Member> {
    match desired.update {
        UpdatePolicy::OnDelete => return Vec::new(),
        UpdatePolicy::Rolling => {}
    }
    let is_outdated = |index: u32, member: &Member| {
        let desired_spec = desired.spec(index);
        desired_spec.is_some_and(|new_spec| member.is_outdated(&new_spec))
    };
    let members = observed.members.iter();
    let mut replaced: Vec<(&u32, &Member)> = members
        .filter(|(index, member)| !member.deleting && is_outdated(**index, member))
        .collect();
    replaced.sort_by_key(|(index, member)| (member.ready, **index));
    replaced.into_iter().map(|(_, member)| member).collect()
}

/// The next VM to replace: at most one VM of the group is replaced at a time.
fn replacement(desired: &Desired, template: &VmSpec, observed: &Observed) -> Option<Action> {
    let all_there = desired
        .places()
        .all(|index| observed.members.contains_key(&index));
    let outdated = |index: u32, member: &Member| {
        let desired_spec = desired.spec(index);
        member.is_outdated(desired_spec.as_deref().unwrap_or(template))
    };
    let busy = observed
        .members
        .iter()
        .any(|(index, member)| member.deleting || (!member.ready && !outdated(*index, member)));
    if !all_there || busy {
        return None;
    }
    let mut replaced = ordered_outdated(desired, observed).into_iter();
    let next = replaced.find(|member| !member.preflight_failed);
    next.map(|member| Action::Delete { uid: member.uid })
}

fn plan_leases(desired: &Desired, observed: &Observed, plan: &mut Vec<Action>) {
    let counted = (1..=desired.count)
        .chain(observed.members.keys().copied())
        .filter(|index| *index <= MAX_COUNT)
        .filter_map(|index| HostGroup::vm_name(&observed.name, index));
    let ordered = desired.orders.values().map(|order| order.name.clone());
    let existing_members = observed.members.values();
    let existing_names =
        existing_members.filter_map(|member| Some(member.on_demand.as_ref()?.name.clone()));
    let kept: BTreeSet<Name> = counted.chain(ordered).chain(existing_names).collect();
    for lease in observed.leases.difference(&kept) {
        plan.push(Action::Release {
            lease: lease.clone(),
        });
    }
}

/// Whether the group waits for one of its VMs when its plan is empty.
pub(super) fn progress(desired: &Desired, observed: &Observed) -> Progress {
    let outdated = |(index, member): (&u32, &Member)| {
        let desired_spec = desired.spec(*index);
        desired_spec.is_some_and(|new_spec| member.is_outdated(&new_spec))
    };
    let waits = observed.members.values().any(|member| member.deleting)
        || (desired.update == UpdatePolicy::Rolling && observed.members.iter().any(outdated));
    match waits {
        true => Progress::Waiting,
        false => Progress::Done,
    }
}
