//! Nodes that do what [`super::super`] requires of them, with views that lag.
//! Out of scope: random sequences ([`super::properties`]); what must hold ([`super::checks`]).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::step::Plan;
use super::super::view::Contact;
use super::world::*;
use crate::api::meta::{Name, Uid};
use crate::fleet::object::*;

/// A VM on a node.
#[derive(Clone, Debug)]
pub struct Copy {
    epoch: u64,
    generation: u64,
    pub is_running: bool,
    /// It was reported as Ready, or will be in the next turn.
    turns: u32,
    stops_within: Option<Duration>,
}

#[derive(Default)]
pub struct Machine {
    pub copies: BTreeMap<Uid, Copy>,
    /// The VMs and groups that it has seen last.
    vms: BTreeMap<Uid, Vm>,
    groups: BTreeMap<Name, Group>,
    refuses: bool,
    boots: u32,
}

/// A fleet: etcd, and nodes.
pub struct Model {
    pub world: World,
    pub machines: BTreeMap<Name, Machine>,
    /// The greatest epoch of each VM.
    pub epochs: BTreeMap<Uid, u64>,
}

impl Model {
    pub fn new(nodes: usize, vcpus: u64) -> Self {
        let world = World::with_nodes(nodes, vcpus);
        let names = world.view.nodes.keys().cloned();
        let machines = names.map(|it| (it, Machine::default())).collect();
        Self {
            world,
            machines,
            epochs: BTreeMap::new(),
        }
    }

    pub fn nodes(&self) -> Vec<Name> {
        self.machines.keys().cloned().collect()
    }

    fn machine(&mut self, node: &Name) -> &mut Machine {
        self.machines.get_mut(node).unwrap()
    }

    fn is_alive(&self, node: &Name) -> bool {
        self.world.view.nodes[node].contact == Contact::Alive
    }

    pub fn refuse(&mut self, node: &Name, refuses: bool) {
        self.machine(node).refuses = refuses;
    }

    /// The node loses contact; what it runs goes on.
    pub fn lose(&mut self, node: &Name) {
        if self.is_alive(node) {
            self.world.lose(node.as_str(), 0);
        }
    }

    /// The node has contact: it renews its lease, then it lists.
    pub fn regain(&mut self, node: &Name) {
        self.world.regain(node.as_str());
        self.sync(node);
    }

    /// An administrator switches the node off and states that it is gone.
    pub fn fence(&mut self, node: &Name) {
        self.lose(node);
        let copies = self.machine(node).copies.values_mut();
        copies.for_each(|it| it.is_running = false);
        self.world.gone(node.as_str());
    }

    /// The statement is withdrawn, and the node starts again.
    pub fn unfence(&mut self, node: &Name) {
        let admin = self.world.view.nodes[node].admin.as_ref();
        if admin.is_none_or(|it| it.value.gone.is_none()) {
            return;
        }
        let machine = self.machine(node);
        machine.boots += 1;
        let boot_id = format!("boot {}", machine.boots);
        self.world
            .node_status(node.as_str(), |it| it.boot_id = boot_id);
        self.world.admin(node.as_str(), |it| it.gone = None);
        self.regain(node);
    }

    /// Time passes; nodes without contact stop the copies that they have to stop.
    pub fn advance(&mut self, seconds: u64) {
        self.world.advance(seconds);
        for (node, machine) in &mut self.machines {
            let Contact::Lost { elapsed } = self.world.view.nodes[node].contact else {
                continue;
            };
            for copy in machine.copies.values_mut() {
                copy.is_running &= copy.stops_within.is_none_or(|time| elapsed < time);
            }
        }
    }

    /// The node sees what is in etcd now.
    pub fn sync(&mut self, node: &Name) {
        if !self.is_alive(node) {
            return;
        }
        let view = &self.world.view;
        let vms = view.vms.iter().map(|(uid, it)| (*uid, it.value.clone()));
        let groups = view
            .groups
            .iter()
            .map(|(name, it)| (name.clone(), it.value.clone()));
        let (vms, groups) = (vms.collect(), groups.collect());
        let machine = self.machine(node);
        (machine.vms, machine.groups) = (vms, groups);
    }

    /// The node acts on what it has seen; returns whether anything has changed.
    pub fn turn(&mut self, node: &Name) -> bool {
        if !self.is_alive(node) {
            return false;
        }
        let seen: Vec<Vm> = self.machine(node).vms.values().cloned().collect();
        let mut has_changed = false;
        for vm in &seen {
            has_changed |= self.act(node, vm);
        }
        // A report of a VM that does not exist and has no copy is removed.
        let machine = &self.machines[node];
        for (uid, reports) in &mut self.world.view.statuses {
            if !machine.vms.contains_key(uid) && !machine.copies.contains_key(uid) {
                has_changed |= reports.remove(node).is_some();
            }
        }
        has_changed
    }

    fn act(&mut self, node: &Name, vm: &Vm) -> bool {
        let uid = vm.meta.uid;
        let named = named(vm, node);
        let binding = vm.binding.as_ref().filter(|it| it.node == *node);
        let copy = self.machine(node).copies.get(&uid).cloned();
        let keeps = vm.previous.iter().any(|it| it.node == *node && it.keep);
        let is_past = copy.as_ref().is_some_and(|it| it.epoch < vm.epoch);
        match binding {
            Some(binding) if !vm.meta.deleting => self.run(node, vm, binding),
            _ if keeps && is_past && !vm.meta.deleting => self.keep(node, uid),
            _ if vm.meta.deleting || is_past || (copy.is_none() && named.is_some()) => {
                self.machine(node).copies.remove(&uid);
                match named {
                    Some(epoch) => self.report(node, uid, epoch, 0, Phase::Deleted, None),
                    None => self.withdraw(node, uid) || copy.is_some(),
                }
            }
            _ => copy.is_none() && named.is_none() && self.withdraw(node, uid),
        }
    }

