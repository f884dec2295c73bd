//! A transaction over the world: every step is recorded twice, as a write for the disk and as an undo function for a rollback.
//! Out of scope: the meaning of the steps.

use super::closing::{on_demand_openings, only_restricts, vm_only_restricts};
use super::load::RECOVERY_KEY;
use super::world::{HostNetworkStatus, Pool, World};
use super::{Change, Error};
use crate::api::condition::Status;
use crate::api::host_group::HostGroup;
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Name, Uid};
use crate::api::stage::{Stage, StageStatus};
use crate::api::vm::Vm;

/// A database key and its new value; `None` removes the key.
pub(super) type Write = (String, Option<Vec<u8>>);

/// Undoes one step.
pub(super) type Undo = Box<dyn FnOnce(&mut World) + Send>;

/// A transaction in progress. Reads use [`Txn::world`] and see the steps that were already made.
pub struct Txn<'w> {
    world: &'w mut World,
    writes: Vec<Write>,
    undo: Vec<Undo>,
    changes: Vec<Change>,
    kind: Kind,
    deleting: Vec<Uid>,
    removed: Vec<Uid>,
    ends_recovery: bool,
}

/// The kind of a transaction, which determines when it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It records an observation. The observation is made again after a crash, so it is kept in memory while nothing can be written.
    Observation,
    /// It applies the group's spec to a VM, and only restricts. It is derived from the group again after a crash.
    Consequence,
    /// It specifies the desired state of existing groups, and only restricts: on a full disk the reserve has space for it
    /// ([`super::reserve`]).
    Restriction,
    /// It specifies the desired state, or allows a stage to change the host: acknowledged only when it is on stable storage.
    Intent,
}

/// A finished transaction.
pub(super) struct Finished {
    pub(super) writes: Vec<Write>,
    pub(super) undo: Vec<Undo>,
    pub(super) changes: Vec<Change>,
    pub(super) kind: Kind,
    /// VMs that this transaction requests to remove.
    pub(super) condemned: Vec<Uid>,
    /// VMs whose removal is complete.
    pub(super) buried: Vec<Uid>,
    /// Lost state has been restored: the journal is written from now on.
    pub(super) begins: bool,
}

impl<'w> Txn<'w> {
    pub(super) fn new(world: &'w mut World) -> Self {
        Self {
            world,
            writes: Vec::new(),
            undo: Vec::new(),
            changes: Vec::new(),
            kind: Kind::Observation,
            deleting: Vec::new(),
            removed: Vec::new(),
            ends_recovery: false,
        }
    }

    /// The world with the steps of this transaction.
    pub fn world(&self) -> &World {
        self.world
    }

    pub(super) fn world_mut(&mut self) -> &mut World {
        self.world
    }

    /// Writes a group.
    pub fn put_group(&mut self, group: HostGroup) -> Result<(), Error> {
        let name = group.meta.name.clone();
        let kind = match self.world.group(&name) {
            Some(before) if only_restricts(before, &group) => Kind::Restriction,
            Some(_) | None => Kind::Intent,
        };
        self.write_as(kind, format!("group/{name}"), Some(&group))?;
        let requirements_changed = self.world.group(&name).is_none_or(|before| {
            (&before.meta, &before.origin, &before.spec)
                != (&group.meta, &group.origin, &group.spec)
                || !on_demand_openings(before).eq(on_demand_openings(&group))
        });
        let before = self.world.groups.insert(name.clone(), group);
        let changes = std::iter::once(Change::Group(name.clone()));
        // The host requirements do not depend on the number of VMs.
        self.record(
            changes.chain(requirements_changed.then_some(Change::HostNetwork)),
            move |world| restore(&mut world.groups, name, before),
        );
        Ok(())
    }

