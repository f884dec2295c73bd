//! The world: the state in memory, with all objects, the status of all stages, and indexes of addresses.
//! Out of scope: changing it ([`super::Txn`]), writing it to the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::condition::{Condition, Status};
use crate::api::host_group::HostGroup;
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Name, Uid};
use crate::api::network::{Block, NetworkSpec};
use crate::api::on_demand::OnDemandEntry;
use crate::api::policy::{Entry, Policy};
use crate::api::stage::{STAGES, Stage, StageStatus};
use crate::api::vm::Vm;

use super::fleet_state::FleetState;
use super::unknown::UnknownFields;
use super::unobserved::Unobserved;

/// All state, in memory.
#[derive(Default)]
pub struct World {
    pub(super) groups: BTreeMap<Name, HostGroup>,
    pub(super) pools: BTreeMap<Name, Pool>,
    pub(super) vms: HashMap<Uid, Vm>,
    pub(super) by_group: BTreeMap<Name, BTreeMap<u32, Uid>>,
    /// VMs made on demand: their names do not contain the group and the index.
    pub(super) on_demand: HashMap<Name, Uid>,
    pub(super) leases: BTreeMap<Name, Lease>,
    pub(super) leases_by_group: BTreeMap<Name, BTreeSet<Name>>,
    pub(super) blocks: BTreeSet<Block>,
    /// Leased addresses of bridges.
    pub(super) bridge_addresses: BTreeSet<Ipv4Addr>,
    /// The number of VMs with an address in each subnet of a CNI network.
    pub(super) cni_subnets: HashMap<Ipv4Network, usize>,
    /// The address that was leased last from each range; only a hint, so it is not stored.
    pub(super) cursors: HashMap<Ipv4Network, Ipv4Addr>,
    pub(super) stage_statuses: HashMap<Uid, BTreeMap<Stage, StageStatus>>,
    pub(super) host_network: Option<HostNetworkStatus>,
    /// The user ids of the VMMs.
    pub(super) vmm_ids: HashMap<Uid, u32>,
    /// The VM of each user id.
    pub(super) vms_by_vmm_id: BTreeMap<u32, Uid>,
    /// The user id that was assigned last; only a hint, so it is not stored.
    pub(super) id_cursor: Option<u32>,
    /// Set while the state of a database that was set aside is not recovered yet.
    pub(super) recovery: Option<Recovery>,
    /// The number of the reserve up to which the database has the entries.
    pub(super) reserve_number: u64,
    /// The fields that a newer version has stored in objects.
    pub(super) unknown: UnknownFields,
    /// Stages that this process has not observed yet.
    pub(super) unobserved: Unobserved,
    pub(super) fleet: FleetState,
    /// The number of commits that were rolled back after they could be read.
    pub(super) rollbacks: u64,
}

/// A database that was set aside, until its state is recovered as far as possible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recovery {
    /// Its new path.
    pub path: PathBuf,
    /// The reason, in one sentence.
    pub why: String,
}

/// The source of a group's addresses. Chosen once, and kept while a VM of the group exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The range, or a bridge's subnet.
    pub range: Ipv4Network,
    /// The host's address on the bridge, in bridge mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// The parts that the host or its neighbours use themselves: /30s of a range, single addresses of a subnet.
    pub in_use: BTreeSet<Ipv4Network>,
}

/// The status of the host network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNetworkStatus {
    /// The result of the last observation.
    pub condition: Condition,
    /// The requirements that the host's rules and bridges met when they were last read back, and will continue to meet.
    #[serde(rename = "carries")]
    pub applied: HostRequirements,
    /// Requirements that are no longer needed. Their rules and bridges may still exist: they are being removed.
    #[serde(default, skip_serializing_if = "HostRequirements::is_default")]
    #[serde(rename = "leaves")]
    pub obsolete: HostRequirements,
    /// The boot of the observation.
    pub boot_id: String,
    /// Why the rules that restrict VMs are not known to be in force; meanwhile nothing is forwarded for VMs. `None`: they were read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unenforced: Option<Condition>,
    /// A conflicting writer reverts what is repaired with netlink messages. Repairs continue, and packets are lost meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "contested")]
    pub conflicting_writer: Option<ConflictingWriter>,
    /// Settings of the host that block packets of VMs and that we must not change, each with its remedy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Foreign chains that drop packets of VMs: the range of the VMs, and the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drops: Vec<(Ipv4Network, String)>,
}

