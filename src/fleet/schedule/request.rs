//! What the VMs of a group require of a node. Groups with equal requests share one list of nodes.
//! Out of scope: whether a node has it ([`super::filter`]).

use std::path::Path;

use crate::api::network::NetworkSpec;
use crate::api::vm::Hypervisor;
use crate::fleet::object::{Group, Labels, Resources};

/// What a VM of a group requires of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request<'v> {
    pub(super) architecture: Option<&'v str>,
    pub(super) labels: &'v Labels,
    pub(super) hypervisor: Hypervisor,
    /// Image, kernel and initrd.
    pub(super) files: Vec<&'v Path>,
    pub(super) resources: Resources,
    /// It has a copy of an image. The size of the copy is 0 in `resources` if the group does not set it: the scheduler does not know the
    /// sizes of images.
    pub(super) copies_image: bool,
    pub(super) bridge: Option<&'v str>,
}

impl<'v> Request<'v> {
    pub(super) fn of(group: &'v Group) -> Self {
        let spec = &group.spec.template;
        let storage = &spec.storage;
        let files = [&storage.image, &spec.kernel_file, &spec.initrd_file];
        let files = files.into_iter().flatten();
        let mut resources = Resources {
            vcpus: u64::from(spec.vcpu),
            ram_bytes: spec.ram_bytes,
            disk_bytes: storage.size_bytes.unwrap_or(0),
            isolated: 0,
            bridge_ports: 0,
        };
        let mut bridge = None;
        match &spec.network {
            NetworkSpec::Isolated(_) => resources.isolated = 1,
            NetworkSpec::Bridge(spec) => {
                resources.bridge_ports = 1;
                bridge = Some(spec.bridge.as_str());
            }
            NetworkSpec::Cni(_) => {}
        }
        Self {
            architecture: group.placement.architecture.as_deref(),
            labels: &group.placement.node_selector,
            hypervisor: spec.hypervisor,
            files: files.map(|path| path.as_path()).collect(),
            resources,
            copies_image: storage.image.is_some(),
            bridge,
        }
    }
}

/// Each amount of `a` and `b`, combined.
fn combine(a: &Resources, b: &Resources, with: impl Fn(u64, u64) -> u64) -> Resources {
    Resources {
        vcpus: with(a.vcpus, b.vcpus),
        ram_bytes: with(a.ram_bytes, b.ram_bytes),
        disk_bytes: with(a.disk_bytes, b.disk_bytes),
        isolated: with(a.isolated, b.isolated),
        bridge_ports: with(a.bridge_ports, b.bridge_ports),
    }
}

impl Resources {
    pub(super) fn plus(&self, other: &Self) -> Self {
        combine(self, other, u64::saturating_add)
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        combine(self, other, u64::saturating_sub)
    }
}