    /// Removes a group and its pool.
    pub fn remove_group(&mut self, name: &Name) -> Result<(), Error> {
        self.write::<()>(format!("group/{name}"), None)?;
        self.write::<()>(format!("pool/{name}"), None)?;
        let group = self.world.groups.remove(name);
        let pool = self.world.pools.remove(name);
        let name = name.clone();
        self.record(
            [Change::Group(name.clone()), Change::HostNetwork],
            move |world| {
                restore(&mut world.groups, name.clone(), group);
                restore(&mut world.pools, name, pool);
            },
        );
        Ok(())
    }

    /// Writes the pool of a group.
    pub fn put_pool(&mut self, group: &Name, pool: Pool) -> Result<(), Error> {
        self.write(format!("pool/{group}"), Some(&pool))?;
        let before = self.world.pools.insert(group.clone(), pool);
        let group = group.clone();
        self.record(
            [Change::Group(group.clone()), Change::HostNetwork],
            move |world| restore(&mut world.pools, group, before),
        );
        Ok(())
    }

    /// Removes the pool of a group that is now in CNI mode, in which plugins assign the addresses.
    pub fn remove_pool(&mut self, group: &Name) -> Result<(), Error> {
        if self.world.pool(group).is_none() {
            return Ok(());
        }
        self.write::<()>(format!("pool/{group}"), None)?;
        let pool = self.world.pools.remove(group);
        let group = group.clone();
        self.record(
            [Change::Group(group.clone()), Change::HostNetwork],
            move |world| restore(&mut world.pools, group, pool),
        );
        Ok(())
    }

    /// Writes a VM.
    pub fn put_vm(&mut self, vm: Vm) -> Result<(), Error> {
        let uid = vm.meta.uid;
        let before = self.world.vm(uid);
        if vm.meta.deleting && before.is_none_or(|before| !before.meta.deleting) {
            self.deleting.push(uid);
        }
        let kind = match self.world.vm(uid) {
            Some(before) if vm_only_restricts(before, &vm) => Kind::Consequence,
            Some(_) | None => Kind::Intent,
        };
        self.write_as(kind, format!("vm/{uid}"), Some(&vm))?;
        let (group, index) = (vm.group.clone(), vm.index);
        let name = vm.on_demand.is_some().then(|| vm.meta.name.clone());
        let before = self.world.vms.insert(uid, vm);
        let name_entry = name.map(|name| {
            let before = self.world.on_demand.insert(name.clone(), uid);
            (name, before)
        });
        let indexes = self.world.by_group.entry(group.clone()).or_default();
        let index_entry = indexes.insert(index, uid);
        self.record([Change::Vm(uid), Change::Group(group.clone())], move |w| {
            restore_hash(&mut w.vms, uid, before);
            restore(w.by_group.entry(group).or_default(), index, index_entry);
            if let Some((name, before)) = name_entry {
                restore_hash(&mut w.on_demand, name, before);
            }
        });
        Ok(())
    }

    /// Removes a VM and the status of its stages.
    pub fn remove_vm(&mut self, uid: Uid) -> Result<(), Error> {
        let Some(vm) = self.world.vms.remove(&uid) else {
            return Ok(());
        };
        self.removed.push(uid);
        self.write::<()>(format!("vm/{uid}"), None)?;
        let statuses = self.world.stage_statuses.remove(&uid);
        let vmm_id = self.world.remove_vmm_id(uid);
        if vmm_id.is_some() {
            self.write::<()>(format!("vmm-id/{uid}"), None)?;
        }
        for stage in statuses.iter().flatten().map(|(stage, _)| *stage) {
            self.write::<()>(format!("page/{uid}/{stage}"), None)?;
        }
        let (group, index) = (vm.group.clone(), vm.index);
        let name = &vm.meta.name;
        let name_entry = self.world.on_demand.get(name) == Some(&uid);
        if name_entry {
            self.world.on_demand.remove(name);
        }
        let mut index_entry = None;
        if let Some(indexes) = self.world.by_group.get_mut(&group)
            && indexes.get(&index) == Some(&uid)
        {
            index_entry = indexes.remove(&index);
            if indexes.is_empty() {
                self.world.by_group.remove(&group);
            }
        }
        self.record([Change::Vm(uid), Change::Group(group.clone())], move |w| {
            if name_entry {
                w.on_demand.insert(vm.meta.name.clone(), uid);
            }
            w.vms.insert(uid, vm);
            restore_hash(&mut w.stage_statuses, uid, statuses);
            if let Some(id) = vmm_id {
                w.insert_vmm_id(uid, id);
            }
            if index_entry.is_some() {
                restore(w.by_group.entry(group).or_default(), index, index_entry);
            }
        });
        Ok(())
    }

