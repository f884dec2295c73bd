//! Amounts of what VMs use of a node.
//! Out of scope: what a node has.

use std::path::Path;

use super::object::Resources;
use crate::api::network::NetworkSpec;
use crate::api::vm::{Hypervisor, VmSpec};

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
    /// What a VM uses. `size_of`: the size of an image in bytes; 0 if it is unknown, or is a block device, which is not copied. Of a VM that
    /// the user starts (`hypervisor: none`) only the network is counted: its CPUs and its memory are not those of a VMM of the daemon.
    pub fn of(spec: &VmSpec, size_of: impl Fn(&Path) -> u64) -> Self {
        let storage = &spec.storage;
        let disk = storage.image.as_ref().map_or(0, |image| {
            // Without a size, that of the image.
            storage.size_bytes.unwrap_or_else(|| size_of(image))
        });
        let (isolated, bridge_ports) = match &spec.network {
            NetworkSpec::Isolated(_) => (1, 0),
            NetworkSpec::Bridge(_) => (0, 1),
            NetworkSpec::Cni(_) => (0, 0),
        };
        let (vcpus, ram_bytes) = match spec.hypervisor {
            Hypervisor::None => (0, 0),
            Hypervisor::Qemu | Hypervisor::Firecracker | Hypervisor::CloudHypervisor => {
                (u64::from(spec.vcpu), spec.ram_bytes)
            }
        };
        Self {
            vcpus,
            ram_bytes,
            disk_bytes: disk,
            isolated,
            bridge_ports,
        }
    }

    /// The sum.
    pub fn plus(&self, other: &Self) -> Self {
        combine(self, other, u64::saturating_add)
    }

    /// The difference; 0 where `other` is greater.
    pub fn minus(&self, other: &Self) -> Self {
        combine(self, other, u64::saturating_sub)
    }
}
