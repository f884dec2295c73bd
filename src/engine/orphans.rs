//! Finds orphans, resources on the host that carry our label and have no object, and decides which of them may be removed.
//! Out of scope: observing them ([`super::labelled`]), removing them ([`super::remove_orphans`]).
//!
//! # Why
//! An object may be missing because it was deleted, or because the database has lost it. If a record of this boot exists (that of the
//! VM in the run directory, or that of its disk), nothing is removed without the tombstone of a deletion
//! ([`Store::has_tombstone`](crate::store::Store::has_tombstone)): the VM is restored in the store.

use std::collections::BTreeSet;

use super::adopt::{RecordState, read_record, subdirectories};
use super::labelled::{Links, Resources};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::{Timestamp, Uid};
use crate::engine::Engine;
use crate::host::{self, link};
use crate::owner::{self, Label, Owner};
use crate::reconcile::disk;
use crate::reconcile::record::Record;
use crate::store::World;

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
    pub removable: Vec<Orphan>,
    /// VMs that were restored in the store.
    pub adopted: Vec<Orphan>,
    /// Orphans that are left unchanged, with the reason.
    pub kept: Vec<(Orphan, String)>,
}

/// Resources with the label of a VM that has no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The label.
    pub label: Label,
    /// What was found with it.
    pub resources: Resources,
}

impl Engine {
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
        let found = self.labelled(links).await?.into_iter();
        let unreferenced: Vec<Orphan> = self.store.read(|world| {
            let orphans = found.filter(|(label, _)| is_orphan(world, label));
            orphans
                .map(|(label, resources)| Orphan { label, resources })
                .collect()
        });
        for orphan in unreferenced {
            match self.evaluate_orphan(&orphan.label)? {
                OrphanDecision::Remove => orphans.removable.push(orphan),
                OrphanDecision::Keep(why) => {
                    self.report_kept(&orphan.label, &why, now);
                    orphans.kept.push((orphan, why));
                }
                OrphanDecision::Adopt(record) => match self.adopt_lost_vm(*record, now).await {
                    Ok(()) => orphans.adopted.push(orphan),
                    Err(error) => orphans.kept.push((orphan, error.to_string())),
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
        let of_boot = match disk::is_of_boot(self.processes.disk_dir(), label, boot_id) {
            Err(error) if error.kind == host::Kind::Undecodable => {
                return Ok(OrphanDecision::Keep(error.to_string()));
            }
            of_boot => of_boot?,
        };
        match of_boot {
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
}

/// Whether no object has this label; [`Engine::evaluate_orphan`] decides what follows.
pub(super) fn is_orphan(world: &World, label: &Label) -> bool {
    match &label.owner {
        Owner::Vm { uid, .. } => world.vm(*uid).is_none(),
        Owner::HostNetwork => false,
    }
}
