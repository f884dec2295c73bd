//! Finds orphans, resources on the host that carry our label and have no object, and decides which of them may be removed.
//! Out of scope: removing them ([`crate::engine`]).
//!
//! # Why
//! An object may be missing because it was deleted, or because the database has lost it. If a record of this boot exists (that of the
//! VM in the run directory, or that of its disk), nothing is removed without the tombstone of a deletion
//! ([`Store::has_tombstone`](crate::store::Store::has_tombstone)): the VM is restored in the store.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use futures::future::BoxFuture;

use super::adopt::{RecordState, read_record, subdirectories};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::vm::Vm;
use crate::engine::Engine;
use crate::host::link::Link;
use crate::host::netns::Netns;
use crate::host::{self, Kind, fs, link, netns};
use crate::owner::{self, Label, Owner};
use crate::reconcile::disk;
use crate::reconcile::net::RECORD;
use crate::reconcile::record::Record;
use crate::store::World;

/// The links of the host, when they are listed.
pub type Links<'a> = BoxFuture<'a, Result<Vec<Link>, host::Error>>;

/// What to do with an orphan.
#[derive(Debug)]
pub enum OrphanDecision {
    /// Remove it.
    Remove,
    /// Adopt it: it is a VM, and its object was lost.
    Adopt(Box<Record>),
    /// Leave it unchanged, with the reason.
    Keep(String),
}

/// The orphans that were found.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Orphans that may be removed.
    pub removable: Vec<Label>,
    /// VMs that were restored in the store.
    pub adopted: Vec<Label>,
    /// Orphans that are left unchanged, with the reason.
    pub kept: Vec<(Label, String)>,
}

impl Engine {
    /// The labels of VMs on links, namespaces, run directories, processes and disks of the host.
    /// A namespace or directory with the name of a known VM is not opened: it is observed when that VM is reconciled.
    ///
    /// # Errors
    /// A failure to observe is not treated as absence.
    async fn labels_on_host(&self, links: Links<'_>) -> Result<BTreeSet<Label>, host::Error> {
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
        for link in links.await? {
            labels.extend(self.label(link.alias.as_deref()));
        }
        for path in netns::list(&self.run_dir.netns_dir())? {
            if is_known(&path) {
                continue;
            }
            let handle = match Netns::open(&path) {
                Ok(netns) => netns.netlink()?,
                // An empty file that a crash left behind; the next namespace with this name is mounted on it.
                Err(error) if error.kind == Kind::Absent => continue,
                Err(error) => return Err(error),
            };
            let lo = link::get(&handle, "lo").await?;
            labels.extend(self.label(lo.and_then(|lo| lo.alias).as_deref()));
        }
        for dir in subdirectories(&self.run_dir.vm_dirs())? {
            if is_known(&dir) {
                continue;
            }
            if let Some(meta) = record_meta(&dir)? {
                labels.insert(self.instance.vm_label(&meta.name, meta.uid));
            }
        }
        let users = self.store.read(World::vmm_users);
        self.processes.stage.set_users(users);
        let running = self.processes.stage.claimed(&self.instance).await?;
        let seen_uids: HashSet<Uid> = labels.iter().map(owner::uid_of).collect();
        // Other resources of the VM may have its name where its process does not.
        labels.extend(
            running
                .into_iter()
                .filter(|label| !seen_uids.contains(&owner::uid_of(label))),
        );
        let known_names: HashSet<Name> = self
            .store
            .read(|world| world.vms().map(|vm| vm.meta.name.clone()).collect());
        let disks = disk::claimed(self.processes.disk_dir(), &known_names)?;
        let is_ours = |label: &Label| label.instance == self.instance;
        labels.extend(disks.into_iter().filter(is_ours));
        Ok(labels)
    }

    /// The labels on the host that have no object.
    async fn unreferenced(&self, links: Links<'_>) -> Result<Vec<Label>, host::Error> {
        let labels = self.labels_on_host(links).await?;
        Ok(self.store.read(|world| {
            let orphans = labels.into_iter();
            orphans.filter(|label| is_orphan(world, label)).collect()
        }))
    }
    /// Returns the orphans. VMs with lost objects are adopted.
    ///
    /// # Errors
    /// A failure to observe is not treated as absence.
    pub async fn orphans(&self, now: Timestamp) -> Result<Orphans, host::Error> {
        let links = Box::pin(link::list(&self.host.netlink));
        self.orphans_with_links(links, now).await
    }

