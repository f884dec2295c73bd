//! Groups and VMs for tests that need some.
//! Out of scope: how they come about (manifests).

use std::path::Path;

use slicectl::api::host_group::{HostGroup, HostGroupSpec, Origin, UpdatePolicy};
use slicectl::api::meta::{Meta, Name, Timestamp};
use slicectl::api::network::{Addresses, BridgeSpec, CniSpec, IsolatedSpec, NetworkSpec, TapOwner};
use slicectl::api::policy::Policy;
use slicectl::api::vm::{Hypervisor, Vm, VmSpec};
use slicectl::owner::Instance;
use slicectl::reconcile::group::ClaimOwner;

/// A `none` slot with an optional range, and destinations to drop, separated by blanks.
pub fn spec(range: Option<&str>, drop: &str) -> VmSpec {
    VmSpec {
        hypervisor: Hypervisor::None,
        vcpu: 1,
        ram_bytes: 128 << 20,
        kernel_file: None,
        initrd_file: None,
        dns_servers: vec![],
        storage: Default::default(),
        lifecycle: Default::default(),
        guest_access: Default::default(),
        network: NetworkSpec::Isolated(IsolatedSpec {
            max_connections: None,
            range: range.map(|range| range.parse().expect("a range")),
            policy: Policy {
                drop: drop
                    .split_whitespace()
                    .map(|entry| entry.parse().expect("an entry"))
                    .collect(),
                ..Policy::default()
            },
            tap_owner: TapOwner::default(),
        }),
    }
}

/// A `none` slot on a bridge with that gateway; TAPs `vmtap0`, `vmtap1`, ….
pub fn bridged(bridge: &str, gateway: &str) -> VmSpec {
    VmSpec {
        network: NetworkSpec::Bridge(BridgeSpec {
            max_connections: None,
            bridge: bridge.to_owned(),
            tap_prefix: "vmtap".to_owned(),
            gateway: Some(gateway.parse().expect("an address")),
            addresses: Addresses::Any,
            antispoof: true,
            isolate_ports: false,
            tap_owner: TapOwner::default(),
        }),
        ..spec(None, "")
    }
}

/// A `none` slot in that CNI network.
pub fn cni_spec(network: &str) -> VmSpec {
    VmSpec {
        network: NetworkSpec::Cni(CniSpec {
            network_name: network.to_owned(),
            tap_owner: TapOwner::default(),
            cni: Default::default(),
        }),
        ..spec(None, "")
    }
}

/// A group as `slicectl apply` makes it.
pub fn group(name: &str, count: u32, template: VmSpec) -> HostGroup {
    HostGroup {
        adopted: false,
        seen_in: None,
        meta: Meta::new(self::name(name), Timestamp::UNIX_EPOCH),
        origin: Origin::Apply,
        spec: HostGroupSpec {
            count,
            update: UpdatePolicy::Rolling,
            template,
        },
        orders: Default::default(),
    }
}

/// The owner of claims of a daemon with its state, and the copy of it, in that directory.
pub fn owner(dir: &Path) -> ClaimOwner {
    ClaimOwner {
        instance: Instance::of(dir),
        state_dir: dir.to_owned(),
        run_dir: dir.join("run"),
        boot_id: "this-boot".to_owned(),
    }
}

/// A VM of a group.
pub fn vm(group: &HostGroup, index: u32) -> Vm {
    let name = HostGroup::vm_name(&group.meta.name, index).expect("a name");
    Vm {
        meta: Meta::new(name, Timestamp::UNIX_EPOCH),
        group: group.meta.name.clone(),
        index,
        spec: group.spec.template.clone(),
        power: Default::default(),
        on_demand: None,
    }
}

/// A name that is one.
pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}
