//! A fleet in memory: the objects as etcd has them, with revisions, and short ways to change them.
//! Out of scope: what nodes do ([`super::model`]).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::step::{Action, Plan, Step, Write};
use super::super::view::{Contact, NodeView, Stored, View};
use super::super::{plan, step};
use crate::api::host_group::{HostGroupSpec, UpdatePolicy};
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::network::{IsolatedSpec, NetworkSpec};
use crate::api::vm::{Hypervisor, VmSpec};
use crate::fleet::keys::Key;
use crate::fleet::object::*;

pub const GIB: u64 = 1 << 30;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn uid(number: u128) -> Uid {
    Uid(uuid::Uuid::from_u128(number))
}

/// A VM with 1 vCPU and 1 GiB, without files.
pub fn vm_spec() -> VmSpec {
    VmSpec {
        hypervisor: Hypervisor::Qemu,
        vcpu: 1,
        ram_bytes: GIB,
        kernel_file: None,
        initrd_file: None,
        dns_servers: Vec::new(),
        storage: Default::default(),
        lifecycle: Default::default(),
        guest_access: Default::default(),
        network: NetworkSpec::Isolated(IsolatedSpec {
            range: None,
            max_connections: None,
            policy: Default::default(),
            tap_owner: Default::default(),
        }),
    }
}

/// A node with this many vCPUs and GiB, and enough of the rest.
pub fn node_status(vcpus: u64, gib: u64) -> NodeStatus {
    let capacity = Resources {
        vcpus,
        ram_bytes: gib * GIB,
        disk_bytes: 1000 * GIB,
        isolated: 16_384,
        bridge_ports: 2000,
    };
    NodeStatus {
        labels: Labels::new(),
        architecture: "x86_64".into(),
        hypervisors: vec![Hypervisor::Qemu],
        files: Default::default(),
        secrets: Default::default(),
        has_guard: true,
        has_agent: true,
        networks: Default::default(),
        capacity,
        allocatable: capacity,
        version: "1".into(),
        format: VERSION,
        api: None,
        boot_id: "first".into(),
    }
}

pub struct World {
    pub view: View,
    pub revision: u64,
    uids: u128,
}

impl World {
    pub fn new() -> Self {
        Self {
            view: View {
                now: Timestamp::from_second(1_800_000_000).unwrap(),
                groups: BTreeMap::new(),
                vms: BTreeMap::new(),
                nodes: BTreeMap::new(),
                statuses: BTreeMap::new(),
                ranges: BTreeMap::new(),
            },
            revision: 1,
            uids: 1000,
        }
    }

    /// With nodes `n1` to `n<count>` of this size.
    pub fn with_nodes(count: usize, vcpus: u64) -> Self {
        let mut world = Self::new();
        for number in 1..=count {
            world.add_node(&format!("n{number}"), node_status(vcpus, 1000));
        }
        world
    }

    pub fn stored<T>(&mut self, value: T) -> Stored<T> {
        self.revision += 1;
        Stored {
            revision: self.revision,
            value,
        }
    }

    pub fn add_node(&mut self, node: &str, status: NodeStatus) {
        let status = self.stored(status);
        let view = NodeView {
            admin: None,
            status: Some(status),
            contact: Contact::Alive,
            looks: None,
        };
        self.view.nodes.insert(name(node), view);
    }

    pub fn admin(&mut self, node: &str, change: impl FnOnce(&mut Node)) {
        let view = self.view.nodes.get(&name(node)).unwrap();
        let mut admin = view.admin.clone().map(|it| it.value).unwrap_or_default();
        change(&mut admin);
        let admin = self.stored(admin);
        self.view.nodes.get_mut(&name(node)).unwrap().admin = Some(admin);
    }

    pub fn node_status(&mut self, node: &str, change: impl FnOnce(&mut NodeStatus)) {
        self.revision += 1;
        let view = self.view.nodes.get_mut(&name(node)).unwrap();
        let status = view.status.as_mut().unwrap();
        change(&mut status.value);
        status.revision = self.revision;
    }

    /// The node has looked for a file.
    pub fn file(&mut self, node: &str, path: &str, found: bool) {
        self.node_status(node, |it| {
            it.files.insert(path.to_owned(), found);
        });
    }

    pub fn lose(&mut self, node: &str, seconds: u64) {
        let elapsed = Duration::from_secs(seconds);
        self.view.nodes.get_mut(&name(node)).unwrap().contact = Contact::Lost { elapsed };
    }

    pub fn regain(&mut self, node: &str) {
        self.view.nodes.get_mut(&name(node)).unwrap().contact = Contact::Alive;
    }

    pub fn gone(&mut self, node: &str) {
        let status = self.view.nodes[&name(node)].status.clone();
        let boot_id = status.map(|it| it.value.boot_id);
        let at = self.view.now;
        self.admin(node, |it| it.gone = Some(Gone { at, boot_id }));
    }

    pub fn add_group(&mut self, group: &str, count: u32) {
        self.uids += 1;
        let meta = Meta {
            uid: uid(self.uids),
            ..Meta::new(name(group), self.view.now)
        };
        let spec = HostGroupSpec {
            count,
            update: UpdatePolicy::Rolling,
            template: vm_spec(),
        };
        let placement = Placement {
            max_unavailable: 1,
            ..Placement::default()
        };
        let stored = self.stored(Group {
            meta,
            template_generation: 1,
            spec,
            placement,
            replacement: None,
        });
        self.view.groups.insert(name(group), stored);
    }

