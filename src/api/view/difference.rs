//! Responses to changes of groups: the effect on each group, and what a change would do.
//! Out of scope: computing them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::changes::FieldChange;
use super::super::host_group::UpdatePolicy;
use super::super::meta::{Name, Uid};
use super::is_none;

/// The effect of `apply` on one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    /// Created.
    Created,
    /// Changed.
    Configured,
    /// Not changed.
    Unchanged,
    /// Deleted.
    Deleted,
}

/// The result of `apply` for one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApplyResult {
    /// The group.
    pub name: Name,
    /// The effect.
    pub applied: Applied,
    /// Warnings, such as entries that never match.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What a change would do to one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupDiff {
    /// The effect on the group, and warnings.
    #[serde(flatten)]
    pub result: ApplyResult,
    /// How its VMs are replaced after the change.
    #[serde(default)]
    pub update: UpdatePolicy,
    /// The fields that change; empty for a new group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// The VMs that change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<VmDiff>,
}

/// What a change would do to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDiff {
    /// The VM.
    pub name: Name,
    /// The change.
    pub change: VmChange,
    /// Its disk, which is not persistent, exists and is deleted with the VM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deletes_disk: bool,
}

impl VmDiff {
    /// A change that deletes no disk.
    pub fn new(name: &Name, change: VmChange) -> Self {
        Self {
            name: name.clone(),
            change,
            deletes_disk: false,
        }
    }
}

/// The change of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmChange {
    /// It is created.
    Add,
    /// Its spec is changed without a replacement.
    Update,
    /// It is deleted and created again.
    Replace,
    /// It is deleted.
    Delete,
    /// It differs from its group and is left unchanged, because its new spec cannot run.
    NotReplaced,
}

impl fmt::Display for VmChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Update => "update live",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::NotReplaced => "not replaced",
        })
    }
}

/// The number of VMs by change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PlanCounts {
    /// VMs that are created.
    pub add: usize,
    /// VMs that are changed without a replacement.
    pub update: usize,
    /// VMs that are deleted and created again.
    pub replace: usize,
    /// VMs that are deleted.
    pub delete: usize,
    /// VMs that are left unchanged, because their new spec cannot run.
    #[serde(default, skip_serializing_if = "is_none")]
    pub not_replaced: usize,
}

impl PlanCounts {
    /// Counts one VM.
    pub fn count(&mut self, change: VmChange) {
        match change {
            VmChange::Add => self.add += 1,
            VmChange::Update => self.update += 1,
            VmChange::Replace => self.replace += 1,
            VmChange::Delete => self.delete += 1,
            VmChange::NotReplaced => self.not_replaced += 1,
        }
    }
}

/// What a change would do.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct DiffResult {
    /// The groups, in the order of the manifests.
    pub groups: Vec<GroupDiff>,
    /// The number of VMs by change.
    #[serde(default)]
    pub plan: PlanCounts,
    /// The steps for each object (`vm/sandbox-1`, `hostgroup/sandbox`), in order; objects without steps are left out.
    pub actions: BTreeMap<String, Vec<String>>,
    /// For each object with an incomplete list of steps, the reason, such as a failed observation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stuck: BTreeMap<String, String>,
    /// The number of further VMs with steps, left out because of the size limit of a response.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: usize,
}

impl DiffResult {
    /// Whether a group or a VM would change.
    pub fn has_differences(&self) -> bool {
        let changes = |group: &GroupDiff| group.result.applied != Applied::Unchanged;
        self.groups.iter().any(changes)
            || self.plan != PlanCounts::default()
            || !self.actions.is_empty()
    }
}

/// Maximum number of VMs that a warning names.
const MAX_NAMES: usize = 8;

/// The first of these names, and the number of the others: `a-1, a-2 and 30 more`.
fn first_names(names: &[&Name]) -> String {
    let shown: Vec<&str> = names
        .iter()
        .take(MAX_NAMES)
        .map(|name| name.as_str())
        .collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The warning about disks that are deleted because `action` (`deletes`, `replaces`) is done to these VMs; `None` without VMs.
pub fn disk_warning(object: &str, action: &str, vms: &[&Name]) -> Option<String> {
    let verb = match action {
        "deletes" => "",
        _ => "deletes ",
    };
    match vms {
        [] => None,
        [vm] => Some(format!(
            "{object}: {action} 1 VM and {verb}its disk, which is not persistent: {vm}"
        )),
        all => Some(format!(
            "{object}: {action} {} VMs and {verb}their disks, which are not persistent: {}",
            all.len(),
            first_names(all)
        )),
    }
}

/// The body of a request to change the number of VMs of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The new number of VMs, in addition to those made on demand.
    pub count: u32,
    /// The request is refused if the group has another uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// The request is refused if the group has another generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}
