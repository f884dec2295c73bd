//! Adoption: a daemon that has lost its state restores the objects of VMs from the run directory.
//! Out of scope: resources that no object references and no record describes ([`super::orphans`]).
//!
//! # Sources
//! The journal contains every change that was acknowledged in this boot. The record of a VM contains that VM: it is written before the
//! rules that are compiled from it, so it is never older than the policy in the kernel. If they differ, the one with the higher
//! generation of the VM is newer. A VM with a tombstone was deleted; what is left of it on the host is not adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tracing::{info, warn};

use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::lease::Address;
use crate::api::meta::{Meta, Name, Timestamp};
use crate::api::network::Mode;
use crate::api::on_demand::OnDemandEntry;
use crate::api::stage::{STAGES, Stage};
use crate::api::vm::Vm;
use crate::engine::Engine;
use crate::host::{self, fs};
use crate::reconcile::checkpoint;
use crate::reconcile::net::RECORD;
use crate::reconcile::record::Record;
use crate::store::{self, Pool, Txn, World};

/// Maximum number of VMs named in an event.
const MAX_NAMES: usize = 8;

/// Maximum number of VMs restored in one transaction.
const BATCH_SIZE: usize = 64;

impl Engine {
    /// Restores what the store does not have: the contents of the journal, then every VM with a newer record of this boot. VMs are
    /// adopted even while the store cannot be written to disk. Returns the number of adopted VMs.
    ///
    /// # Errors
    /// The run directory cannot be listed, or the store cannot be written.
    pub async fn adopt(
        &self,
        journal: Option<&World>,
        now: Timestamp,
    ) -> Result<usize, AdoptError> {
        let records = self.records_of_this_boot()?;
        let is_up_to_date = |record: &Record| {
            let (uid, generation) = (record.vm.meta.uid, record.vm.meta.generation);
            let is_known = |world: &World| {
                let stored = world.vm(uid);
                stored.is_some_and(|vm| vm.meta.deleting || vm.meta.generation >= generation)
            };
            self.store.has_tombstone(uid) || self.store.read(is_known)
        };
        if journal.is_none() && records.iter().all(is_up_to_date) {
            return Ok(0);
        }
        let mut adopted = Vec::new();
        if let Some(world) = journal {
            self.restore_world(world).await?;
            adopted.extend(world.vms().map(|vm| vm.meta.name.clone()));
        }
        let records: Vec<Record> = records.into_iter().filter(|r| !is_up_to_date(r)).collect();
        for batch in records.chunks(BATCH_SIZE) {
            let restore = |txn: &mut Txn<'_>| {
                let mut restored = Vec::new();
                for record in batch {
                    if adopt_one(txn, record.clone(), now)? {
                        restored.push(record.vm.meta.name.clone());
                    }
                }
                Ok::<_, store::Error>(restored)
            };
            adopted.extend(self.store.write_observation(restore).await?);
        }
        adopted.sort();
        adopted.dedup();
        if !adopted.is_empty() {
            let message = format!("adopted from the run directory: {}", format_names(&adopted));
            info!(
                count = adopted.len(),
                "VMs were adopted from the run directory"
            );
            let events = self.store.events();
            events.note(
                now,
                EventType::Warning,
                &ObjectRef::Host,
                EventReason::Adopted,
                &message,
            );
        }
        Ok(adopted.len())
    }

    /// Writes a whole world into an empty store, in several transactions, because the size of a database batch is limited.
    async fn restore_world(&self, world: &World) -> Result<(), store::Error> {
        self.store
            .write_observation(|txn| {
                txn.keep_unknown_fields_of(world);
                restore_groups(txn, world)
            })
            .await?;
        let leases: Vec<_> = world.leases().collect();
        for batch in leases.chunks(BATCH_SIZE) {
            let restore =
                |txn: &mut Txn<'_>| batch.iter().try_for_each(|l| txn.put_lease((*l).clone()));
            self.store
                .write_observation::<_, store::Error>(restore)
                .await?;
        }
        let vms: Vec<_> = world.vms().collect();
        for part in vms.chunks(BATCH_SIZE) {
            let put = |txn: &mut Txn<'_>| part.iter().try_for_each(|vm| restore_vm(txn, world, vm));
            self.store.write_observation::<_, store::Error>(put).await?;
        }
        Ok(())
    }

    /// Restores a VM after its object was lost while the daemon was running.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn adopt_lost_vm(&self, record: Record, now: Timestamp) -> Result<(), store::Error> {
        let (uid, name) = (record.vm.meta.uid, record.vm.meta.name.clone());
        let adopted = self
            .store
            .write_observation(|txn| adopt_one(txn, record, now));
        if adopted.await? {
            let message = "the VM has a record of this boot and no tombstone: its object was lost and is restored from the record";
            let events = self.store.events();
            let object = ObjectRef::vm(&name);
            events.note(
                now,
                EventType::Warning,
                &object,
                EventReason::Adopted,
                message,
            );
            warn!(vm = %name, %uid, "adopted from its record");
        }
        Ok(())
    }

    /// The records of this boot, newest first, because the newest one determines the spec of its group. Records of VMs made on demand
    /// come last.
    fn records_of_this_boot(&self) -> Result<Vec<Record>, host::Error> {
        let mut records = Vec::new();
        for dir in subdirectories(&self.run_dir.vm_dirs())? {
            match read_record(&dir, &self.host.boot_id)? {
                RecordState::Current(record) => records.push((modified_at(&dir), *record)),
                RecordState::None => {}
                RecordState::EarlierBoot => {
                    info!(path = %dir.display(), "ignoring a record of an earlier boot");
                }
                RecordState::Undecodable(why) => {
                    warn!(path = %dir.display(), why, "cannot read a record; the resources of its VM are kept");
                }
            }
        }
        records.sort_by_key(|(modified, record)| {
            let on_demand = record.vm.on_demand.is_some();
            (on_demand, std::cmp::Reverse(*modified), record.vm.index)
        });
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// Resets the stages of all VMs after a reboot: what they created on the host is gone, leases and objects remain. Returns whether
    /// the host was rebooted.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn reset_stages_after_reboot(&self, now: Timestamp) -> Result<bool, store::Error> {
        let rebooted = self.store.read(|world| {
            let host_network = world.host_network_status();
            host_network.is_some_and(|network_status| network_status.boot_id != self.host.boot_id)
        });
        if !rebooted {
            return Ok(false);
        }
        self.store
            .write(|txn| {
                let vms: Vec<_> = txn
                    .world()
                    .vms()
                    .map(|vm| {
                        let is_cni = vm.spec.network.mode() == Mode::Cni;
                        (vm.meta.uid, vm.meta.generation, is_cni)
                    })
                    .collect();
                for (uid, generation, uses_cni) in vms {
                    for stage in STAGES {
                        if txn.world().status(uid, stage).is_none() {
                            continue;
                        }
                        let condition = (
                            Status::Unknown,
                            Reason::Waiting,
                            "the host was restarted".to_owned(),
                        );
                        txn.set_condition(uid, stage, condition, generation, now)?;
                        let checkpoint = match stage {
                            Stage::Vmm => {
                                let vmm_checkpoint =
                                    checkpoint::vmm(txn.world().status(uid, stage));
                                checkpoint::vmm_text(&vmm_checkpoint.after_reboot())
                            }
                            // A lease has no MAC: plugins are requested to assign the previous address and MAC of the guest.
                            Stage::Net if uses_cni => {
                                let status = txn.world().status(uid, stage);
                                status.and_then(|status| status.checkpoint.clone())
                            }
                            Stage::Lease | Stage::Net | Stage::Firewall => None,
                        };
                        txn.set_checkpoint(uid, stage, checkpoint)?;
                    }
                }
                // No VM is brought up before the host network was observed: the bridges are gone.
                if let Some(mut network_status) = txn.world().host_network_status().cloned() {
                    network_status.condition.status = Status::Unknown;
                    network_status.condition.reason = Reason::Waiting;
                    "the host was restarted".clone_into(&mut network_status.condition.message);
                    txn.put_host_network_status(network_status)?;
                }
                Ok::<_, store::Error>(())
            })
            .await?;
        Ok(true)
    }
}

