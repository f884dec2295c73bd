//! The filters: why a node cannot run a VM, and the message of a VM that no node can run.
//! Out of scope: the order of the nodes that can ([`super::candidates`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::index::NodeEntry;
use super::request::Request;
use super::view::Contact;
use crate::api::secret::SecretName;
use crate::api::vm::Hypervisor;
use crate::fleet::object::{Node, NodeStatus, Resources, VERSION};

/// The ports of a bridge of the kernel (`BR_MAX_PORTS` is 1024, and 0 is none).
pub(super) const BRIDGE_PORTS: u64 = 1023;

/// Why a node cannot run a VM. Messages list them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    Vcpus,
    Memory,
    Disk,
    Blocks,
    Ports,
    Subnets,
    Addresses,
    Unschedulable,
    Draining,
    Gone,
    NoContact,
    NoStatus,
    Format,
    Architecture,
    Hypervisor,
    Labels,
    Files,
    NotLooked,
    Secrets,
    Guard,
    Agent,
    Network,
    Refused,
    PreviousCopy,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcpus => "insufficient vCPUs",
            Self::Memory => "insufficient memory",
            Self::Disk => "insufficient disk space",
            Self::Blocks => "no free /30 network",
            Self::Ports => "no free bridge port",
            Self::Subnets => "no free subnet",
            Self::Addresses => "no free address in its subnet",
            Self::Unschedulable => "unschedulable",
            Self::Draining => "draining",
            Self::Gone => "gone",
            Self::NoContact => "no contact",
            Self::NoStatus => "not registered",
            Self::Format => "outdated daemon",
            Self::Architecture => "other architecture",
            Self::Hypervisor => "VMM not installed",
            Self::Labels => "labels do not match",
            Self::Files => "image, kernel or disk missing or not allowed",
            Self::NotLooked => "image, kernel or disk not looked for",
            Self::Secrets => "secret not found",
            Self::Guard => "no guard runs",
            Self::Agent => "slice-agent not installed",
            Self::Network => "CNI network not configured",
            Self::Refused => "refused the VM",
            Self::PreviousCopy => "has a previous copy",
        })
    }
}

/// The number of nodes by reason.
pub(super) type Histogram = BTreeMap<Reason, usize>;

/// `0/6 nodes are available: 2 insufficient memory, 3 unschedulable, 1 no contact.`
pub(super) fn message(nodes: usize, reasons: &Histogram) -> String {
    let counts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    match counts.is_empty() {
        true => format!("0/{nodes} nodes are available."),
        false => format!("0/{nodes} nodes are available: {}.", counts.join(", ")),
    }
}

/// Why no VM is bound to a node; otherwise its status.
pub(super) fn accepting<'v>(node: &NodeEntry<'v>) -> Result<&'v NodeStatus, Reason> {
    static DEFAULT: Node = Node {
        labels: BTreeMap::new(),
        unschedulable: false,
        drain: None,
        gone: None,
    };
    let admin = node.view.admin.as_ref().map_or(&DEFAULT, |it| &it.value);
    let status = node.view.status.as_ref().map(|it| &it.value);
    match (node.view.contact, status) {
        _ if admin.gone.is_some() => Err(Reason::Gone),
        (Contact::Lost { .. }, _) => Err(Reason::NoContact),
        (_, None) => Err(Reason::NoStatus),
        (_, Some(status)) if status.format < VERSION => Err(Reason::Format),
        _ if admin.drain.is_some() => Err(Reason::Draining),
        _ if admin.unschedulable => Err(Reason::Unschedulable),
        (Contact::Alive, Some(status)) => Ok(status),
    }
}

/// Why a node is of the wrong kind for a request.
pub(super) fn mismatch(node: &NodeEntry<'_>, request: &Request<'_>) -> Option<Reason> {
    let Some(status) = node.view.status.as_ref().map(|it| &it.value) else {
        return Some(Reason::NoStatus);
    };
    let architecture = request.architecture;
    if architecture.is_some_and(|required| required != status.architecture) {
        return Some(Reason::Architecture);
    }
    let needs_vmm = request.hypervisor != Hypervisor::None;
    if needs_vmm && !status.hypervisors.contains(&request.hypervisor) {
        return Some(Reason::Hypervisor);
    }
    let mut labels = request.labels.iter();
    if !labels.all(|(key, value)| node.label(key) == Some(value)) {
        return Some(Reason::Labels);
    }
    let found = |file: &PathBuf| status.files.get(file.to_str()?).copied();
    let files = || request.files.iter().map(found);
    let waits = node.view.looks.is_some();
    let lacks_network = request
        .network
        .is_some_and(|network| !status.networks.contains(network));
    let has_secret = |name: &SecretName| status.secrets.contains(name);
    match () {
        () if files().any(|it| it == Some(false)) => Some(Reason::Files),
        () if files().any(|it| it.is_none()) && waits => Some(Reason::NotLooked),
        () if files().any(|it| it.is_none()) => Some(Reason::Files),
        () if !request.secrets.iter().all(has_secret) => Some(Reason::Secrets),
        () if request.needs_guard && !status.has_guard => Some(Reason::Guard),
        () if request.needs_agent && !status.has_agent => Some(Reason::Agent),
        () if lacks_network => Some(Reason::Network),
        () => None,
    }
}

/// What a node lacks for a VM with this request, in addition to what is used, without `instead_of`. A VM that gets no more than it has is
/// not refused, although the node may have less by now than its VMs use.
pub(super) fn insufficient(
    node: &NodeEntry<'_>,
    request: &Request<'_>,
    instead_of: Option<&Resources>,
) -> Option<Reason> {
    let used = instead_of.map_or(node.used, |old| node.used.minus(old));
    let total = used.plus(&request.resources);
    let limit = &node.limit;
    let ports_of_bridge = request.bridge.map_or(0, |bridge| node.ports_of(bridge));
    let is_new = instead_of.is_none_or(|old| old.bridge_ports == 0);
    let grows = |of: fn(&Resources) -> u64| of(&request.resources) > instead_of.map_or(0, of);
    let exceeds = |of: fn(&Resources) -> u64| grows(of) && of(&total) > of(limit);
    // The size of a copy of an image may be unknown, and be 0.
    let needs_disk = request.copies_image && (instead_of.is_none() || grows(|it| it.disk_bytes));
    match () {
        () if exceeds(|it| it.vcpus) => Some(Reason::Vcpus),
        () if exceeds(|it| it.ram_bytes) => Some(Reason::Memory),
        () if needs_disk && total.disk_bytes > limit.disk_bytes => Some(Reason::Disk),
        () if exceeds(|it| it.isolated) => Some(Reason::Blocks),
        () if exceeds(|it| it.bridge_ports) => Some(Reason::Ports),
        () if is_new && request.bridge.is_some() && ports_of_bridge >= BRIDGE_PORTS => {
            Some(Reason::Ports)
        }
        () => None,
    }
}

/// Why a node cannot run one more VM with this request.
pub(super) fn obstacle(node: &NodeEntry<'_>, request: &Request<'_>) -> Option<Reason> {
    let reason = accepting(node).err().or_else(|| mismatch(node, request));
    reason.or_else(|| insufficient(node, request, None))
}
