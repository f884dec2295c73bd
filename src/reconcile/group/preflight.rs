//! Preflight checks: whether the replacement of a VM could run, before the existing VM is torn down.
//! Out of scope: the checks themselves (`processes`), which VMs are replaced (`plan`).

use std::collections::{BTreeMap, HashMap};

use super::plan::{Action, Desired};
use crate::api::condition::Reason;
use crate::api::meta::{Name, Uid};
use crate::api::vm::{Vm, VmSpec};
use crate::store::World;

/// The results of the preflight checks of one run, by VM.
#[derive(Debug, Default)]
pub struct Preflight {
    known: HashMap<Uid, PreflightResult>,
}

#[derive(Debug)]
struct PreflightResult {
    spec: VmSpec,
    found: Result<(), String>,
}

/// A preflight check to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightCheck {
    /// The existing VM.
    pub vm: Vm,
    /// The spec of its replacement.
    pub spec: VmSpec,
}

impl Preflight {
    /// Records a result: it could run, or the reason why it could not, as text for users.
    pub fn note(&mut self, check: PreflightCheck, found: Result<(), String>) {
        let desired_spec = check.spec;
        let entry = PreflightResult {
            spec: desired_spec,
            found,
        };
        self.known.insert(check.vm.meta.uid, entry);
    }

    /// Returns a check that must pass before this plan may be carried out.
    pub fn next_check(
        &self,
        world: &World,
        desired: &Desired,
        plan: &[Action],
    ) -> Option<PreflightCheck> {
        let deleted = plan.iter().filter_map(|action| match action {
            Action::Delete { uid } => Some(*uid),
            Action::Create { .. }
            | Action::Update { .. }
            | Action::Release { .. }
            | Action::RemoveGroup => None,
        });
        self.missing_checks(world, desired, deleted)
            .into_iter()
            .next()
    }

    /// Returns the checks that must pass before these VMs may be replaced.
    pub fn missing_checks(
        &self,
        world: &World,
        desired: &Desired,
        vms: impl IntoIterator<Item = Uid>,
    ) -> Vec<PreflightCheck> {
        vms.into_iter()
            .filter_map(|uid| world.vm(uid))
            .filter_map(|vm| Some((vm, desired.spec(vm.index)?)))
            .filter(|(vm, desired_spec)| self.of(vm.meta.uid, desired_spec).is_none())
            .map(|(vm, new_spec)| PreflightCheck {
                vm: vm.clone(),
                spec: new_spec.into_owned(),
            })
            .collect()
    }

    /// The reason why a VM cannot be replaced with this spec, if there is one.
    pub fn failure(&self, uid: Uid, desired_spec: &VmSpec) -> Option<&str> {
        self.of(uid, desired_spec)?
            .found
            .as_ref()
            .err()
            .map(String::as_str)
    }

    fn of(&self, uid: Uid, desired_spec: &VmSpec) -> Option<&PreflightResult> {
        self.known
            .get(&uid)
            .filter(|known| known.spec == *desired_spec)
    }
}

/// What blocks a group, in addition to its VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockedReason {
    /// It has no addresses, with the reason.
    NoRange(String),
    /// The plan does not become empty, with the steps that remain.
    NotConverging(String),
    /// VMs that are left unchanged, each with the reason why it is not replaced.
    PreflightFailed(BTreeMap<Name, String>),
}

impl BlockedReason {
    /// The reason for the condition of the group.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoRange(_) => Reason::Conflict,
            Self::NotConverging(_) => Reason::NotConverging,
            Self::PreflightFailed(_) => Reason::Invalid,
        }
    }

    /// The message, as text for users.
    pub fn message(&self) -> String {
        match self {
            Self::NoRange(why) | Self::NotConverging(why) => why.clone(),
            Self::PreflightFailed(failed) => match failed.first_key_value() {
                None => String::new(),
                Some((vm, why)) if failed.len() == 1 => format!("{vm} is not replaced: {why}"),
                Some((vm, why)) => {
                    let more = failed.len() - 1;
                    format!("{vm} and {more} more are not replaced: {why}")
                }
            },
        }
    }

    /// The reason why this VM is not replaced, if there is one.
    pub fn of_vm(&self, name: &Name) -> Option<&str> {
        match self {
            Self::NoRange(_) | Self::NotConverging(_) => None,
            Self::PreflightFailed(failed) => failed.get(name).map(String::as_str),
        }
    }
}
