//! Which VMs a group makes, changes, replaces and removes. Pure.
//! Not here: ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Progress;
use crate::api::host_group::{HostGroup, UpdatePolicy};
use crate::api::meta::{Name, Uid};
use crate::api::vm::VmSpec;

/// What ought to be. The default is nothing.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Desired {
    /// So many VMs.
    pub count: u32,
    /// How changes reach them.
    pub update: UpdatePolicy,
    /// Each of them; none: the group is to go.
    pub template: Option<VmSpec>,
}

/// What is.
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
    /// Which.
    pub uid: Uid,
    /// What it runs.
    pub spec: VmSpec,
    /// Its address is no longer one that the group gives it: it is replaced, and that gives it another.
    #[serde(default)]
    pub misplaced: bool,
    /// On its way out.
    pub deleting: bool,
    /// At its newest generation; or paused or down, where it is to be.
    pub ready: bool,
}

impl Member {
    fn is_outdated(&self, template: &VmSpec) -> bool {
        self.misplaced || !self.spec.changes_live_to(template)
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A new VM.
    Create {
        /// Its index.
        index: u32,
        /// What it is to be.
        spec: Box<VmSpec>,
    },
    /// A change that the running VM does not notice.
    Update {
        /// Which.
        uid: Uid,
        /// What it becomes.
        spec: Box<VmSpec>,
    },
    /// Take a VM down.
    Delete {
        /// Which.
        uid: Uid,
    },
    /// Give a block back.
    Release {
        /// Whose.
        lease: Name,
    },
    /// Forget the group.
    RemoveGroup,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { index, .. } => write!(f, "create VM {index}"),
            Self::Update { uid, .. } => write!(f, "change the policy of VM {uid}"),
            Self::Delete { uid } => write!(f, "delete VM {uid}"),
            Self::Release { lease } => write!(f, "release lease {lease}"),
            Self::RemoveGroup => f.write_str("remove the group"),
        }
    }
}

/// What is to be done next. Replacements come one at a time, so one plan does not finish a rolling update.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    for (index, member) in &observed.members {
        if !wanted(desired, *index) && !member.deleting {
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

fn wanted(desired: &Desired, index: u32) -> bool {
    desired.template.is_some() && (1..=desired.count).contains(&index)
}

fn plan_members(desired: &Desired, template: &VmSpec, observed: &Observed, plan: &mut Vec<Action>) {
    let spec = || Box::new(template.clone());
    for index in 1..=desired.count {
        match observed.members.get(&index) {
            None => plan.push(Action::Create {
                index,
                spec: spec(),
            }),
            Some(member) if member.deleting || member.spec == *template => {}
            Some(member) if member.spec.changes_live_to(template) => plan.push(Action::Update {
                uid: member.uid,
                spec: spec(),
            }),
            Some(_) => {}
        }
    }
    plan.extend(replacement(desired, template, observed));
}

/// The next VM to replace: one of the group is down at a time. A VM that is not Ready anyway goes first.
fn replacement(desired: &Desired, template: &VmSpec, observed: &Observed) -> Option<Action> {
    match desired.update {
        UpdatePolicy::OnDelete => return None,
        UpdatePolicy::Rolling => {}
    }
    let all_there = (1..=desired.count).all(|index| observed.members.contains_key(&index));
    let outdated = |member: &Member| member.is_outdated(template);
    let busy = observed
        .members
        .values()
        .any(|member| member.deleting || (!member.ready && !outdated(member)));
    if !all_there || busy {
        return None;
    }
    observed
        .members
        .iter()
        .filter(|(index, member)| wanted(desired, **index) && outdated(member))
        .min_by_key(|(index, member)| (member.ready, **index))
        .map(|(_, member)| Action::Delete { uid: member.uid })
}

fn plan_leases(desired: &Desired, observed: &Observed, plan: &mut Vec<Action>) {
    let kept: BTreeSet<Name> = observed
        .members
        .keys()
        .copied()
        .chain(1..=desired.count)
        .filter_map(|index| HostGroup::vm_name(&observed.name, index))
        .collect();
    for lease in observed.leases.difference(&kept) {
        plan.push(Action::Release {
            lease: lease.clone(),
        });
    }
}

/// Whether the group waits for one of its VMs once the plan is carried out.
pub(super) fn progress(desired: &Desired, observed: &Observed, plan: &[Action]) -> Progress {
    let outdated = |member: &Member| {
        desired
            .template
            .as_ref()
            .is_some_and(|template| member.is_outdated(template))
    };
    let waits = !plan.is_empty()
        || observed.members.values().any(|member| member.deleting)
        || (desired.update == UpdatePolicy::Rolling && observed.members.values().any(outdated));
    match waits {
        true => Progress::Waiting,
        false => Progress::Done,
    }
}