    fn withdraw(&mut self, node: &Name, uid: Uid) -> bool {
        let reports = self.world.view.statuses.get_mut(&uid);
        reports.and_then(|it| it.remove(node)).is_some()
    }

    /// The copy is stopped and kept.
    fn keep(&mut self, node: &Name, uid: Uid) -> bool {
        let copy = self.machine(node).copies.get_mut(&uid).unwrap();
        copy.is_running = false;
        let copy = copy.clone();
        self.report(
            node,
            uid,
            copy.epoch,
            copy.generation,
            Phase::Stopped,
            copy.stops_within,
        )
    }

    fn run(&mut self, node: &Name, vm: &Vm, binding: &Binding) -> bool {
        let (uid, epoch) = (vm.meta.uid, binding.epoch);
        let status = self
            .world
            .view
            .statuses
            .get(&uid)
            .and_then(|it| it.get(node));
        let is_final = status.is_some_and(|it| {
            it.value.epoch >= epoch && matches!(it.value.phase, Phase::Refused | Phase::Deleted)
        });
        let machine = self.machine(node);
        let group = machine.groups.get(&vm.group);
        let Some(group) = group.filter(|it| it.template_generation >= vm.group_generation) else {
            return false;
        };
        if is_final || binding.moving_from.is_some() {
            return false;
        }
        let grace = group.spec.template.lifecycle.graceful_shutdown.get();
        let stops_within = group.replacement.map(|it| it.stop_after + grace);
        let refuses = machine.refuses && !machine.copies.contains_key(&uid);
        let copy = machine.copies.entry(uid).or_insert(Copy {
            epoch,
            generation: vm.group_generation,
            is_running: false,
            turns: 0,
            stops_within,
        });
        if refuses {
            machine.copies.remove(&uid);
            return self.report(node, uid, epoch, 0, Phase::Refused, None);
        }
        if !copy.is_running || copy.epoch != epoch || copy.generation != vm.group_generation {
            *copy = Copy {
                epoch,
                generation: vm.group_generation,
                is_running: true,
                turns: 0,
                stops_within,
            };
        }
        copy.turns += 1;
        let phase = if copy.turns > 1 {
            Phase::Ready
        } else {
            Phase::NotReady
        };
        let (generation, stops_within) = (copy.generation, copy.stops_within);
        self.report(node, uid, epoch, generation, phase, stops_within)
    }

    fn report(
        &mut self,
        node: &Name,
        uid: Uid,
        epoch: u64,
        group_generation: u64,
        phase: Phase,
        stops_within: Option<Duration>,
    ) -> bool {
        let status = VmStatus {
            epoch,
            phase,
            group_generation,
            address: None,
            stops_within,
            message: None,
        };
        let reports = self.world.view.statuses.entry(uid).or_default();
        if reports.get(node).is_some_and(|it| it.value == status) {
            return false;
        }
        let status = self.world.stored(status);
        let reports = self.world.view.statuses.entry(uid).or_default();
        reports.insert(node.clone(), status);
        true
    }

    /// Writes those steps of the plan that hold, and checks them.
    pub fn apply(&mut self, plan: &Plan) {
        for step in &plan.steps {
            if self.world.holds(step) {
                self.check_step(step);
                self.world.write(&step.write);
            }
        }
        self.check();
    }

    /// Plans, checks and applies.
    pub fn plan(&mut self) -> Plan {
        let plan = self.world.plan();
        self.check_budget(&plan);
        self.check_nodes(&plan);
        self.apply(&plan);
        plan
    }

    /// Everyone acts until nothing changes any more, also not with time.
    pub fn settle(&mut self) {
        for _ in 0..500 {
            let plan = self.plan();
            let mut is_quiet = plan.steps.is_empty();
            for node in self.nodes() {
                self.sync(&node);
                is_quiet &= !self.turn(&node);
                self.check();
            }
            match plan.wake_after {
                None if is_quiet => return,
                Some(after) if is_quiet => self.advance(after.as_secs()),
                _ => {}
            }
        }
        panic!("not at rest: {:#?}", self.world.plan());
    }

    /// All nodes with contact see what is in etcd, and act on it.
    pub fn everyone(&mut self) {
        for node in self.nodes() {
            self.sync(&node);
            self.turn(&node);
            self.check();
        }
    }

    /// The number of VMs that run.
    pub fn running(&self) -> usize {
        let copies = self.machines.values().flat_map(|it| it.copies.values());
        copies.filter(|it| it.is_running).count()
    }
}

/// The greatest epoch for which the object names the node.
fn named(vm: &Vm, node: &Name) -> Option<u64> {
    let binding = vm.binding.iter();
    let moving = binding.clone().filter_map(|it| it.moving_from.as_ref());
    let copies = binding
        .map(|it| (&it.node, it.epoch))
        .chain(moving.map(|it| (&it.node, it.epoch)))
        .chain(vm.previous.iter().map(|it| (&it.node, it.epoch)));
    copies
        .filter(|(it, _)| *it == node)
        .map(|(_, epoch)| epoch)
        .max()
}
