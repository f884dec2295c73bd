//! Objects of the fleet: requests for them, and their table columns.
//! Out of scope: output formats ([`mod@super::get`]).

use serde::Serialize;

use super::super::age::age;
use super::super::paint::Severity;
use super::super::rows::{AGE, Columns, STATUS, memory};
use super::super::table::Field;
use super::target::{FleetKind, FleetTarget};
use crate::api::meta::{Name, Timestamp, Uid};
use crate::api::placement::Strategy;
use crate::api::view::{
    FleetGroup, FleetList, FleetNode, FleetNodeState, FleetVm, FleetVmState, NodeResources,
};
use crate::wire::Client;
use crate::wire::client::ClientError;

/// One object of any kind.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind")]
pub enum FleetObject {
    /// A group.
    HostGroup(Box<FleetGroup>),
    /// A VM.
    Vm(Box<FleetVm>),
    /// A node.
    Node(Box<FleetNode>),
}

impl FleetObject {
    /// The kind.
    pub fn kind(&self) -> FleetKind {
        match self {
            Self::HostGroup(_) => FleetKind::HostGroup,
            Self::Vm(_) => FleetKind::Vm,
            Self::Node(_) => FleetKind::Node,
        }
    }

    /// The uid; `None` for a node.
    pub fn uid(&self) -> Option<Uid> {
        match self {
            Self::HostGroup(group) => group.metadata.uid,
            Self::Vm(vm) => vm.metadata.uid,
            Self::Node(_) => None,
        }
    }

    /// The name.
    pub fn name(&self) -> &Name {
        match self {
            Self::HostGroup(group) => &group.metadata.name,
            Self::Vm(vm) => &vm.metadata.name,
            Self::Node(node) => &node.name,
        }
    }
}

/// The objects of a kind, or that of this name.
pub async fn list(
    client: &Client,
    kind: FleetKind,
    name: Option<&Name>,
) -> Result<FleetList<FleetObject>, ClientError> {
    Ok(match kind {
        FleetKind::HostGroup => of(client.fleet_groups(name).await?, |group| {
            FleetObject::HostGroup(Box::new(group))
        }),
        FleetKind::Vm => of(client.fleet_vms(name).await?, |vm| {
            FleetObject::Vm(Box::new(vm))
        }),
        FleetKind::Node => of(client.fleet_nodes(name).await?, |node| {
            FleetObject::Node(Box::new(node))
        }),
    })
}

fn of<T>(list: FleetList<T>, object: impl Fn(T) -> FleetObject) -> FleetList<FleetObject> {
    FleetList {
        items: list.items.into_iter().map(object).collect(),
        unreadable: list.unreadable,
    }
}

/// The objects that can be read, and error messages for the others.
///
/// # Errors
/// The daemon does not answer.
pub async fn fetch(
    client: &Client,
    targets: &[FleetTarget],
) -> Result<(Vec<FleetObject>, Vec<String>), ClientError> {
    let (mut items, mut errors) = (Vec::new(), Vec::new());
    for target in targets {
        match list(client, target.kind, Some(&target.name)).await {
            Ok(list) => items.extend(list.items),
            Err(error @ ClientError::Refused { .. }) => errors.extend(error.causes()),
            Err(error) => return Err(error),
        }
    }
    Ok((items, errors))
}

/// The column titles of a kind.
pub fn header(kind: FleetKind, columns: Columns) -> Vec<&'static str> {
    let (narrow, wide): (&[&str], &[&str]) = match kind {
        FleetKind::HostGroup => (
            &[
                "NAME",
                "MODE",
                "READY",
                "UP-TO-DATE",
                "PENDING",
                STATUS,
                AGE,
            ],
            &["STRATEGY", "REPLACE-AFTER", "HYPERVISOR", "VCPU", "RAM"],
        ),
        FleetKind::Vm => (
            &["NAME", "GROUP", "NODE", STATUS, "IP", AGE],
            &["EPOCH", "MESSAGE"],
        ),
        FleetKind::Node => (
            &["NAME", STATUS, "VMS", "CPU", "MEMORY", "VERSION"],
            &["DISK", "ISOLATED", "PORTS", "ARCH", "LABELS", "API"],
        ),
    };
    match columns {
        Columns::Narrow => narrow.to_vec(),
        Columns::Wide => [narrow, wide].concat(),
    }
}

/// The row of an object, with the columns of [`header`].
pub fn row(object: &FleetObject, columns: Columns, now: Timestamp) -> Vec<Field> {
    let (mut narrow, wide) = match object {
        FleetObject::HostGroup(group) => group_row(group, now),
        FleetObject::Vm(vm) => vm_row(vm, now),
        FleetObject::Node(node) => node_row(node),
    };
    if columns == Columns::Wide {
        narrow.extend(wide);
    }
    narrow
}