/// A conflict over the host network that is not about the rules which restrict VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictingWriter {
    /// What is reverted.
    pub condition: Condition,
    /// The bridges concerned. Empty: all isolated and bridge VMs are.
    pub bridges: BTreeSet<String>,
}

/// A fault of the host network that keeps a VM from being Ready.
#[derive(Clone, Copy, Debug)]
pub enum HostFault<'w> {
    /// The rules that restrict it are not known to be in force: its forwarding is disabled.
    Unenforced(&'w Condition),
    /// A conflicting writer.
    ConflictingWriter(&'w Condition),
}

impl HostNetworkStatus {
    /// Whether the host network is converged: it meets exactly these requirements, and nothing of earlier ones is left.
    pub fn is_converged(&self, requirements: &HostRequirements) -> bool {
        let found = self.condition.status == Status::True;
        found && self.applied == *requirements && self.obsolete.is_default()
    }

    /// Returns a status with `applied` limited to these requirements; the rest is in `obsolete`. `None`: nothing would change.
    pub fn limited_to(&self, requirements: &HostRequirements) -> Option<Self> {
        let carries = self.applied.intersection(requirements);
        (carries != self.applied).then(|| Self {
            applied: carries,
            obsolete: self.applied.clone().with_bridges_of(&self.obsolete),
            ..self.clone()
        })
    }
}

/// The host requirements: what the rules and bridges of the host must provide. A function of the groups and the leases.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostRequirements {
    /// All pools with addresses of existing isolated VMs, or of groups of such VMs.
    pub pools: BTreeSet<Ipv4Network>,
    /// `allow` entries that may contain addresses of the host itself, with the pool to which they are opened.
    pub openings: BTreeSet<(Ipv4Network, String)>,
    /// All bridges of existing VMs and of groups, with the host's addresses on each: one, and also the previous one while VMs that use
    /// it are being replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bridges: BTreeMap<String, BTreeSet<Ipv4Network>>,
    /// Subnets in which CNI plugins have assigned addresses to VMs: isolated VMs cannot reach these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[serde(rename = "plugged")]
    pub cni_subnets: BTreeSet<Ipv4Network>,
    /// `max_connections` of the groups, by the pool or the bridge's subnet: the smallest value if several groups share a subnet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max_connections: BTreeMap<Ipv4Network, u32>,
}

impl HostRequirements {
    /// Whether no rules and bridges of ours are required.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.bridges.is_empty()
    }

    /// Whether there are no requirements at all.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The intersection with other requirements.
    fn intersection(&self, other: &Self) -> Self {
        let mut bridges = self.bridges.clone();
        bridges.retain(|bridge, gateways| {
            let others = other.bridges.get(bridge);
            gateways.retain(|gateway| others.is_some_and(|others| others.contains(gateway)));
            !gateways.is_empty()
        });
        Self {
            pools: &self.pools & &other.pools,
            openings: &self.openings & &other.openings,
            bridges,
            cni_subnets: &self.cni_subnets & &other.cni_subnets,
            // No VM depends on a limit to be connected: limits are written again with the rules.
            max_connections: self.max_connections.clone(),
        }
    }

    /// Adds the bridge addresses of earlier requirements, which may still exist.
    #[must_use]
    pub fn with_bridges_of(mut self, before: &Self) -> Self {
        for (bridge, gateways) in &before.bridges {
            for gateway in gateways {
                self.add_bridge(bridge, *gateway);
            }
        }
        self
    }

    /// Whether the requirements include those of a VM with this address.
    pub fn provide_for(&self, address: &Address) -> bool {
        match address {
            Address::Isolated { pool, .. } => self.pools.contains(pool),
            Address::Bridge {
                bridge, gateway, ..
            } => {
                let gateways = self.bridges.get(bridge);
                gateways.is_some_and(|gateways| gateways.contains(gateway))
            }
            Address::Cni { .. } => {
                self.pools.is_empty() || self.cni_subnets.contains(&address.range())
            }
        }
    }

    fn add_address(&mut self, address: &Address) {
        match address {
            Address::Isolated { pool, .. } => {
                self.pools.insert(*pool);
            }
            Address::Bridge {
                bridge, gateway, ..
            } => self.add_bridge(bridge, *gateway),
            Address::Cni { .. } => {
                self.cni_subnets.insert(address.range());
            }
        }
    }

    fn add_bridge(&mut self, bridge: &str, gateway: Ipv4Network) {
        let gateways = self.bridges.entry(bridge.to_owned()).or_default();
        gateways.insert(gateway);
    }
}