    /// Changes a group, as users do: with a new generation.
    pub fn group(&mut self, group: &str, change: impl FnOnce(&mut Group)) {
        self.revision += 1;
        let stored = self.view.groups.get_mut(&name(group)).unwrap();
        let template = stored.value.spec.template.clone();
        change(&mut stored.value);
        stored.value.meta.generation += 1;
        if stored.value.spec.template != template {
            stored.value.template_generation = stored.value.meta.generation;
        }
        stored.revision = self.revision;
    }

    pub fn vm(&self, vm: &str) -> &Vm {
        let mut vms = self.view.vms.values().map(|it| &it.value);
        vms.find(|it| it.meta.name == name(vm)).unwrap()
    }

    /// The node of a VM.
    pub fn node_of(&self, vm: &str) -> Option<&str> {
        self.vm(vm).binding.as_ref().map(|it| it.node.as_str())
    }

    pub fn put_vm(&mut self, vm: Vm) {
        let stored = self.stored(vm);
        self.view.vms.insert(stored.value.meta.uid, stored);
    }

    /// A report of the node about the epoch.
    pub fn report(&mut self, vm: &str, node: &str, epoch: u64, phase: Phase) {
        let vm = self.vm(vm).clone();
        let group = self.view.groups.get(&vm.group).map(|it| &it.value);
        let grace = vm_spec().lifecycle.graceful_shutdown.get();
        let settings = group.and_then(|it| it.replacement);
        let status = VmStatus {
            epoch,
            phase,
            group_generation: vm.group_generation,
            address: None,
            stops_within: settings.map(|it| it.stop_after + grace),
            message: Some("the node says so".into()),
        };
        let status = self.stored(status);
        let statuses = self.view.statuses.entry(vm.meta.uid).or_default();
        statuses.insert(name(node), status);
    }

    /// All VMs become Ready on their nodes.
    pub fn all_ready(&mut self) {
        let bound = self.view.vms.values().filter_map(|it| {
            let binding = it.value.binding.clone()?;
            Some((it.value.meta.name.clone(), binding))
        });
        for (vm, binding) in bound.collect::<Vec<_>>() {
            self.report(
                vm.as_str(),
                binding.node.as_str(),
                binding.epoch,
                Phase::Ready,
            );
        }
    }

    pub fn plan(&mut self) -> Plan {
        let mut next = self.uids;
        let plan = plan(&self.view, &mut || {
            next += 1;
            uid(next)
        });
        self.uids = next;
        plan
    }

    fn revision_of(&self, key: &Key) -> u64 {
        let view = &self.view;
        let node = |node: &Name| view.nodes.get(node);
        let revision = match key {
            Key::Group(group) => view.groups.get(group).map(|it| it.revision),
            Key::Vm(uid) => view.vms.get(uid).map(|it| it.revision),
            Key::Node(name) => node(name).and_then(|it| Some(it.admin.as_ref()?.revision)),
            Key::NodeStatus(name) => node(name).and_then(|it| Some(it.status.as_ref()?.revision)),
            Key::Alive(name) => {
                node(name).and_then(|it| (it.contact == Contact::Alive).then_some(1))
            }
            Key::VmStatus(node, uid) => {
                let status = view.statuses.get(uid).and_then(|it| it.get(node));
                status.map(|it| it.revision)
            }
            Key::Range(group, node) => {
                let ranges = view.ranges.get(group);
                let exists = ranges.is_some_and(|it| it.contains_key(node));
                exists.then_some(1)
            }
            Key::Election => panic!("not compared: {key}"),
        };
        revision.unwrap_or(0)
    }

    /// Whether what the step compares has not changed.
    pub fn holds(&self, step: &Step) -> bool {
        let mut compares = step.compares.iter();
        compares.all(|it| self.revision_of(&it.key) == it.revision)
    }

    /// Writes the steps that hold, each by itself.
    pub fn apply(&mut self, plan: &Plan) {
        for step in plan.subnets.iter().chain(&plan.steps) {
            if self.holds(step) {
                self.write(&step.write);
            }
        }
    }

    pub fn write(&mut self, write: &Write) {
        match write {
            Write::PutVm(vm) => self.put_vm((**vm).clone()),
            Write::DeleteVm(uid) => drop(self.view.vms.remove(uid).unwrap()),
            Write::DeleteGroup(group) => drop(self.view.groups.remove(group).unwrap()),
            Write::PutSubnet(group, node, subnet) => {
                let ranges = self.view.ranges.entry(group.clone()).or_default();
                assert_eq!(ranges.insert(node.clone(), *subnet), None);
            }
            Write::DeleteSubnet(group, node) => {
                let ranges = self.view.ranges.get_mut(group).unwrap();
                ranges.remove(node).unwrap();
            }
        }
    }

    /// Plans and applies, and returns the plan. Each comparison must hold.
    pub fn run(&mut self) -> Plan {
        let plan = self.plan();
        for batch in [&plan.subnets, &plan.steps]
            .into_iter()
            .flat_map(|steps| step::batches(steps, 128))
        {
            assert!(batch.steps.iter().all(|step| self.holds(step)));
            batch.steps.iter().for_each(|step| self.write(&step.write));
        }
        plan
    }

    pub fn advance(&mut self, seconds: u64) {
        let time = Duration::from_secs(seconds);
        self.view.now = self.view.now.checked_add(time).unwrap();
        for node in self.view.nodes.values_mut() {
            if let Contact::Lost { elapsed } = &mut node.contact {
                *elapsed += time;
            }
        }
    }
}

/// Actions with the names of their objects.
pub fn actions(plan: &Plan) -> Vec<(Action, &str)> {
    let steps = plan.steps.iter();
    steps.map(|it| (it.action, it.name.as_str())).collect()
}
