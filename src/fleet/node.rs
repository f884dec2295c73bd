//! The plan of a node: from the objects of the fleet and the local VMs to changes of the local store and to status keys.
//! Out of scope: requests to etcd, the local store, and running VMs.
//!
//! # Rules
//! - Without contact nothing that is bound changes. VMs with `stop_after` are stopped when it ends ([`super::contact`]).
//! - A key that is missing, and one that cannot be decoded, is not a request to delete. A VM is removed only if its object has
//!   `deleting`, or has a greater epoch without a binding to this node.
//! - The node may refuse a VM; it never stops a VM that is not of the fleet to free resources.
//! - A deletion ends in this order: the node reports [`Phase::Deleted`](super::object::Phase::Deleted), the scheduler removes the object or
//!   the name of the node from it, the node removes the status. A status that is missing is therefore no confirmation.
//!
//! # When VMs are stopped without contact
//! The scheduler may replace a VM only if the node stops it first, and the node may learn of a change of the group later than the
//! scheduler. So the node uses a shorter time before it reports it, and reports a longer time before it uses it; the scheduler counts on
//! what is reported ([`VmStatus::stops_within`]). A VM that may be replaced is started after it was reported.
//!
//! # Requirements on the caller
//! - The steps are executed in order; after each change of its inputs the plan is computed again.
//! - The epoch, [`LocalVm::stop`] and [`Run::Stopped`] of a VM are stored with the VM, before anything else is done for the step.
//! - [`Plan::restart_allowed`] is computed again directly before a guest is started: much time may have passed since it was decided.
//! - A status key is written by a transaction that compares its revision with that which was listed: a write that was delayed must not
//!   replace a later one.
//! - A VMM is in the file of the guard ([`super::fence`]) before its guest is started.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::contact::{Boottime, Contact, StopTimes};
use super::object::{DecodeError, Group, NodeSubnet, Vm, VmStatus};
use crate::api::host_group::HostGroupSpec;
use crate::api::meta::{Name, Uid};

mod admission;
mod decision;
mod groups;
mod restart;
#[cfg(test)]
mod simulation;
mod status;
#[cfg(test)]
mod tests;
mod vm;

pub use crate::api::fleet::LocalRefusal;
pub use admission::{Available, image_size};

/// The objects of the fleet, as they were last listed and watched.
#[derive(Debug, Default)]
pub struct Objects {
    /// The groups by name.
    pub groups: BTreeMap<Name, Result<Group, DecodeError>>,
    /// All VMs, or at least those that name this node, those that are on this node, and those of which it has a status.
    pub vms: BTreeMap<Uid, Result<Vm, DecodeError>>,
    /// The status keys of this node.
    pub statuses: BTreeMap<Uid, Result<VmStatus, DecodeError>>,
    /// The subnets of groups in bridge mode on this node, by group.
    pub subnets: BTreeMap<Name, NodeSubnet>,
}

/// A VM of the fleet in the local store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalVm {
    /// The uid of its object.
    pub uid: Uid,
    /// Its name.
    pub name: Name,
    /// Its group.
    pub group: Name,
    /// The uid of its group.
    pub group_uid: Uid,
    /// The index in its group.
    pub index: u32,
    /// The epoch of its binding.
    pub epoch: u64,
    /// The generation of the group from which it has its template.
    pub group_generation: u64,
    /// When it is stopped without contact; `None`: never.
    pub stop: Option<StopTimes>,
    /// What it does.
    pub run: Run,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Why it is not Ready, a sentence.
    pub message: Option<String>,
}

/// What a local VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It is Ready.
    Ready,
    /// It is being started, or it has failed.
    NotReady,
    /// It was stopped by [`Step::StopVm`] or by the guard, and is not started by anything but [`Step::StartVm`].
    Stopped,
    /// It is being deleted.
    Deleting,
}

/// A group of the fleet in the local store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalGroup {
    /// The name.
    pub name: Name,
    /// The uid of the group of the fleet.
    pub uid: Uid,
    /// The generation that was copied.
    pub generation: u64,
}

/// What a plan is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// This node.
    pub node: &'a Name,
    /// Its contact.
    pub contact: &'a Contact,
    /// The time.
    pub now: Boottime,
    /// The objects.
    pub objects: &'a Objects,
    /// The local VMs of the fleet.
    pub local: &'a BTreeMap<Uid, LocalVm>,
    /// The refusals in the local store.
    pub refusals: &'a BTreeMap<Uid, LocalRefusal>,
    /// The local groups of the fleet.
    pub local_groups: &'a [LocalGroup],
    /// What VMs may use.
    pub available: &'a Available,
    /// The guard of this node.
    pub guard: &'a GuardState,
}

/// What the guard of a node does at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardState {
    /// It runs.
    pub runs: bool,
    /// The VMs that are in its file. One that is not in the local store has a VMM nevertheless, which the daemon has lost.
    pub vms: BTreeSet<Uid>,
}

