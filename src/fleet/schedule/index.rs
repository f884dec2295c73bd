//! The indexes of a view, built once for each plan, and what the reports of the nodes prove.
//! Out of scope: decisions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::pools::Pools;
use super::step::Compare;
use super::view::{Contact, NodeView, Stored, View};
use crate::api::meta::{Name, Timestamp, Uid};
use crate::api::network::NetworkSpec;
use crate::fleet::keys::Key;
use crate::fleet::object::{Phase, Resources, Vm, VmStatus};

/// The part of its disk that a node keeps free, in percent.
const DISK_FLOOR: u64 = 15;

/// A view with its indexes.
pub(super) struct Index<'v> {
    pub(super) view: &'v View,
    /// By name. What is used changes with the plan.
    pub(super) nodes: Vec<NodeEntry<'v>>,
    by_name: HashMap<&'v Name, usize>,
    /// The VMs by the name of their group: by index, the one that remains first.
    pub(super) members: BTreeMap<&'v Name, Vec<&'v Stored<Vm>>>,
    /// The subnets of groups in bridge mode. They change with the plan.
    pub(super) pools: Pools<'v>,
}

/// A node with what is used of it.
pub(super) struct NodeEntry<'v> {
    pub(super) name: &'v Name,
    pub(super) view: &'v NodeView,
    pub(super) used: Resources,
    /// What VMs may use: allocatable, without the floor of the disk.
    pub(super) limit: Resources,
    bridges: BTreeMap<&'v str, u64>,
}

impl<'v> NodeEntry<'v> {
    fn new(name: &'v Name, view: &'v NodeView) -> Self {
        let status = view.status.as_ref().map(|it| &it.value);
        let mut limit = status.map_or_else(Resources::default, |it| it.allocatable);
        let disk = status.map_or(0, |it| it.capacity.disk_bytes);
        let floor = u128::from(disk) * u128::from(DISK_FLOOR) / 100;
        limit.disk_bytes = limit.disk_bytes.saturating_sub(floor as u64);
        Self {
            name,
            view,
            used: Resources::default(),
            limit,
            bridges: BTreeMap::new(),
        }
    }

    /// The value of a label: that of the administrator, or that of its configuration.
    pub(super) fn label(&self, key: &str) -> Option<&'v String> {
        let admin = self.view.admin.as_ref();
        let admin = admin.and_then(|it| it.value.labels.get(key));
        let status = self.view.status.as_ref();
        admin.or_else(|| status.and_then(|it| it.value.labels.get(key)))
    }

    /// The number of ports of a bridge that are used.
    pub(super) fn ports_of(&self, bridge: &str) -> u64 {
        self.bridges.get(bridge).copied().unwrap_or(0)
    }

    /// Counts a VM.
    pub(super) fn add(&mut self, resources: &Resources, bridge: Option<&'v str>) {
        self.used = self.used.plus(resources);
        if let Some(bridge) = bridge {
            *self.bridges.entry(bridge).or_default() += resources.bridge_ports;
        }
    }

    /// The used part of the scarcest resource, in millionths.
    pub(super) fn fullness(&self) -> u64 {
        let share = |of: fn(&Resources) -> u64| match of(&self.limit) {
            0 => 0,
            limit => (u128::from(of(&self.used)) * 1_000_000 / u128::from(limit)) as u64,
        };
        let shares = [
            share(|it| it.vcpus),
            share(|it| it.ram_bytes),
            share(|it| it.disk_bytes),
            share(|it| it.isolated),
            share(|it| it.bridge_ports),
        ];
        shares.into_iter().max().unwrap_or(0)
    }
}

impl<'v> Index<'v> {
    pub(super) fn new(view: &'v View) -> Self {
        let nodes: Vec<_> = view
            .nodes
            .iter()
            .map(|(n, v)| NodeEntry::new(n, v))
            .collect();
        let by_name = nodes.iter().enumerate().map(|(at, it)| (it.name, at));
        let mut index = Self {
            view,
            by_name: by_name.collect(),
            nodes,
            members: BTreeMap::new(),
            pools: Pools::new(view),
        };
        for vm in view.vms.values() {
            index.members.entry(&vm.value.group).or_default().push(vm);
            index.count(&vm.value);
        }
        for members in index.members.values_mut() {
            members.sort_by_key(|vm| rank(&vm.value));
        }
        index
    }

