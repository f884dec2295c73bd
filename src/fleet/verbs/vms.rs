//! VMs, with what their nodes report.
//! Out of scope: nodes ([`mod@super::nodes`]).

use super::{Error, Snapshot};
use crate::api::meta::{Meta, Name};
use crate::api::view::{FleetList, FleetRefusal, FleetVm, FleetVmState, MetaView};
use crate::fleet::keys::Key;
use crate::fleet::object::{Group, Phase, Vm, VmStatus};

impl Snapshot {
    /// What the node of a VM reports of it, whatever the epoch.
    pub(super) fn reported(&self, vm: &Vm) -> Option<&VmStatus> {
        let node = &vm.binding.as_ref()?.node;
        let status = self.statuses.get(&vm.meta.uid)?.get(node)?;
        Some(&status.value)
    }
}

/// Whether a status is about the present binding of the VM.
pub(super) fn is_current(vm: &Vm, status: &VmStatus) -> bool {
    let binding = vm.binding.as_ref();
    binding.is_some_and(|binding| binding.epoch == status.epoch)
}

/// Whether a VM has the spec of its group.
pub(super) fn is_up_to_date(group: &Group, status: &VmStatus) -> bool {
    status.group_generation == group.template_generation
}

/// The state of a VM.
pub(super) fn state(snapshot: &Snapshot, vm: &Vm) -> FleetVmState {
    if vm.meta.deleting {
        return FleetVmState::Deleting;
    }
    let Some(binding) = &vm.binding else {
        return FleetVmState::Pending;
    };
    if !snapshot.alive.contains(&binding.node) {
        return FleetVmState::Unknown;
    }
    if binding.moving_from.is_some() {
        return FleetVmState::Moving;
    }
    let key = Key::VmStatus(binding.node.clone(), vm.meta.uid);
    if snapshot.unreadable_at(&key).is_some() {
        return FleetVmState::Unknown;
    }
    let current = snapshot
        .reported(vm)
        .filter(|status| is_current(vm, status));
    match current.map(|status| status.phase) {
        None => FleetVmState::Scheduled,
        Some(Phase::Refused) => FleetVmState::Refused,
        Some(Phase::NotReady) => FleetVmState::NotReady,
        Some(Phase::Ready) => FleetVmState::Ready,
        Some(Phase::Stopped) => FleetVmState::Stopped,
        Some(Phase::Deleted) => FleetVmState::Deleted,
    }
}

/// All VMs by group and index, or that of this name.
///
/// # Errors
/// [`Error::NotFound`] if there is none of this name; [`Error::Conflict`] if a VM cannot be read, which may be that of this name.
pub fn vms(snapshot: &Snapshot, name: Option<&Name>) -> Result<FleetList<FleetVm>, Error> {
    let vms = snapshot.vms.values().map(|stored| &stored.value);
    let selected = vms.filter(|vm| name.is_none_or(|name| vm.meta.name == *name));
    let mut selected: Vec<&Vm> = selected.collect();
    // Of VMs with the same name, one is being deleted.
    selected.sort_by_key(|vm| (&vm.group, vm.index, vm.meta.deleting, vm.meta.uid));
    if let (Some(name), []) = (name, selected.as_slice()) {
        return Err(match snapshot.unreadable_vm() {
            None => Error::NotFound(format!("vm/{name}")),
            // The key has the uid, not the name.
            Some(value) => {
                Error::conflict(format!("whether vm/{name} exists is not known: {value}"))
            }
        });
    }
    Ok(FleetList {
        items: selected.into_iter().map(|vm| view(snapshot, vm)).collect(),
        unreadable: snapshot.unreadable.clone(),
    })
}

fn view(snapshot: &Snapshot, vm: &Vm) -> FleetVm {
    let binding = vm.binding.as_ref();
    let reported = snapshot
        .reported(vm)
        .filter(|status| is_current(vm, status));
    let refusals = vm.refusals.iter().map(|refusal| FleetRefusal {
        node: refusal.node.clone(),
        reason: refusal.reason.clone(),
        until: refusal.until,
    });
    FleetVm {
        metadata: metadata(&vm.meta, Some(&vm.group)),
        index: vm.index,
        group_generation: vm.group_generation,
        node: binding.map(|binding| binding.node.clone()),
        epoch: vm.epoch,
        state: state(snapshot, vm),
        address: reported.and_then(|status| status.address),
        message: message(snapshot, vm),
        moving_from: binding
            .and_then(|binding| binding.moving_from.as_ref())
            .map(|moving| moving.node.clone()),
        previous: vm.previous.iter().map(|copy| copy.node.clone()).collect(),
        refusals: refusals.collect(),
    }
}

/// Why a VM is not Ready.
fn message(snapshot: &Snapshot, vm: &Vm) -> Option<String> {
    let Some(binding) = &vm.binding else {
        return vm.pending.clone();
    };
    let node = &binding.node;
    if !snapshot.alive.contains(node) {
        return Some(format!("node {node} does not renew its lease"));
    }
    if let Some(moving) = &binding.moving_from {
        return Some(format!("its copy on node {} is deleted first", moving.node));
    }
    let key = Key::VmStatus(node.clone(), vm.meta.uid);
    if let Some(value) = snapshot.unreadable_at(&key) {
        return Some(format!("its status cannot be read: {}", value.error));
    }
    let current = snapshot
        .reported(vm)
        .filter(|status| is_current(vm, status));
    current?.message.clone()
}

/// The identity of an object.
pub(super) fn metadata(meta: &Meta, group: Option<&Name>) -> MetaView {
    MetaView {
        name: meta.name.clone(),
        uid: Some(meta.uid),
        generation: Some(meta.generation),
        group: group.cloned(),
        created_at: meta.created_at,
        deleting: meta.deleting,
        finalizers: Vec::new(),
    }
}