/// A change. In the order in which they are executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The VM is stopped, and not started again by its restart policy. Its disk is kept.
    StopVm {
        /// The VM.
        uid: Uid,
        /// What requires the stop.
        cause: StopCause,
    },
    /// The VM is deleted.
    RemoveVm {
        /// The VM.
        uid: Uid,
        /// What requires the deletion.
        cause: RemoveCause,
    },
    /// The group is stored: a copy with `count: 0` and the update policy `on-delete`. Its VMs are on-demand entries.
    PutGroup {
        /// The name.
        name: Name,
        /// The uid of the group of the fleet.
        uid: Uid,
        /// The generation that is copied.
        generation: u64,
        /// The copy.
        spec: Box<HostGroupSpec>,
    },
    /// The VM is stored, and started.
    AddVm {
        /// The VM, with [`Run::NotReady`].
        vm: Box<LocalVm>,
    },
    /// The facts of the VM are stored; it keeps running. If `group_generation` differs, it is then replaced by one with the template
    /// of the group, with the same uid.
    UpdateVm {
        /// The VM.
        uid: Uid,
        /// See [`LocalVm::epoch`].
        epoch: u64,
        /// See [`LocalVm::group_generation`].
        group_generation: u64,
        /// See [`LocalVm::stop`].
        stop: Option<StopTimes>,
    },
    /// The VM, which was stopped, is started.
    StartVm {
        /// The VM.
        uid: Uid,
    },
    /// The VM is not added. A [`LocalRefusal`] is stored, before the status is written.
    RefuseVm {
        /// The VM.
        uid: Uid,
        /// The epoch of the binding.
        epoch: u64,
        /// Why, a sentence.
        reason: String,
    },
    /// The refusal, which no binding needs any more, is removed from the local store.
    ForgetRefusal {
        /// The VM.
        uid: Uid,
    },
    /// The group, which has no VMs, is removed from the local store.
    RemoveGroup {
        /// The name.
        name: Name,
    },
    /// The status is written.
    PutStatus {
        /// The VM.
        uid: Uid,
        /// The status.
        status: Box<VmStatus>,
    },
    /// The status is removed.
    DeleteStatus {
        /// The VM.
        uid: Uid,
    },
}

/// Why a VM is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Contact is lost for `stop_after`.
    NoContact,
    /// Its object says that the copy is kept for a later return (`keep`).
    Kept,
}

/// Why a VM is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoveCause {
    /// Its object has `deleting`.
    Deleting {
        /// Its object has `forced`.
        forced: bool,
    },
    /// Its object has a greater epoch, and no binding to this node.
    Superseded {
        /// The epoch.
        epoch: u64,
        /// The persistent disk is deleted too.
        delete_disk: bool,
    },
}

/// Why nothing is done for a VM although something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportReason {
    /// Its object is missing.
    NotInFleet,
    /// Its object cannot be decoded.
    Undecodable,
    /// Its group is missing, or cannot be decoded.
    NoGroup,
    /// Its object has an earlier epoch than the VM.
    StaleEpoch,
    /// Its object has no binding, and no greater epoch.
    Unbound,
    /// It waits for the deletion of its copy on another node, or of another VM or group with the same name on this one.
    Waiting,
}

/// What is reported of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The VM.
    pub uid: Uid,
    /// The reason of the condition.
    pub reason: ReportReason,
    /// A sentence.
    pub message: String,
}

/// The plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes.
    pub steps: Vec<Step>,
    /// The VMs that may be restarted by their restart policy if they fail.
    pub restart_allowed: BTreeSet<Uid>,
    /// What is reported, at most one of each VM.
    pub reports: Vec<Report>,
}

/// The plan of a node.
pub fn plan(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    for local in input.local.values() {
        vm::stop_overdue(input, local, &mut plan);
    }
    if input.contact.may_act(input.now) {
        let objects = input.objects;
        let stored = input.local.keys().chain(input.refusals.keys());
        let keys = objects.vms.keys().chain(objects.statuses.keys());
        let uids: BTreeSet<Uid> = stored.chain(keys).copied().collect();
        let mut available = input.available.clone();
        for uid in uids {
            vm::plan(input, uid, &mut available, &mut plan);
        }
        groups::remove(input, &mut plan);
    }
    plan.steps.sort_by_key(Step::rank);
    plan.restart_allowed = restart::allowed(input, &plan.steps);
    plan
}

/// Whether this VM may be started now. To be called directly before a start: the decision of a plan may be old.
pub fn may_start(input: &Input<'_>, uid: Uid) -> bool {
    let Some(local) = input.local.get(&uid) else {
        return false;
    };
    let mut plan = Plan::default();
    vm::stop_overdue(input, local, &mut plan);
    if input.contact.may_act(input.now) {
        vm::plan(input, uid, &mut input.available.clone(), &mut plan);
    }
    restart::is_allowed(input, local, &plan.steps)
}

impl Step {
    /// Resources are freed before they are used, and the status describes what was stored.
    fn rank(&self) -> u8 {
        match self {
            Self::StopVm { .. } => 0,
            Self::RemoveVm { .. } => 1,
            Self::PutGroup { .. } => 2,
            Self::UpdateVm { .. } => 3,
            Self::AddVm { .. } => 4,
            Self::StartVm { .. } => 5,
            Self::RefuseVm { .. } | Self::ForgetRefusal { .. } => 6,
            Self::RemoveGroup { .. } => 7,
            Self::PutStatus { .. } | Self::DeleteStatus { .. } => 8,
        }
    }
}

impl Input<'_> {
    /// The group of a VM, if it can be read and is not another one with the same name.
    fn group(&self, name: &Name, uid: Uid) -> Option<&Group> {
        let group = self.objects.groups.get(name)?.as_ref().ok()?;
        (group.meta.uid == uid).then_some(group)
    }

    /// The status in etcd, if it can be read.
    fn status(&self, uid: Uid) -> Option<&VmStatus> {
        self.objects.statuses.get(&uid)?.as_ref().ok()
    }

    /// Whether the guard stops this VM if the daemon does not: only then the scheduler may count on its end.
    fn is_guarded(&self, uid: Uid) -> bool {
        self.guard.runs && self.guard.vms.contains(&uid)
    }

    /// Whether a VM with these times may run now.
    fn may_run(&self, stop: Option<StopTimes>) -> bool {
        stop.is_none_or(|stop| self.now < self.contact.stop_due(stop.after))
    }
}