impl World {
    /// Adds the lease of a name that has none.
    pub(super) fn insert_lease(&mut self, lease: Lease) {
        self.index_address(&lease.address);
        let names = self.leases_by_group.entry(lease.group.clone()).or_default();
        names.insert(lease.name.clone());
        self.leases.insert(lease.name.clone(), lease);
    }

    /// Removes and returns the lease of a name.
    pub(super) fn remove_lease(&mut self, name: &Name) -> Option<Lease> {
        let lease = self.leases.remove(name)?;
        self.unindex_address(&lease.address);
        if let Some(names) = self.leases_by_group.get_mut(&lease.group) {
            names.remove(name);
            if names.is_empty() {
                self.leases_by_group.remove(&lease.group);
            }
        }
        Some(lease)
    }

    fn index_address(&mut self, address: &Address) {
        match address {
            Address::Isolated { block, .. } => self.blocks.insert(*block),
            Address::Bridge { ip, .. } => self.bridge_addresses.insert(*ip),
            Address::Cni { .. } => {
                let count = self.cni_subnets.entry(address.range()).or_default();
                *count += 1;
                *count == 1
            }
        };
    }

    fn unindex_address(&mut self, address: &Address) {
        match address {
            Address::Isolated { block, .. } => self.blocks.remove(block),
            Address::Bridge { ip, .. } => self.bridge_addresses.remove(ip),
            Address::Cni { .. } => match self.cni_subnets.get_mut(&address.range()) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => self.cni_subnets.remove(&address.range()).is_some(),
            },
        };
    }

    /// The number of changes that could be read and were rolled back afterwards, because the disk refused them.
    pub fn rollbacks(&self) -> u64 {
        self.rollbacks
    }

    /// All groups by name.
    pub fn groups(&self) -> impl Iterator<Item = &HostGroup> {
        self.groups.values()
    }

    /// One group.
    pub fn group(&self, name: &Name) -> Option<&HostGroup> {
        self.groups.get(name)
    }

    /// The pool of a group.
    pub fn pool(&self, group: &Name) -> Option<&Pool> {
        self.pools.get(group)
    }

    /// All pools by group.
    pub fn pools(&self) -> impl Iterator<Item = (&Name, &Pool)> {
        self.pools.iter()
    }

    /// One VM.
    pub fn vm(&self, uid: Uid) -> Option<&Vm> {
        self.vms.get(&uid)
    }

    /// All VMs, by group and index.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.by_group
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|uid| self.vms.get(uid))
    }

    /// A group's VMs, by index.
    pub fn vms_of(&self, group: &Name) -> impl Iterator<Item = &Vm> {
        self.by_group
            .get(group)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter_map(|uid| self.vms.get(uid))
    }

    /// A VM by its name. The name of a VM of `count` contains the group: the part before the last `-`.
    pub fn vm_named(&self, name: &Name) -> Option<&Vm> {
        if let Some(uid) = self.on_demand.get(name) {
            return self.vms.get(uid);
        }
        let (group, index) = name.as_str().rsplit_once('-')?;
        let group = Name::new(group).ok()?;
        let uid = self.by_group.get(&group)?.get(&index.parse().ok()?)?;
        self.vms.get(uid).filter(|vm| vm.meta.name == *name)
    }

    /// All leases by name.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// A group's leases, by name.
    pub fn leases_of(&self, group: &Name) -> impl Iterator<Item = &Lease> {
        let names = self.leases_by_group.get(group);
        names
            .into_iter()
            .flatten()
            .filter_map(|name| self.leases.get(name))
    }

    /// The order for a VM of this name, with its group and its index.
    pub fn order(&self, name: &Name) -> Option<(&HostGroup, u32, &OnDemandEntry)> {
        self.groups.values().find_map(|group| {
            let mut orders = group.orders.iter();
            let (place, order) = orders.find(|(_, order)| order.name == *name)?;
            Some((group, *place, order))
        })
    }

    /// A VM name's lease.
    pub fn lease(&self, name: &Name) -> Option<&Lease> {
        self.leases.get(name)
    }

    /// The status of a stage of a VM.
    pub fn status(&self, uid: Uid, stage: Stage) -> Option<&StageStatus> {
        self.stage_statuses.get(&uid)?.get(&stage)
    }

    /// Whether any stage of a VM is acquired, and so may have objects on the host.
    pub fn has_acquired_stage(&self, uid: Uid) -> bool {
        STAGES.iter().any(|stage| {
            self.status(uid, *stage)
                .is_some_and(|status| status.acquired)
        })
    }

    /// Whether all stages are Ready at the VM's current generation.
    pub fn is_ready(&self, vm: &Vm) -> bool {
        !vm.meta.deleting
            && self.host_fault(vm).is_none()
            && STAGES.iter().all(|stage| {
                self.status(vm.meta.uid, *stage)
                    .is_some_and(|status| status.condition.is_true_at(vm.meta.generation))
            })
    }

    /// The fault of the host network that keeps a VM from being Ready. None for a VM in CNI mode, which is restricted by the rules of
    /// the plugins.
    pub fn host_fault(&self, vm: &Vm) -> Option<HostFault<'_>> {
        let bridge = match &vm.spec.network {
            NetworkSpec::Isolated(_) => None,
            NetworkSpec::Bridge(spec) => Some(&spec.bridge),
            NetworkSpec::Cni(_) => return None,
        };
        let network_status = self.host_network.as_ref()?;
        let affects = |conflict: &&ConflictingWriter| {
            conflict.bridges.is_empty()
                || bridge.is_some_and(|name| conflict.bridges.contains(name))
        };
        let writer = network_status.conflicting_writer.as_ref().filter(affects);
        let unenforced = network_status
            .unenforced
            .as_ref()
            .map(HostFault::Unenforced);
        unenforced.or(writer.map(|writer| HostFault::ConflictingWriter(&writer.condition)))
    }

    /// As [`World::is_ready`], but the VMM may also be paused or stopped, if that is the desired state.
    pub fn is_settled(&self, vm: &Vm) -> bool {
        !vm.meta.deleting
            && self.host_fault(vm).is_none()
            && STAGES.iter().all(|stage| {
                self.status(vm.meta.uid, *stage)
                    .is_some_and(|status| status.condition.is_settled_at(vm.meta.generation))
            })
    }

    /// The user id of a VM's VMM. `None` before its first start, and for a VMM that was started by a version without VMM users.
    pub fn vmm_id(&self, uid: Uid) -> Option<u32> {
        self.vmm_ids.get(&uid).copied()
    }

    /// The VM of each VMM user id.
    pub fn vmm_users(&self) -> HashMap<u32, Uid> {
        let users = self.vmm_ids.iter();
        users.map(|(uid, user)| (*user, *uid)).collect()
    }

    pub(super) fn insert_vmm_id(&mut self, uid: Uid, id: u32) {
        self.vmm_ids.insert(uid, id);
        self.vms_by_vmm_id.insert(id, uid);
    }

    pub(super) fn remove_vmm_id(&mut self, uid: Uid) -> Option<u32> {
        let id = self.vmm_ids.remove(&uid)?;
        self.vms_by_vmm_id.remove(&id);
        Some(id)
    }

    /// The status of the host network.
    pub fn host_network_status(&self) -> Option<&HostNetworkStatus> {
        self.host_network.as_ref()
    }

    /// The current host requirements.
    pub fn host_requirements(&self) -> HostRequirements {
        let mut requirements = HostRequirements::default();
        for (name, pool) in &self.pools {
            let Some(group) = self.groups.get(name) else {
                continue;
            };
            match (&group.spec.template.network, pool.gateway) {
                (NetworkSpec::Isolated(_), _) => {
                    requirements.pools.insert(pool.range);
                }
                (NetworkSpec::Bridge(bridge), Some(gateway)) => {
                    let gateway = Ipv4Network::new(gateway, pool.range.prefix());
                    let gateway = gateway.expect("a valid prefix length");
                    requirements.add_bridge(&bridge.bridge, gateway);
                }
                (NetworkSpec::Bridge(_) | NetworkSpec::Cni(_), _) => {}
            }
            if let Some(group_limit) = group.spec.template.network.max_connections() {
                let limit = requirements
                    .max_connections
                    .entry(pool.range)
                    .or_insert(group_limit);
                *limit = group_limit.min(*limit);
            }
            let policy = group.spec.template.network.policy();
            let openings = policy.into_iter().flat_map(Policy::host_access_entries);
            let orders = group.orders.values();
            let openings =
                openings.chain(orders.flat_map(|order| order.overrides.host_access_entries()));
            requirements
                .openings
                .extend(openings.map(|entry: Entry| (pool.range, entry.to_string())));
        }
        for lease in self.leases.values() {
            requirements.add_address(&lease.address);
        }
        requirements
    }
}
