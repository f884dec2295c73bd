//! VMs as the REST API lists them.
//! Out of scope: the status of the agent, which the store does not have.

use super::{StatusBuilder, stage_status, state};
use crate::api::lease::Lease;
use crate::api::meta::Name;
use crate::api::node::{GuestAgent, Node, NodeDetails, PolicyOverrides};
use crate::api::stage::{STAGES, Stage};
use crate::api::vm::Vm;
use crate::reconcile::checkpoint;
use crate::reconcile::power::VmmCheckpoint;
use crate::store::World;

impl StatusBuilder {
    /// The VMs of a group, or all, without those that are being deleted.
    pub fn nodes(&self, world: &World, group: Option<&Name>) -> Vec<Node> {
        let is_listed = |vm: &&Vm| !vm.meta.deleting;
        match group {
            Some(group) => {
                let vms = world.vms_of(group).filter(is_listed);
                vms.map(|vm| self.node(world, vm)).collect()
            }
            None => {
                let vms = world.vms().filter(is_listed);
                vms.map(|vm| self.node(world, vm)).collect()
            }
        }
    }

    /// A VM that is not being deleted. Its checkpoints, which are text, are read only if its lease has no address.
    pub fn node(&self, world: &World, vm: &Vm) -> Node {
        let stages = STAGES.map(|stage| (stage, world.status(vm.meta.uid, stage)));
        let lease: Option<&Lease> = world.lease(&vm.meta.name);
        let known = lease.map(|lease| (lease.address.ip(), lease.address.prefix_len()));
        let ip = known.or_else(|| {
            let connection = checkpoint::connection(stage_status(&stages, Stage::Net))?;
            Some((connection.ip, connection.prefix_len))
        });
        let overrides = vm.on_demand.as_ref().map(|made| &made.overrides);
        Node {
            name: vm.meta.name.clone(),
            group: vm.group.clone(),
            ip,
            ram_bytes: vm.spec.ram_bytes,
            vcpu: vm.spec.vcpu,
            created_at: vm.meta.created_at,
            tags: overrides
                .map(|overrides| overrides.tag_set())
                .unwrap_or_default(),
            state: state(
                vm,
                stage_status(&stages, Stage::Vmm),
                &VmmCheckpoint::default(),
            ),
            ready: world.is_ready(vm),
            persistent: vm.spec.storage.persistent,
            has_disk: vm.spec.storage.image.is_some(),
            on_demand: vm.on_demand.is_some(),
            access: GuestAgent::of(&vm.spec),
            agent: None,
        }
    }

    /// A VM with its lists.
    pub fn node_details(&self, world: &World, vm: &Vm) -> NodeDetails {
        let files = [&vm.spec.storage.image, &vm.spec.kernel_file];
        let file = files.into_iter().flatten().next();
        let image = file.and_then(|file| file.file_name());
        let group = world.group(&vm.group);
        let overrides = vm.on_demand.as_ref().map(|made| &made.overrides);
        let group_network = group.map(|group| &group.spec.template.network);
        NodeDetails {
            node: self.node(world, vm),
            image: image
                .map(|image| image.to_string_lossy().into_owned())
                .unwrap_or_default(),
            mode: vm.spec.network.mode(),
            group_policy: group_network.and_then(|network| network.policy()).cloned(),
            overrides: PolicyOverrides {
                allow: overrides.and_then(|own| own.allow.clone()),
                drop: overrides.and_then(|own| own.drop.clone()),
            },
            policy: vm.spec.network.policy().cloned(),
        }
    }
}
