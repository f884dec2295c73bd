//! The world as remembered: every object, every rung's page, who has which block.
//! Not here: how it is changed ([`super::Txn`]), how it reaches the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::condition::Condition;
use crate::api::host_group::HostGroup;
use crate::api::lease::Lease;
use crate::api::meta::{Name, Uid};
use crate::api::network::Block;
use crate::api::policy::Entry;
use crate::api::rung::{LADDER, Rung, RungPage};
use crate::api::vm::Vm;

/// Everything, in memory.
#[derive(Default)]
pub struct World {
    pub(super) groups: BTreeMap<Name, HostGroup>,
    pub(super) pools: BTreeMap<Name, Pool>,
    pub(super) vms: HashMap<Uid, Vm>,
    pub(super) by_group: BTreeMap<Name, BTreeMap<u32, Uid>>,
    pub(super) leases: BTreeMap<Name, Lease>,
    pub(super) blocks: BTreeSet<Block>,
    /// The block leased last from each range; only a hint, so not on the disk.
    pub(super) cursors: HashMap<Ipv4Network, Block>,
    pub(super) pages: HashMap<Uid, BTreeMap<Rung, RungPage>>,
    pub(super) ground: Option<Ground>,
}

/// Where a group's addresses come from. Chosen once, kept while a VM lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The range.
    pub range: Ipv4Network,
    /// Blocks in it that the host uses itself.
    pub in_use: BTreeSet<Block>,
}

/// The ground's page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    /// What was last found.
    pub condition: Condition,
    /// What the host's rules were last read back to carry.
    pub carries: Footing,
    /// In which boot.
    pub boot_id: String,
}

/// What the ground must carry: a function of the groups and the leases.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Footing {
    /// Every pool that a living VM, or a group that wants one, has addresses in.
    pub pools: BTreeSet<Ipv4Network>,
    /// `allow` entries that may name the host itself, with the pool they are opened to.
    pub openings: BTreeSet<(Ipv4Network, String)>,
}

impl World {
    /// All groups by name.
    pub fn groups(&self) -> impl Iterator<Item = &HostGroup> {
        self.groups.values()
    }

    /// One group.
    pub fn group(&self, name: &Name) -> Option<&HostGroup> {
        self.groups.get(name)
    }

    /// Where a group's addresses come from.
    pub fn pool(&self, group: &Name) -> Option<&Pool> {
        self.pools.get(group)
    }

    /// Every chosen range by group.
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

    /// A VM by its name: its group is what stands before the last `-`.
    pub fn vm_named(&self, name: &Name) -> Option<&Vm> {
        let (group, index) = name.as_str().rsplit_once('-')?;
        let group = Name::new(group).ok()?;
        let uid = self.by_group.get(&group)?.get(&index.parse().ok()?)?;
        self.vms.get(uid).filter(|vm| vm.meta.name == *name)
    }

    /// All leases by name.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// A group's leases. Names of a group's VMs stand together, but `a-1` and `a-b-1` both begin with `a-`.
    pub fn leases_of<'w>(&'w self, group: &'w Name) -> impl Iterator<Item = &'w Lease> + 'w {
        let first = Name::new(format!("{group}-0")).unwrap_or_else(|_| group.clone());
        let prefix = format!("{group}-");
        self.leases
            .range(first..)
            .take_while(move |(name, _)| name.as_str().starts_with(&prefix))
            .map(|(_, lease)| lease)
            .filter(move |lease| lease.group == *group)
    }

    /// A VM name's lease.
    pub fn lease(&self, name: &Name) -> Option<&Lease> {
        self.leases.get(name)
    }

    /// A rung's page about a VM.
    pub fn page(&self, uid: Uid, rung: Rung) -> Option<&RungPage> {
        self.pages.get(&uid)?.get(&rung)
    }

    /// Whether any rung of a VM may have something on the host.
    pub fn is_held(&self, uid: Uid) -> bool {
        LADDER
            .iter()
            .any(|rung| self.page(uid, *rung).is_some_and(|page| page.held))
    }

    /// Every rung is Ready at this edition of the VM.
    pub fn is_ready(&self, vm: &Vm) -> bool {
        !vm.meta.deleting
            && LADDER.iter().all(|rung| {
                self.page(vm.meta.uid, *rung)
                    .is_some_and(|page| page.condition.is_true_at(vm.meta.generation))
            })
    }

    /// The ground's page.
    pub fn ground(&self) -> Option<&Ground> {
        self.ground.as_ref()
    }

    /// What the ground must carry now.
    pub fn footing(&self) -> Footing {
        let mut footing = Footing::default();
        for lease in self.leases.values() {
            footing.pools.insert(lease.pool);
        }
        for (name, pool) in &self.pools {
            let Some(group) = self.groups.get(name) else {
                continue;
            };
            footing.pools.insert(pool.range);
            let openings = group.spec.template.network.policy().host_openings();
            footing
                .openings
                .extend(openings.map(|entry: Entry| (pool.range, entry.to_string())));
        }
        footing
    }
}
