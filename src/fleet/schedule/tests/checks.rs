//! What must hold at every moment of the model.
//! Out of scope: the model ([`super::model`]).

use std::collections::{BTreeMap, BTreeSet};

use super::super::index::Index;
use super::super::step::{Action, Plan, Step, Write};
use super::super::view::Contact;
use super::model::Model;
use crate::api::meta::{Name, Uid};
use crate::fleet::object::*;

impl Model {
    pub fn check_step(&mut self, step: &Step) {
        let Write::PutVm(vm) = &step.write else {
            return;
        };
        let before = self.world.view.vms.get(&vm.meta.uid).map(|it| &it.value);
        let binding_before = before.and_then(|it| it.binding.as_ref());
        let previous = self.epochs.insert(vm.meta.uid, vm.epoch).unwrap_or(0);
        let epoch_of = |it: &Binding| (it.node.clone(), it.epoch);
        if binding_before.map(epoch_of) == vm.binding.as_ref().map(epoch_of) {
            assert_eq!(vm.epoch, previous, "{step:?}");
            return;
        }
        assert!(vm.epoch > previous, "{step:?}");
        assert!(vm.binding.as_ref().is_none_or(|it| it.epoch == vm.epoch));
    }

    /// Bindings are to nodes that accept VMs. Until the transaction a node may be cordoned, which is no error.
    pub fn check_nodes(&self, plan: &Plan) {
        for step in &plan.steps {
            let Write::PutVm(vm) = &step.write else {
                continue;
            };
            let before = self
                .world
                .view
                .vms
                .get(&vm.meta.uid)
                .map(|it| it.value.epoch);
            let Some(binding) = vm.binding.as_ref().filter(|_| before != Some(vm.epoch)) else {
                continue;
            };
            let node = &self.world.view.nodes[&binding.node];
            let admin = node
                .admin
                .as_ref()
                .map(|it| it.value.clone())
                .unwrap_or_default();
            let accepts = !admin.unschedulable && admin.drain.is_none() && admin.gone.is_none();
            assert!(accepts && node.contact == Contact::Alive, "{step:?}");
        }
    }

    /// No more VMs of a group become unavailable than `max_unavailable` allows.
    pub fn check_budget(&self, plan: &Plan) {
        let view = &self.world.view;
        let index = Index::new(view);
        for (name, group) in &view.groups {
            let count = if group.value.meta.deleting {
                0
            } else {
                group.value.spec.count
            };
            let vms = view.vms.values().map(|it| &it.value);
            let vms = vms.filter(|it| it.group == *name && (1..=count).contains(&it.index));
            let available: BTreeSet<u32> = vms
                .filter(|it| index.is_available(it))
                .map(|it| it.index)
                .collect();
            let writes = plan.steps.iter().filter_map(|step| match &step.write {
                Write::PutVm(vm) if vm.group == *name => Some((step.action, vm)),
                _ => None,
            });
            let interrupted = writes.filter(|(action, vm)| {
                matches!(
                    action,
                    Action::Move | Action::Update | Action::Return | Action::Delete
                ) && available.contains(&vm.index)
            });
            let allowed = group.value.placement.max_unavailable as usize;
            let unavailable = count as usize - available.len();
            let interrupted = interrupted.count();
            assert!(
                interrupted <= allowed.saturating_sub(unavailable),
                "{name}: {interrupted} of {count}, {unavailable} were unavailable: {plan:#?}"
            );
        }
    }

    /// What must hold at every moment.
    pub fn check(&self) {
        let mut running = BTreeMap::<Uid, Vec<&Name>>::new();
        for (node, machine) in &self.machines {
            let copies = machine.copies.iter().filter(|(_, it)| it.is_running);
            copies.for_each(|(uid, _)| running.entry(*uid).or_default().push(node));
        }
        for (uid, nodes) in &running {
            assert!(nodes.len() <= 1, "{uid} runs on {nodes:?}");
        }
        for node in &Index::new(&self.world.view).nodes {
            let limit = &node.view.status.as_ref().unwrap().value.allocatable;
            assert!(
                node.used.vcpus <= limit.vcpus,
                "{}: {:?}",
                node.name,
                node.used
            );
        }
    }
}