    /// Writes a lease.
    pub fn put_lease(&mut self, lease: Lease) -> Result<(), Error> {
        let (name, address) = (lease.name.clone(), lease.address.clone());
        self.write(format!("lease/{name}"), Some(&lease))?;
        let range = address.range();
        // Rolled back with the lease: a transaction that is repeated leases the same address.
        let cursor = self.world.cursors.insert(range, address.ip());
        let before = self.world.remove_lease(&name);
        // The first address that plugins assign in a subnet changes the host requirements; other ranges change with their group.
        let requirements_changed = matches!(address, Address::Cni { .. })
            && !self.world.cni_subnets.contains_key(&address.range());
        self.world.insert_lease(lease);
        let changes = std::iter::once(Change::Lease(name.clone()));
        self.record(
            changes.chain(requirements_changed.then_some(Change::HostNetwork)),
            move |world| {
                world.remove_lease(&name);
                if let Some(before) = before {
                    world.insert_lease(before);
                }
                match cursor {
                    Some(ip) => world.cursors.insert(range, ip),
                    None => world.cursors.remove(&range),
                };
            },
        );
        Ok(())
    }

    /// Releases a lease.
    pub fn remove_lease(&mut self, name: &Name) -> Result<(), Error> {
        let Some(lease) = self.world.remove_lease(name) else {
            return Ok(());
        };
        self.write::<()>(format!("lease/{name}"), None)?;
        // The last lease of a pool without a group removes the pool from the host requirements.
        let changes = [Change::Lease(name.clone()), Change::HostNetwork];
        self.record(changes, move |world| world.insert_lease(lease));
        Ok(())
    }

    /// Records that this process has observed a stage.
    pub(super) fn record_observed(&mut self, uid: Uid, stage: Stage, status: Status) {
        if self.world.set_observed(uid, stage) {
            let change = self.world.is_reported(uid, status);
            let change = change.then_some(Change::Observed(uid));
            self.record(change, move |world| world.unset_observed(uid, stage));
        }
    }

    /// Writes the status of a stage of a VM.
    pub fn put_stage_status(
        &mut self,
        uid: Uid,
        stage: Stage,
        status: StageStatus,
    ) -> Result<(), Error> {
        if self.world.status(uid, stage) == Some(&status) {
            return Ok(());
        }
        let was_acquired = self
            .world
            .status(uid, stage)
            .is_some_and(|status| status.acquired);
        let acquires = status.acquired && !was_acquired;
        self.write_as(
            if acquires {
                Kind::Intent
            } else {
                Kind::Observation
            },
            format!("page/{uid}/{stage}"),
            Some(&status),
        )?;
        let statuses = self.world.stage_statuses.entry(uid).or_default();
        let before = statuses.insert(stage, status);
        self.record([Change::StageStatus(uid)], move |world| {
            restore(world.stage_statuses.entry(uid).or_default(), stage, before);
        });
        Ok(())
    }

