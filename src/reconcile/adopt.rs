//! What stands on the host without the store knowing: records to adopt, labels to collect.
//! Not here: removing anything (a stray's run), reading kernel things (`host`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use tracing::{info, warn};

use super::disk;
use super::engine::Engine;
use super::life::ProcessMark;
use super::net::RECORD;
use super::record::Record;
use crate::api::condition::{Reason, Status};
use crate::api::host_group::{HostGroup, HostGroupSpec};
use crate::api::lease::Address;
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::on_demand::Order;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::host::netns::Netns;
use crate::host::{self, Kind, fs, link, netns};
use crate::owner::{self, Label, Owner};
use crate::store::{self, Pool, World};

impl Engine {
    /// For a daemon whose state is lost: takes the VMs that run back into the store, with their uids and leases.
    /// Their groups come back as far as their VMs tell.
    ///
    /// # Errors
    /// The run directory cannot be listed, or the store cannot be written.
    pub async fn adopt(&self, now: Timestamp) -> Result<usize, AdoptError> {
        let mut records = Vec::new();
        for dir in subdirectories(&self.run_dir.vm_dirs())? {
            let path = dir.join(RECORD);
            let text = fs::read_text(&path)?;
            match text.as_deref().map(serde_json::from_str::<Record>) {
                None => {}
                Some(Ok(record)) if record.boot_id == self.hands.boot_id => records.push(record),
                Some(Ok(_)) => info!(path = %path.display(), "a record of an earlier boot"),
                Some(Err(error)) => warn!(path = %path.display(), %error, "not a record of ours"),
            }
        }
        let adopted = records.len();
        // What their group's VMs are to be is best told by one that has nothing of its own.
        records.sort_by_key(|record| record.vm.index);
        self.store
            .write(|txn| {
                for record in records {
                    adopt_one(txn, record, now)?;
                }
                Ok::<_, store::Error>(())
            })
            .await?;
        Ok(adopted)
    }

    /// After a reboot nothing of what the rungs have built is there; leases and objects stay.
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
                    .map(|vm| (vm.meta.uid, vm.meta.generation))
                    .collect();
                for (uid, generation) in vms {
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
                            Rung::Lease | Rung::Net | Rung::Firewall => None,
                        };
                        txn.set_mark(uid, rung, mark)?;
                    }
                }
                // No VM climbs before the ground has been looked at: its bridges are gone.
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

    /// Every VM's label that something on the host carries: links, namespaces, run directories, processes.
    /// A namespace or directory that by its name is a known VM's is not opened: its VM's own run looks at it.
    ///
    /// # Errors
    /// What cannot be looked at is not taken for empty.
    async fn claimed(&self) -> Result<BTreeSet<Label>, host::Error> {
        let known: HashSet<String> = self.store.read(|world| {
            let names = |vm: &Vm| {
                let uid = vm.meta.uid;
                [owner::vm_names(&self.instance, uid).netns, uid.to_string()]
            };
            world.vms().flat_map(names).collect()
        });
        let is_known = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| known.contains(name))
        };
        let mut labels = BTreeSet::new();
        for link in link::list(&self.hands.netlink).await? {
            labels.extend(self.label(link.alias.as_deref()));
        }
        for path in netns::list(&self.run_dir.netns_dir())? {
            if is_known(&path) {
                continue;
            }
            let inside = match Netns::open(&path) {
                Ok(netns) => netns.netlink()?,
                // An empty file that a crash left; whoever builds there next uses it.
                Err(error) if error.kind == Kind::Absent => continue,
                Err(error) => return Err(error),
            };
            let lo = link::get(&inside, "lo").await?;
            labels.extend(self.label(lo.and_then(|lo| lo.alias).as_deref()));
        }
        for dir in subdirectories(&self.run_dir.vm_dirs())? {
            if is_known(&dir) {
                continue;
            }
            let record = fs::read_text(&dir.join(RECORD))?;
            let record = record.and_then(|text| serde_json::from_str::<Record>(&text).ok());
            let meta = record.map(|record| record.vm.meta);
            labels.extend(meta.map(|meta| self.instance.vm_label(&meta.name, meta.uid)));
        }
        let users = self.store.read(World::vmm_users);
        self.processes.rung.note_users(users);
        let running = self.processes.rung.claimed(&self.instance).await?;
        let told: HashSet<Uid> = labels.iter().map(owner::uid_of).collect();
        // What else is left of the VM may tell its name where its process does not.
        labels.extend(
            running
                .into_iter()
                .filter(|label| !told.contains(&owner::uid_of(label))),
        );
        let named: HashSet<Name> = self
            .store
            .read(|world| world.vms().map(|vm| vm.meta.name.clone()).collect());
        let disks = disk::claimed(self.processes.disk_dir(), &named)?;
        let ours = |label: &Label| label.instance == self.instance;
        labels.extend(disks.into_iter().filter(ours));
        Ok(labels)
    }

    /// What is claimed and wanted by no object.
    ///
    /// # Errors
    /// As [`Engine::claimed`].
    pub async fn strays(&self) -> Result<Vec<Label>, host::Error> {
        let claimed = self.claimed().await?;
        Ok(self.store.read(|world| {
            let orphans = claimed.into_iter();
            orphans.filter(|label| is_orphan(world, label)).collect()
        }))
    }

    fn label(&self, text: Option<&str>) -> Option<Label> {
        let label: Label = text?.parse().ok()?;
        (label.instance == self.instance).then_some(label)
    }
}

/// Whether what bears this label may be removed: no object describes its VM. The one place where this is decided.
pub(super) fn is_orphan(world: &World, label: &Label) -> bool {
    match &label.owner {
        Owner::Vm { uid, .. } => world.vm(*uid).is_none(),
        Owner::Ground => false,
    }
}

/// Why running VMs could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Their records cannot be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// They cannot be written down.
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn subdirectories(dir: &Path) -> Result<Vec<std::path::PathBuf>, host::Error> {
    match fs::look_at_dir(dir)? {
        fs::Dir::Absent | fs::Dir::NotADirectory => Ok(Vec::new()),
        fs::Dir::Present(names) => Ok(names.into_iter().map(|name| dir.join(name)).collect()),
    }
}

/// The VM as it was, every rung held: what stands will be looked at before anything is believed of it.
fn adopt_one(txn: &mut store::Txn<'_>, record: Record, now: Timestamp) -> Result<(), store::Error> {
    let Record {
        origin,
        update,
        vm,
        lease,
        vmm_id,
        ..
    } = record;
    let known = txn.world().group(&vm.group).cloned();
    let mut group = known.unwrap_or_else(|| HostGroup {
        meta: Meta::new(vm.group.clone(), now),
        origin,
        spec: HostGroupSpec {
            count: 0,
            update,
            template: match &vm.on_demand {
                Some(on_demand) => on_demand.template.clone(),
                None => vm.spec.clone(),
            },
        },
        orders: BTreeMap::new(),
    });
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
    let uid = vm.meta.uid;
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
    Ok(())
}