    /// As [`orphans`](Self::orphans), with links that the caller lists. They must be listed after the store was opened: before that
    /// another daemon may create some.
    ///
    /// # Errors
    /// As [`orphans`](Self::orphans).
    pub async fn orphans_with_links(
        &self,
        links: Links<'_>,
        now: Timestamp,
    ) -> Result<Orphans, host::Error> {
        let mut orphans = Orphans::default();
        for label in self.unreferenced(links).await? {
            match self.evaluate_orphan(&label)? {
                OrphanDecision::Remove => orphans.removable.push(label),
                OrphanDecision::Keep(why) => {
                    self.report_kept(&label, &why, now);
                    orphans.kept.push((label, why));
                }
                OrphanDecision::Adopt(record) => match self.adopt_lost_vm(*record, now).await {
                    Ok(()) => orphans.adopted.push(label),
                    Err(error) => orphans.kept.push((label, error.to_string())),
                },
            }
        }
        Ok(orphans)
    }

    /// Decides what to do with the orphan that carries this label.
    ///
    /// # Errors
    /// A failure to observe is not treated as absence.
    pub fn evaluate_orphan(&self, label: &Label) -> Result<OrphanDecision, host::Error> {
        let uid = owner::uid_of(label);
        if self.store.has_tombstone(uid) {
            return Ok(OrphanDecision::Remove);
        }
        let boot_id = self.host.boot_id.as_str();
        match read_record(&self.run_dir.vm_dir(uid), boot_id)? {
            RecordState::Current(record) => {
                let index_owner = self.store.read(|world| {
                    let mut others = world.vms_of(&record.vm.group);
                    let other = others.find(|vm| vm.index == record.vm.index);
                    other.map(|vm| vm.meta.name.clone())
                });
                return Ok(match index_owner {
                    None => OrphanDecision::Adopt(record),
                    Some(other) => OrphanDecision::Keep(format!(
                        "it has a record of this boot and no tombstone, and vm/{other} has its index: stop it manually if it is not needed"
                    )),
                });
            }
            RecordState::Undecodable(why) => {
                return Ok(OrphanDecision::Keep(format!(
                    "its record cannot be read ({why}), and there is no tombstone"
                )));
            }
            RecordState::None | RecordState::EarlierBoot => {}
        }
        match disk::is_of_boot(self.processes.disk_dir(), label, boot_id)? {
            true => Ok(OrphanDecision::Keep(
                "its disk was created or used in this boot, and there is no tombstone: it is removed after the next boot".to_owned(),
            )),
            false => Ok(OrphanDecision::Remove),
        }
    }

    /// VMs without an object that must not be treated as deleted.
    pub(super) fn protected(&self) -> BTreeSet<Uid> {
        let dirs = subdirectories(&self.run_dir.vm_dirs()).unwrap_or_default();
        let uid = |dir: &std::path::PathBuf| dir.file_name()?.to_str()?.parse::<Uid>().ok();
        let uids = dirs.iter().filter_map(uid);
        uids.filter(|uid| !self.store.has_tombstone(*uid)).collect()
    }

    pub(super) fn report_kept(&self, label: &Label, reason: &str, now: Timestamp) {
        let events = self.store.events();
        events.note(
            now,
            EventType::Warning,
            &ObjectRef::Orphan(label.to_string()),
            EventReason::OrphanKept,
            reason,
        );
    }

    fn label(&self, text: Option<&str>) -> Option<Label> {
        let label: Label = text?.parse().ok()?;
        (label.instance == self.instance).then_some(label)
    }
}

/// Whether no object has this label; [`Engine::evaluate_orphan`] decides what follows.
pub(super) fn is_orphan(world: &World, label: &Label) -> bool {
    match &label.owner {
        Owner::Vm { uid, .. } => world.vm(*uid).is_none(),
        Owner::HostNetwork => false,
    }
}

/// Reads the metadata of the VM from the record in a run directory, of any boot. It may be readable in a record that cannot be fully
/// decoded.
fn record_meta(dir: &Path) -> Result<Option<Meta>, host::Error> {
    #[derive(serde::Deserialize)]
    struct PartialRecord {
        vm: PartialVm,
    }
    #[derive(serde::Deserialize)]
    struct PartialVm {
        meta: Meta,
    }
    let text = fs::read_text(&dir.join(RECORD))?;
    let record = text.and_then(|text| serde_json::from_str::<PartialRecord>(&text).ok());
    Ok(record.map(|of| of.vm.meta))
}
