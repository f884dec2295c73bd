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

use super::engine::Engine;
use super::life::ProcessMark;
use super::net::RECORD;
use super::record::Record;
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::lease::Address;
use crate::api::meta::{Meta, Name, Timestamp};
use crate::api::network::Mode;
use crate::api::on_demand::Order;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::host::{self, fs};
use crate::store::{self, Pool, Txn, World};

/// Maximum number of VMs named in an event.
const NAMED: usize = 8;

/// Maximum number of VMs restored in one transaction.
const AT_ONCE: usize = 64;

impl Engine {
    /// Restores what the store does not have: the contents of the journal, then every VM whose record of this boot is newer. VMs are
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
        let nothing_new = |record: &Record| {
            let (uid, generation) = (record.vm.meta.uid, record.vm.meta.generation);
            let known = |world: &World| {
                let known = world.vm(uid);
                known.is_some_and(|vm| vm.meta.deleting || vm.meta.generation >= generation)
            };
            self.store.has_tombstone(uid) || self.store.read(known)
        };
        if journal.is_none() && records.iter().all(nothing_new) {
            return Ok(0);
        }
        let mut adopted = Vec::new();
        if let Some(world) = journal {
            self.put_back(world).await?;
            adopted.extend(world.vms().map(|vm| vm.meta.name.clone()));
        }
        let records: Vec<Record> = records.into_iter().filter(|r| !nothing_new(r)).collect();
        for part in records.chunks(AT_ONCE) {
            let put = |txn: &mut Txn<'_>| {
                let mut put = Vec::new();
                for record in part {
                    if adopt_one(txn, record.clone(), now)? {
                        put.push(record.vm.meta.name.clone());
                    }
                }
                Ok::<_, store::Error>(put)
            };
            adopted.extend(self.store.recall(put).await?);
        }
        adopted.sort();
        adopted.dedup();
        if !adopted.is_empty() {
            let message = format!("adopted from the run directory: {}", listed(&adopted));
            info!(
                count = adopted.len(),
                "VMs were adopted from the run directory"
            );
            let events = self.store.events();
            events.note(now, EventType::Warning, "ground", "Adopted", &message);
        }
        Ok(adopted.len())
    }

    /// Writes a whole world into an empty store, in several transactions, because the size of a database batch is limited.
    async fn put_back(&self, world: &World) -> Result<(), store::Error> {
        self.store
            .recall(|txn| {
                txn.keep_unknown_of(world);
                put_groups(txn, world)
            })
            .await?;
        let leases: Vec<_> = world.leases().collect();
        for part in leases.chunks(AT_ONCE) {
            let put = |txn: &mut Txn<'_>| part.iter().try_for_each(|l| txn.put_lease((*l).clone()));
            self.store.recall::<_, store::Error>(put).await?;
        }
        let vms: Vec<_> = world.vms().collect();
        for part in vms.chunks(AT_ONCE) {
            let put = |txn: &mut Txn<'_>| part.iter().try_for_each(|vm| put_vm(txn, world, vm));
            self.store.recall::<_, store::Error>(put).await?;
        }
        Ok(())
    }

    /// Restores a VM whose object was lost while the daemon was running.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn adopt_again(&self, record: Record, now: Timestamp) -> Result<(), store::Error> {
        let (uid, name) = (record.vm.meta.uid, record.vm.meta.name.clone());
        let adopted = self.store.recall(|txn| adopt_one(txn, record, now));
        if adopted.await? {
            let message = "the VM has a record of this boot and no tombstone: its object was lost and is restored from the record";
            let events = self.store.events();
            let object = format!("vm/{name}");
            events.note(now, EventType::Warning, &object, "Adopted", message);
            warn!(vm = %name, %uid, "adopted from its record");
        }
        Ok(())
    }

    /// The records of this boot, newest first, because the newest one determines the spec of its group. Records of VMs made on demand
    /// come last.
    fn records_of_this_boot(&self) -> Result<Vec<Record>, host::Error> {
        let mut records = Vec::new();
        for dir in subdirectories(&self.run_dir.vm_dirs())? {
            match read_record(&dir, &self.hands.boot_id)? {
                Found::Record(record) => records.push((written_at(&dir), *record)),
                Found::None => {}
                Found::EarlierBoot => {
                    info!(path = %dir.display(), "ignoring a record of an earlier boot");
                }
                Found::Unreadable(why) => {
                    warn!(path = %dir.display(), why, "cannot read a record; the resources of its VM are kept");
                }
            }
        }
        records.sort_by_key(|(at, record)| {
            let on_demand = record.vm.on_demand.is_some();
            (on_demand, std::cmp::Reverse(*at), record.vm.index)
        });
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// Resets the stages of all VMs after a reboot: what they created on the host is gone, leases and objects remain. Returns whether
    /// the host was rebooted.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_an_earlier_boot(&self, now: Timestamp) -> Result<bool, store::Error> {
        let stale = self.store.read(|world| {
            let ground = world.ground();
            ground.is_some_and(|ground| ground.boot_id != self.hands.boot_id)
        });
        if !stale {
            return Ok(false);
        }
        self.store
            .write(|txn| {
                let vms: Vec<_> = txn
                    .world()
                    .vms()
                    .map(|vm| {
                        let plugged = vm.spec.network.mode() == Mode::Cni;
                        (vm.meta.uid, vm.meta.generation, plugged)
                    })
                    .collect();
                for (uid, generation, plugged) in vms {
                    for rung in LADDER {
                        if txn.world().page(uid, rung).is_none() {
                            continue;
                        }
                        let found = (
                            Status::Unknown,
                            Reason::Waiting,
                            "the host was restarted".to_owned(),
                        );
                        txn.set_condition(uid, rung, found, generation, now)?;
                        let mark = match rung {
                            Rung::Vmm => {
                                let mark = ProcessMark::of(txn.world().page(uid, rung));
                                mark.after_a_reboot().text()
                            }
                            // A lease has no MAC: plugins are requested to assign the previous address and MAC of the guest.
                            Rung::Net if plugged => {
                                let page = txn.world().page(uid, rung);
                                page.and_then(|page| page.mark.clone())
                            }
                            Rung::Lease | Rung::Net | Rung::Firewall => None,
                        };
                        txn.set_mark(uid, rung, mark)?;
                    }
                }
                // No VM is brought up before the host network was observed: the bridges are gone.
                if let Some(mut ground) = txn.world().ground().cloned() {
                    ground.condition.status = Status::Unknown;
                    ground.condition.reason = Reason::Waiting;
                    "the host was restarted".clone_into(&mut ground.condition.message);
                    txn.put_ground(ground)?;
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
pub(super) enum Found {
    /// There is no record.
    None,
    /// A record of an earlier boot: nothing of the VM is left on the host.
    EarlierBoot,
    /// A record of this boot.
    Record(Box<Record>),
    /// A record that cannot be decoded, with the error. Its VM may exist.
    Unreadable(String),
}

pub(super) fn read_record(dir: &Path, boot_id: &str) -> Result<Found, host::Error> {
    let Some(text) = fs::read_text(&dir.join(RECORD))? else {
        return Ok(Found::None);
    };
    Ok(match serde_json::from_str::<Record>(&text) {
        Ok(record) if record.boot_id == boot_id => Found::Record(Box::new(record)),
        Ok(_) => Found::EarlierBoot,
        Err(error) => Found::Unreadable(error.to_string()),
    })
}

fn written_at(dir: &Path) -> SystemTime {
    let found = std::fs::metadata(dir.join(RECORD));
    found
        .and_then(|found| found.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, host::Error> {
    match fs::look_at_dir(dir)? {
        fs::Dir::Absent | fs::Dir::NotADirectory => Ok(Vec::new()),
        fs::Dir::Present(names) => Ok(names.into_iter().map(|name| dir.join(name)).collect()),
    }
}

fn listed(names: &[Name]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(Name::as_str).collect();
    match names.len() > NAMED {
        true => format!("{} and {} more", first.join(", "), names.len() - NAMED),
        false => first.join(", "),
    }
}

fn put_groups(txn: &mut Txn<'_>, world: &World) -> Result<(), store::Error> {
    for group in world.groups() {
        txn.put_group(HostGroup {
            adopted: matches!(group.origin, Origin::File(_)),
            ..group.clone()
        })?;
    }
    for (name, pool) in world.pools() {
        txn.put_pool(name, pool.clone())?;
    }
    match world.ground() {
        Some(ground) => txn.put_ground(ground.clone()),
        None => Ok(()),
    }
}

/// Stores a VM with the user of its VMM and the status of its stages.
fn put_vm(txn: &mut Txn<'_>, world: &World, vm: &Vm) -> Result<(), store::Error> {
    let uid = vm.meta.uid;
    txn.put_vm(vm.clone())?;
    if let Some(id) = world.vmm_id(uid) {
        txn.put_vmm_id(uid, id)?;
    }
    for rung in LADDER {
        if let Some(page) = world.page(uid, rung) {
            txn.put_page(uid, rung, page.clone())?;
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
    let before = txn.world().vm(uid);
    if before.is_some_and(|b| b.meta.deleting || b.meta.generation >= vm.meta.generation) {
        return Ok(false);
    }
    let is_newer = before.is_some();
    // Another VM has the index by now, and is newer.
    let taken = txn
        .world()
        .vms_of(&vm.group)
        .any(|other| other.index == vm.index && other.meta.uid != uid);
    if taken {
        return Ok(false);
    }
    let template = match &vm.on_demand {
        Some(on_demand) => on_demand.template.clone(),
        None => vm.spec.clone(),
    };
    let known = txn.world().group(&vm.group).cloned();
    let mut group = known.unwrap_or_else(|| HostGroup {
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
    if is_newer && group.spec.template != template {
        // The change of the group was lost together with the change of its VM.
        group.spec.template = template;
        group.meta.generation += 1;
    }
    match &vm.on_demand {
        None => group.spec.count = group.spec.count.max(vm.index),
        Some(on_demand) => {
            let order = Order {
                name: vm.meta.name.clone(),
                ask: on_demand.ask.clone(),
            };
            group.orders.insert(vm.index, order);
        }
    }
    txn.put_group(group)?;
    let gateway = match lease.as_ref().map(|lease| &lease.address) {
        Some(Address::Block { .. }) => Some(None),
        Some(Address::Bridged { gateway, .. }) => Some(Some(gateway.ip())),
        Some(Address::Plugged { .. }) | None => None,
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
    for rung in LADDER {
        txn.hold_rung(uid, rung, now)?;
    }
    Ok(true)
}