fn group_row(group: &FleetGroup, now: Timestamp) -> (Vec<Field>, Vec<Field>) {
    let status = &group.status;
    let template = &group.spec.template;
    let (word, severity) = match (group.metadata.deleting, group.is_ready()) {
        (true, _) => ("Deleting", Severity::Warning),
        (false, true) => ("Ready", Severity::Good),
        (false, false) => ("Progressing", Severity::Warning),
    };
    let strategy = match group.placement.strategy {
        Strategy::Spread => "spread",
        Strategy::Pack => "pack",
    };
    let replace_after = group
        .replacement
        .map(|replacement| humantime::format_duration(replacement.replace_after).to_string());
    let narrow = vec![
        (&group.metadata.name).into(),
        template.network.mode().into(),
        Field::with_severity(format!("{}/{}", status.ready, group.spec.count), severity),
        status.up_to_date.into(),
        status.pending.into(),
        Field::with_severity(word, severity),
        age(group.metadata.created_at, now).into(),
    ];
    let wide = vec![
        strategy.into(),
        replace_after.unwrap_or_else(|| "never".to_owned()).into(),
        template.hypervisor.into(),
        template.vcpu.into(),
        memory(template.ram_bytes).into(),
    ];
    (narrow, wide)
}

fn vm_row(vm: &FleetVm, now: Timestamp) -> (Vec<Field>, Vec<Field>) {
    let narrow = vec![
        (&vm.metadata.name).into(),
        Field::maybe(vm.metadata.group.as_ref()),
        Field::maybe(vm.node.as_ref()),
        Field::with_severity(vm.state.to_string(), severity(vm.state)),
        Field::maybe(vm.address),
        age(vm.metadata.created_at, now).into(),
    ];
    let message = vm.message.clone().unwrap_or_default();
    (narrow, vec![vm.epoch.into(), message.into()])
}

fn severity(state: FleetVmState) -> Severity {
    match state {
        FleetVmState::Ready => Severity::Good,
        FleetVmState::Unknown | FleetVmState::Refused | FleetVmState::Stopped => Severity::Error,
        FleetVmState::Pending
        | FleetVmState::Scheduled
        | FleetVmState::Moving
        | FleetVmState::NotReady
        | FleetVmState::Deleted
        | FleetVmState::Deleting => Severity::Warning,
    }
}

/// `Ready,SchedulingDisabled`
pub fn states(node: &FleetNode) -> String {
    let states: Vec<String> = node.states.iter().map(ToString::to_string).collect();
    states.join(",")
}

fn node_row(node: &FleetNode) -> (Vec<Field>, Vec<Field>) {
    let severity = match node.states.as_slice() {
        [FleetNodeState::Ready] => Severity::Good,
        [FleetNodeState::Ready, ..] => Severity::Warning,
        _ => Severity::Error,
    };
    let status = node.status.as_ref();
    let of = |amount: fn(&NodeResources) -> u64, shown: fn(u64) -> String| {
        let used = shown(amount(&node.used));
        let all = status.map(|status| shown(amount(&status.allocatable)));
        format!("{used}/{}", all.unwrap_or_else(|| "?".to_owned()))
    };
    let number = |amount: u64| amount.to_string();
    let labels: Vec<String> = node
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let narrow = vec![
        (&node.name).into(),
        Field::with_severity(states(node), severity),
        node.vms.into(),
        of(|it| it.vcpus, number).into(),
        of(|it| it.ram_bytes, rounded).into(),
        Field::maybe(status.map(|status| &status.version)),
    ];
    let wide = vec![
        of(|it| it.disk_bytes, rounded).into(),
        of(|it| it.isolated, number).into(),
        of(|it| it.bridge_ports, number).into(),
        Field::maybe(status.map(|status| &status.architecture)),
        Field::maybe((!labels.is_empty()).then(|| labels.join(","))),
        Field::maybe(status.and_then(|status| status.api.as_ref())),
    ];
    (narrow, wide)
}

/// An amount of bytes of a host, rounded to a tenth of a unit: `15.5GiB`.
pub fn rounded(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit);
    let Some((unit, name)) = unit else {
        return format!("{bytes}B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths % 10 {
        0 => format!("{}{name}", tenths / 10),
        rest => format!("{}.{rest}{name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_a_host_have_at_most_one_decimal() {
        for (bytes, text) in [
            (0, "0B"),
            (4 << 30, "4GiB"),
            ((15 << 30) + (1 << 29), "15.5GiB"),
            (3 << 40, "3TiB"),
            (1 << 20, "1MiB"),
        ] {
            assert_eq!(rounded(bytes), text);
        }
    }
}
