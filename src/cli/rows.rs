//! The table columns of each kind.
//! Out of scope: drawing the table, the words of the STATUS column (see [`super::status_word`]).

use super::age::age;
use super::paint::Severity;
use super::status_word;
use super::table::Field;
use crate::api::condition::Status;
use crate::api::meta::Timestamp;
use crate::api::view::{
    ConditionView, GroupStatus, GroupView, Kind, LeaseView, MetaView, Object, VmView, VmmState,
};

/// The set of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Columns that fit a terminal.
    Narrow,
    /// More columns (`-o wide`).
    Wide,
}

/// Title of the status column.
pub const STATUS: &str = "STATUS";

/// Title of the column whose values change with time alone.
pub const AGE: &str = "AGE";

/// The column titles of a kind. Terminals of 80 columns show the narrow ones, those of 160 columns all.
pub fn header(kind: Kind, columns: Columns) -> Vec<&'static str> {
    let (narrow, wide): (&[&str], &[&str]) = match kind {
        Kind::HostGroup => (
            &["NAME", "MODE", "READY", "UP-TO-DATE", STATUS, AGE],
            &["RANGE", "HYPERVISOR", "VCPU", "RAM", "ORIGIN"],
        ),
        Kind::Vm => (
            &[
                "NAME", "GROUP", "MODE", "READY", STATUS, "RESTARTS", "IP", AGE,
            ],
            &["HYPERVISOR", "PID", "MAC", "HOST-LINK"],
        ),
        Kind::Lease => (&["NAME", "GROUP", STATUS, "IP", "BLOCK", AGE], &["RANGE"]),
    };
    match columns {
        Columns::Narrow => narrow.to_vec(),
        Columns::Wide => [narrow, wide].concat(),
    }
}

/// The row of an object, with the columns of [`header`].
pub fn row(object: &Object, columns: Columns, now: Timestamp) -> Vec<Field> {
    let (mut narrow, wide) = match object {
        Object::HostGroup(group) => group_row(group, now),
        Object::Vm(vm) => vm_row(vm, now),
        Object::Lease(lease) => lease_row(lease, now),
    };
    if columns == Columns::Wide {
        narrow.extend(wide);
    }
    narrow
}

fn group_row(group: &GroupView, now: Timestamp) -> (Vec<Field>, Vec<Field>) {
    let status = &group.status;
    let template = &group.spec.template;
    let severity = match status.ready {
        true => Severity::Good,
        false => Severity::Warning,
    };
    let narrow = vec![
        (&group.metadata.name).into(),
        template.network.mode().into(),
        Field::with_severity(
            format!("{}/{}", status.ready_count, status.desired),
            severity,
        ),
        status.updated.into(),
        group_status(group),
        age(group.metadata.created_at, now).into(),
    ];
    let wide = vec![
        Field::maybe(status.range),
        template.hypervisor.into(),
        template.vcpu.into(),
        memory(template.ram_bytes).into(),
        (&group.origin).into(),
    ];
    (narrow, wide)
}

/// A group is ready although VMs are stopped or paused by command: then their number is its status.
fn group_status(group: &GroupView) -> Field {
    match inactive(&group.status) {
        Some(inactive) if missing(&group.status.conditions).is_none() => {
            Field::with_severity(inactive, Severity::Warning)
        }
        _ => status_field(&group.metadata, &group.status.conditions, "Ready"),
    }
}

/// `1 stopped, 2 paused`.
pub fn inactive(status: &GroupStatus) -> Option<String> {
    let counts = [(status.stopped, "stopped"), (status.paused, "paused")];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let texts: Vec<String> = counts
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn vm_row(vm: &VmView, now: Timestamp) -> (Vec<Field>, Vec<Field>) {
    let network = vm.status.network.as_ref();
    let ready = ready(&vm.status.conditions);
    let ready_status = match vm.status.vmm.state {
        VmmState::None => "Ready",
        VmmState::Starting
        | VmmState::Running
        | VmmState::Paused
        | VmmState::Stopping
        | VmmState::Stopped
        | VmmState::Failed => "Running",
    };
    let narrow = vec![
        (&vm.metadata.name).into(),
        Field::maybe(vm.metadata.group.as_ref()),
        vm.spec.network.mode().into(),
        Field::with_severity(format!("{ready:?}"), ready),
        status_field(&vm.metadata, &vm.status.conditions, ready_status),
        vm.status.vmm.restarts.into(),
        Field::maybe(network.map(|network| network.ip)),
        age(vm.metadata.created_at, now).into(),
    ];
    let wide = vec![
        vm.spec.hypervisor.into(),
        Field::maybe(vm.status.vmm.pid),
        Field::maybe(network.map(|network| network.mac)),
        Field::maybe(network.and_then(|network| network.host_link.as_ref())),
    ];
    (narrow, wide)
}

fn lease_row(lease: &LeaseView, now: Timestamp) -> (Vec<Field>, Vec<Field>) {
    let status = match lease.metadata.deleting {
        true => Field::with_severity("Terminating", Severity::Warning),
        false => Field::with_severity("Bound", Severity::Good),
    };
    let narrow = vec![
        (&lease.metadata.name).into(),
        Field::maybe(lease.metadata.group.as_ref()),
        status,
        lease.ip.into(),
        Field::maybe(lease.block),
        age(lease.metadata.created_at, now).into(),
    ];
    (narrow, vec![lease.range.into()])
}

/// The status of an object: one word for the first condition that is not True, or `ready_status`.
fn status_field(metadata: &MetaView, conditions: &[ConditionView], ready_status: &str) -> Field {
    if metadata.deleting {
        return Field::with_severity("Terminating", Severity::Warning);
    }
    match missing(conditions) {
        None => Field::with_severity(ready_status, Severity::Good),
        Some(found) => Field::with_severity(
            status_word::word(&found.kind, found.reason),
            status_word::severity(found.reason),
        ),
    }
}

/// The first condition that is not True. Stages are brought up in order, so it blocks the following ones. The agent of a guest blocks
/// nothing.
pub fn missing(conditions: &[ConditionView]) -> Option<&ConditionView> {
    conditions
        .iter()
        .find(|condition| condition.status != Status::True && condition.kind != AGENT)
}

/// The condition of the agent of a guest.
pub const AGENT: &str = "Agent";

fn ready(conditions: &[ConditionView]) -> Status {
    conditions
        .iter()
        .find(|condition| condition.kind == "Ready")
        .map_or(Status::Unknown, |condition| condition.status)
}

/// Formats bytes in the largest unit that divides them.
pub fn memory(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    units
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or(format!("{bytes}B"), |(unit, name)| {
            format!("{}{name}", bytes / unit)
        })
}