    /// Adds what the copies of a VM use. A copy that may exist uses its node.
    fn count(&mut self, vm: &'v Vm) {
        let group = self.view.groups.get(&vm.group);
        let bridge = match group.map(|it| &it.value.spec.template.network) {
            Some(NetworkSpec::Bridge(spec)) => Some(spec.bridge.as_str()),
            Some(NetworkSpec::Isolated(_) | NetworkSpec::Cni(_)) | None => None,
        };
        for copy in vm.copies() {
            if let Some(&at) = self.by_name.get(copy.node) {
                self.nodes[at].add(copy.resources, bridge);
            }
        }
    }

    /// The position of a node in `nodes`.
    pub(super) fn position(&self, name: &Name) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// A node by name.
    pub(super) fn node(&self, name: &Name) -> Option<&NodeEntry<'v>> {
        self.position(name).map(|at| &self.nodes[at])
    }

    /// Whether a node has contact.
    pub(super) fn has_contact(&self, name: &Name) -> bool {
        let contact = self.node(name).map(|it| it.view.contact);
        contact == Some(Contact::Alive)
    }

    /// Whether the VMs of a node are moved to other nodes.
    pub(super) fn is_drained(&self, name: &Name) -> bool {
        let admin = self.node(name).and_then(|it| it.view.admin.as_ref());
        admin.is_some_and(|it| it.value.drain.is_some())
    }

    /// What a node reports of a VM.
    pub(super) fn status(&self, vm: Uid, node: &Name) -> Option<&'v Stored<VmStatus>> {
        self.view.statuses.get(&vm)?.get(node)
    }

    /// What proves that the node has no copy of this epoch or a smaller one: the comparisons that keep the proof valid. `None`: nothing
    /// does. The absence of a status, of a node or of its contact is no proof.
    pub(super) fn proof_of_absence(
        &self,
        vm: Uid,
        node: &Name,
        epoch: u64,
    ) -> Option<Vec<Compare>> {
        let status = self.status(vm, node).map(|it| &it.value);
        let is_final = |status: &VmStatus| {
            status.epoch >= epoch && matches!(status.phase, Phase::Deleted | Phase::Refused)
        };
        match status.is_some_and(is_final) {
            true => Some(Vec::new()),
            false => self.fenced(node),
        }
    }

    /// Whether an administrator has confirmed that the node is fenced, and it has not started again since: the comparisons.
    pub(super) fn fenced(&self, node: &Name) -> Option<Vec<Compare>> {
        let view = self.node(node)?.view;
        let admin = view.admin.as_ref()?;
        let gone = admin.value.gone.as_ref()?;
        let status = view.status.as_ref();
        let is_same_boot = status.map(|it| &it.value.boot_id) == gone.boot_id.as_ref();
        if view.contact == Contact::Alive || !is_same_boot {
            return None;
        }
        let compare = |key, revision| Compare { key, revision };
        Some(vec![
            compare(Key::Node(node.clone()), admin.revision),
            compare(
                Key::NodeStatus(node.clone()),
                status.map_or(0, |it| it.revision),
            ),
            compare(Key::Alive(node.clone()), 0),
        ])
    }

    /// Whether the VM serves, as far as this is known: Ready with its current binding and spec, on a node with contact.
    pub(super) fn is_available(&self, vm: &Vm) -> bool {
        let Some(binding) = vm.binding.as_ref().filter(|it| it.moving_from.is_none()) else {
            return false;
        };
        let is_ready = |status: &VmStatus| {
            status.phase == Phase::Ready
                && status.epoch == binding.epoch
                // A node may have a later one than the VM has: another VM of the group on it was updated first.
                && status.group_generation >= vm.group_generation
        };
        let status = self.status(vm.meta.uid, &binding.node);
        !vm.meta.deleting
            && self.has_contact(&binding.node)
            && status.is_some_and(|it| is_ready(&it.value))
    }
}

/// The order of VMs of a group. Of VMs with the same index, which a scheduler creates only by mistake, the first one remains.
fn rank(vm: &Vm) -> (u32, bool, bool, Reverse<u64>, Timestamp, Uid) {
    let meta = &vm.meta;
    let is_pending = vm.binding.is_none();
    (
        vm.index,
        meta.deleting,
        is_pending,
        Reverse(vm.epoch),
        meta.created_at,
        meta.uid,
    )
}
