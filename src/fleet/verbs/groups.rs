//! Groups with the state of their VMs.
//! Out of scope: changing them.

use super::Snapshot;
use super::vms::{is_current, is_up_to_date, metadata, state};
use crate::api::meta::Name;
use crate::api::view::{FleetGroup, FleetGroupStatus, FleetList, FleetVmState};
use crate::fleet::object::Group;

/// All groups, or that of this name.
pub fn groups(snapshot: &Snapshot, name: Option<&Name>) -> FleetList<FleetGroup> {
    let groups = snapshot.groups.values().map(|stored| &stored.value);
    let selected = groups.filter(|group| name.is_none_or(|name| group.meta.name == *name));
    FleetList {
        items: selected.map(|group| view(snapshot, group)).collect(),
        unreadable: snapshot.unreadable.clone(),
    }
}

fn view(snapshot: &Snapshot, group: &Group) -> FleetGroup {
    let mut status = FleetGroupStatus::default();
    for vm in snapshot.vms_of(group) {
        let state = state(snapshot, vm);
        let reported = snapshot
            .reported(vm)
            .filter(|status| is_current(vm, status));
        status.vms += 1;
        status.ready += usize::from(state == FleetVmState::Ready);
        status.pending += usize::from(state == FleetVmState::Pending);
        status.up_to_date += usize::from(reported.is_some_and(|it| is_up_to_date(group, it)));
    }
    FleetGroup {
        metadata: metadata(&group.meta, None),
        spec: group.spec.clone(),
        placement: group.placement.clone(),
        replacement: group.replacement,
        status,
    }
}