    /// Writes the status of the host network.
    pub fn put_host_network_status(
        &mut self,
        host_network: HostNetworkStatus,
    ) -> Result<(), Error> {
        if self.world.host_network.as_ref() == Some(&host_network) {
            return Ok(());
        }
        self.write_as(Kind::Observation, "ground".to_owned(), Some(&host_network))?;
        let published = |network_status: &HostNetworkStatus| {
            let HostNetworkStatus {
                unenforced,
                conflicting_writer: contested,
                warnings,
                drops,
                ..
            } = network_status.clone();
            (unenforced, contested, warnings, drops)
        };
        let is_changed = self
            .world
            .host_network
            .as_ref()
            .map(published)
            .unwrap_or_default()
            != published(&host_network);
        let before = self.world.host_network.replace(host_network);
        // The readiness of VMs and groups depends on it.
        let vms = self.world.vms.keys().map(|uid| Change::Vm(*uid));
        let groups = self.world.groups.keys().cloned().map(Change::Group);
        let changes: Vec<Change> = match is_changed {
            true => vms.chain(groups).collect(),
            false => Vec::new(),
        };
        self.record(changes, move |world| world.host_network = before);
        Ok(())
    }

    /// Records that the removal of a VM without an object is complete, so that its tombstone is withdrawn.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn confirm_removed(&mut self, uid: Uid) -> Result<(), Error> {
        self.removed.push(uid);
        Ok(())
    }

    /// Declares the transaction to be an observation: its content was found on the host and would be found again.
    pub(super) fn mark_observation(&mut self) {
        self.kind = Kind::Observation;
    }

    /// Keeps what a newer version has stored in these objects.
    pub fn keep_unknown_fields_of(&mut self, world: &World) {
        self.world.unknown.extend(&world.unknown);
    }

    /// Records that everything that could be recovered of a database that was set aside is in this one.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn end_recovery(&mut self) -> Result<(), Error> {
        self.ends_recovery = true;
        if let Some(before) = self.world.recovery.take() {
            self.write::<()>(RECOVERY_KEY.to_owned(), None)?;
            self.record([], move |world| world.recovery = Some(before));
        }
        Ok(())
    }

    /// Whether it specifies what was not specified before.
    pub(super) fn is_intent(&self) -> bool {
        self.kind == Kind::Intent
    }

    pub(super) fn roll_back(self) {
        for undo in self.undo.into_iter().rev() {
            undo(self.world);
        }
    }

    pub(super) fn finish(self) -> Finished {
        Finished {
            writes: self.writes,
            undo: self.undo,
            changes: self.changes,
            kind: self.kind,
            condemned: self.deleting,
            buried: self.removed,
            begins: self.ends_recovery,
        }
    }

    pub(super) fn write<T: serde::Serialize>(
        &mut self,
        key: String,
        value: Option<&T>,
    ) -> Result<(), Error> {
        self.write_as(Kind::Intent, key, value)
    }

    fn write_as<T: serde::Serialize>(
        &mut self,
        kind: Kind,
        key: String,
        value: Option<&T>,
    ) -> Result<(), Error> {
        self.kind = self.kind.max(kind);
        let unknown = &mut self.world.unknown;
        let value = match value {
            Some(value) => Some(
                unknown
                    .encode(&key, value)
                    .map_err(|e| Error::Write(e.to_string()))?,
            ),
            None => {
                if let Some(fields) = unknown.remove(&key) {
                    let key = key.clone();
                    self.undo
                        .push(Box::new(move |world| world.unknown.restore(key, fields)));
                }
                None
            }
        };
        self.writes.push((key, value));
        Ok(())
    }

    pub(super) fn record(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        undo: impl FnOnce(&mut World) + Send + 'static,
    ) {
        for change in changes {
            if !self.changes.contains(&change) {
                self.changes.push(change);
            }
        }
        self.undo.push(Box::new(undo));
    }
}

pub(super) fn restore<K: Ord, V>(
    map: &mut std::collections::BTreeMap<K, V>,
    key: K,
    before: Option<V>,
) {
    match before {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn restore_hash<K: std::hash::Hash + Eq, V>(
    map: &mut std::collections::HashMap<K, V>,
    key: K,
    before: Option<V>,
) {
    match before {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