/// Why running VMs could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Their records cannot be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// They cannot be stored.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The result of reading a VM's record.
pub(super) enum RecordState {
    /// There is no record.
    None,
    /// A record of an earlier boot: nothing of the VM is left on the host.
    EarlierBoot,
    /// A record of this boot.
    Current(Box<Record>),
    /// A record that cannot be decoded, with the error. Its VM may exist.
    Undecodable(String),
}

pub(super) fn read_record(dir: &Path, boot_id: &str) -> Result<RecordState, host::Error> {
    let Some(text) = fs::read_text(&dir.join(RECORD))? else {
        return Ok(RecordState::None);
    };
    Ok(match serde_json::from_str::<Record>(&text) {
        Ok(record) if record.boot_id == boot_id => RecordState::Current(Box::new(record)),
        Ok(_) => RecordState::EarlierBoot,
        Err(error) => RecordState::Undecodable(error.to_string()),
    })
}

fn modified_at(dir: &Path) -> SystemTime {
    let metadata = std::fs::metadata(dir.join(RECORD));
    metadata
        .and_then(|found| found.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, host::Error> {
    match fs::read_dir(dir)? {
        fs::Dir::Absent | fs::Dir::NotADirectory => Ok(Vec::new()),
        fs::Dir::Present(names) => Ok(names.into_iter().map(|name| dir.join(name)).collect()),
    }
}

fn format_names(names: &[Name]) -> String {
    let first: Vec<&str> = names.iter().take(MAX_NAMES).map(Name::as_str).collect();
    match names.len() > MAX_NAMES {
        true => format!("{} and {} more", first.join(", "), names.len() - MAX_NAMES),
        false => first.join(", "),
    }
}

fn restore_groups(txn: &mut Txn<'_>, world: &World) -> Result<(), store::Error> {
    for group in world.groups() {
        txn.put_group(HostGroup {
            adopted: matches!(group.origin, Origin::File(_)),
            ..group.clone()
        })?;
    }
    for (name, pool) in world.pools() {
        txn.put_pool(name, pool.clone())?;
    }
    txn.restore_fleet(world)?;
    match world.host_network_status() {
        Some(host_network) => txn.put_host_network_status(host_network.clone()),
        None => Ok(()),
    }
}

/// Stores a VM with the user of its VMM and the status of its stages.
fn restore_vm(txn: &mut Txn<'_>, world: &World, vm: &Vm) -> Result<(), store::Error> {
    let uid = vm.meta.uid;
    txn.put_vm(vm.clone())?;
    if let Some(id) = world.vmm_id(uid) {
        txn.put_vmm_id(uid, id)?;
    }
    for stage in STAGES {
        if let Some(status) = world.status(uid, stage) {
            txn.put_stage_status(uid, stage, status.clone())?;
        }
    }
    Ok(())
}

/// Stores the VM of a record with every stage acquired, so that each stage is observed before its status is reported. Returns false if
/// the store has the VM in the same or a newer generation, or another VM with the same index.
fn adopt_one(txn: &mut Txn<'_>, record: Record, now: Timestamp) -> Result<bool, store::Error> {
    let Record {
        origin,
        update,
        vm,
        lease,
        vmm_id,
        ..
    } = record;
    let uid = vm.meta.uid;
    let stored = txn.world().vm(uid);
    if stored.is_some_and(|b| b.meta.deleting || b.meta.generation >= vm.meta.generation) {
        return Ok(false);
    }
    let replaces_older = stored.is_some();
    // Another VM has the index by now, and is newer.
    let index_in_use = txn
        .world()
        .vms_of(&vm.group)
        .any(|other| other.index == vm.index && other.meta.uid != uid);
    if index_in_use {
        return Ok(false);
    }
    let template = match &vm.on_demand {
        Some(on_demand) => on_demand.template.clone(),
        None => vm.spec.clone(),
    };
    let existing = txn.world().group(&vm.group).cloned();
    let mut group = existing.unwrap_or_else(|| HostGroup {
        meta: Meta::new(vm.group.clone(), now),
        adopted: matches!(origin, Origin::File(_)),
        seen_in: None,
        origin,
        spec: HostGroupSpec {
            count: 0,
            update,
            template: template.clone(),
        },
        orders: BTreeMap::new(),
    });
    if replaces_older && group.spec.template != template {
        // The change of the group was lost together with the change of its VM.
        group.spec.template = template;
        group.meta.generation += 1;
    }
    match &vm.on_demand {
        None => group.spec.count = group.spec.count.max(vm.index),
        Some(on_demand) => {
            let order = OnDemandEntry {
                name: vm.meta.name.clone(),
                overrides: on_demand.overrides.clone(),
                fleet: on_demand.fleet.clone(),
            };
            group.orders.insert(vm.index, order);
        }
    }
    txn.put_group(group)?;
    let gateway = match lease.as_ref().map(|lease| &lease.address) {
        Some(Address::Isolated { .. }) => Some(None),
        Some(Address::Bridge { gateway, .. }) => Some(Some(gateway.ip())),
        Some(Address::Cni { .. }) | None => None,
    };
    if let (Some(lease), Some(gateway)) = (&lease, gateway) {
        let pool = txn.world().pool(&vm.group).cloned().unwrap_or(Pool {
            range: lease.address.range(),
            gateway,
            in_use: BTreeSet::new(),
        });
        txn.put_pool(&vm.group, pool)?;
    }
    txn.put_vm(vm)?;
    if let Some(lease) = lease {
        txn.put_lease(lease)?;
    }
    if let Some(id) = vmm_id {
        txn.put_vmm_id(uid, id)?;
    }
    for stage in STAGES {
        txn.adopt_stage(uid, stage, now)?;
    }
    Ok(true)
}
