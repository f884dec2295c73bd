//! The table columns of each kind.
//! Out of scope: drawing the table.

use super::age::age;
use super::paint::Severity;
use super::table::Field;
use crate::api::condition::{Reason, Status};
use crate::api::meta::Timestamp;
use crate::api::view::{
    ConditionView, GroupView, Kind, LeaseView, MetaView, Object, VmView, VmmState,
};

/// The set of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Columns that fit a terminal.
    Narrow,
    /// All columns (`-o wide`).
    Wide,
}

/// Title of the status column.
pub const STATUS: &str = "STATUS";

/// The column titles of a kind.
pub fn header(kind: Kind, columns: Columns) -> Vec<&'static str> {
    let (narrow, wide): (&[&str], &[&str]) = match kind {
        Kind::HostGroup => (
            &["NAME", "READY", STATUS, "UPDATED", "DESIRED", "AGE"],
            &["RANGE", "HYPERVISOR", "VCPU", "RAM", "ORIGIN"],
        ),
        Kind::Vm => (
            &[
                "NAME",
                "GROUP",
                "READY",
                STATUS,
                "IP",
                "HYPERVISOR",
                "PID",
                "AGE",
            ],
            &["RESTARTS", "GATEWAY", "MAC", "NETNS", "HOST-LINK", "UID"],
        ),
        Kind::Lease => (&["NAME", "GROUP", STATUS, "IP", "BLOCK", "AGE"], &["RANGE"]),
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
        Field::with_severity(
            format!("{}/{}", status.ready_count, status.desired),
            severity,
        ),
        status_field(&group.metadata, &status.conditions, "Ready"),
        status.updated.into(),
        status.desired.into(),
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

fn vm_row(vm: &VmView, now: Timestamp) -> (Vec<Field>, Vec<Field>) {
    let network = vm.status.network.as_ref();
    let ready = ready(&vm.status.conditions);
    let ready_status = match vm.status.vmm.state {
        VmmState::None => "Prepared",
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
        Field::with_severity(format!("{ready:?}"), ready),
        status_field(&vm.metadata, &vm.status.conditions, ready_status),
        Field::maybe(network.map(|network| network.ip)),
        vm.spec.hypervisor.into(),
        Field::maybe(vm.status.vmm.pid),
        age(vm.metadata.created_at, now).into(),
    ];
    let netns = network.and_then(|network| network.netns.as_ref());
    let wide = vec![
        vm.status.vmm.restarts.into(),
        Field::maybe(network.and_then(|network| network.gateway)),
        Field::maybe(network.map(|network| network.mac)),
        Field::maybe(netns.map(|path| path.display())),
        Field::maybe(network.and_then(|network| network.host_link.as_ref())),
        Field::maybe(vm.metadata.uid),
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

/// The status of an object: the reason of the first condition that is not True, or `up`.
fn status_field(metadata: &MetaView, conditions: &[ConditionView], ready_status: &str) -> Field {
    if metadata.deleting {
        return Field::with_severity("Terminating", Severity::Warning);
    }
    match missing(conditions) {
        None => Field::with_severity(ready_status, Severity::Good),
        Some(condition) if condition.kind == "Ready" => {
            Field::with_severity(condition.reason.to_string(), severity(condition.reason))
        }
        // These reasons need no condition type before them.
        Some(found)
            if matches!(
                found.reason,
                Reason::Paused | Reason::Stopping | Reason::Stopped | Reason::Failed
            ) =>
        {
            Field::with_severity(found.reason.to_string(), severity(found.reason))
        }
        Some(found) => Field::with_severity(
            format!("{}:{}", found.kind, found.reason),
            severity(found.reason),
        ),
    }
}

/// The first condition that is not True. Stages are brought up in order, so it blocks the following ones.
pub fn missing(conditions: &[ConditionView]) -> Option<&ConditionView> {
    conditions
        .iter()
        .find(|condition| condition.status != Status::True)
}

fn ready(conditions: &[ConditionView]) -> Status {
    conditions
        .iter()
        .find(|condition| condition.kind == "Ready")
        .map_or(Status::Unknown, |condition| condition.status)
}

fn severity(reason: Reason) -> Severity {
    match reason {
        Reason::Converged => Severity::Good,
        Reason::Waiting
        | Reason::NotObserved
        | Reason::Converging
        | Reason::Terminating
        | Reason::Paused
        | Reason::Stopping
        | Reason::Stopped => Severity::Warning,
        Reason::Conflict
        | Reason::Contested
        | Reason::NotConverging
        | Reason::ActionFailed
        | Reason::ObserveFailed
        | Reason::Invalid
        | Reason::RangeExhausted
        | Reason::CrashLoop
        | Reason::Failed
        | Reason::ManifestInvalid
        | Reason::StateNotWritable => Severity::Error,
    }
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
