//! What on the host carries our label and has no object: which of it may be removed.
//! Out of scope: removing it ([`super::engine`]).
//!
//! # Why
//! That an object is missing may mean that it was deleted, or that the database has lost it. Where there is a record of this
//! boot (the VM's own in the run directory, or its disk's) nothing is removed without the deletion's tombstone
//! ([`Store::has_tombstone`](crate::store::Store::has_tombstone)): the VM is put back into the store.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use futures::future::BoxFuture;

use super::adopt::{Found, read_record, subdirectories};
use super::disk;
use super::engine::Engine;
use super::net::RECORD;
use super::record::Record;
use crate::api::event::EventType;
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::vm::Vm;
use crate::host::link::Link;
use crate::host::netns::Netns;
use crate::host::{self, Kind, fs, link, netns};
use crate::owner::{self, Label, Owner};
use crate::store::World;

/// The host's links, once they are listed.
pub type Links<'a> = BoxFuture<'a, Result<Vec<Link>, host::Error>>;

/// What is to become of something that carries a label and has no object.
#[derive(Debug)]
pub enum Verdict {
    /// It may be removed.
    Remove,
    /// It is a VM whose object was lost.
    Adopt(Box<Record>),
    /// It stays as it is, and why.
    Keep(String),
}

/// What was found that has no object.
#[derive(Debug, Default)]
pub struct Orphans {
    /// What may be removed.
    pub removable: Vec<Label>,
    /// VMs that were put back into the store.
    pub adopted: Vec<Label>,
    /// What stays, and why.
    pub kept: Vec<(Label, String)>,
}

impl Engine {
    /// Every VM's label that something on the host carries: links, namespaces, run directories, processes.
    /// A namespace or directory that by its name is a known VM's is not opened: its VM's own run looks at it.
    ///
    /// # Errors
    /// What cannot be looked at is not taken for empty.
    async fn claimed(&self, links: Links<'_>) -> Result<BTreeSet<Label>, host::Error> {
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
            if let Some(meta) = record_meta(&dir)? {
                labels.insert(self.instance.vm_label(&meta.name, meta.uid));
            }
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

    /// What is claimed and has no object.
    async fn unreferenced(&self, links: Links<'_>) -> Result<Vec<Label>, host::Error> {
        let claimed = self.claimed(links).await?;
        Ok(self.store.read(|world| {
            let orphans = claimed.into_iter();
            orphans.filter(|label| is_orphan(world, label)).collect()
        }))
    }
    /// What no object has. VMs whose objects were lost are adopted on the way.
    ///
    /// # Errors
    /// What cannot be looked at is not taken for empty.
    pub async fn orphans(&self, now: Timestamp) -> Result<Orphans, host::Error> {
        let links = Box::pin(link::list(&self.hands.netlink));
        self.orphans_beside(links, now).await
    }

    /// The same, with the host's links that somebody else lists meanwhile. They must be listed after the store was opened: until
    /// then another daemon may make some.
    ///
    /// # Errors
    /// As [`orphans`](Self::orphans).
    pub async fn orphans_beside(
        &self,
        links: Links<'_>,
        now: Timestamp,
    ) -> Result<Orphans, host::Error> {
        let mut found = Orphans::default();
        for label in self.unreferenced(links).await? {
            match self.judge_orphan(&label)? {
                Verdict::Remove => found.removable.push(label),
                Verdict::Keep(why) => {
                    self.tell_kept(&label, &why, now);
                    found.kept.push((label, why));
                }
                Verdict::Adopt(record) => match self.adopt_again(*record, now).await {
                    Ok(()) => found.adopted.push(label),
                    Err(error) => found.kept.push((label, error.to_string())),
                },
            }
        }
        Ok(found)
    }

    /// What is to become of what carries this label, which has no object.
    ///
    /// # Errors
    /// What cannot be looked at is not taken for empty.
    pub fn judge_orphan(&self, label: &Label) -> Result<Verdict, host::Error> {
        let uid = owner::uid_of(label);
        if self.store.has_tombstone(uid) {
            return Ok(Verdict::Remove);
        }
        let boot = self.hands.boot_id.as_str();
        match read_record(&self.run_dir.vm_dir(uid), boot)? {
            Found::Record(record) => {
                let taken = self.store.read(|world| {
                    let mut others = world.vms_of(&record.vm.group);
                    let other = others.find(|vm| vm.index == record.vm.index);
                    other.map(|vm| vm.meta.name.clone())
                });
                return Ok(match taken {
                    None => Verdict::Adopt(record),
                    Some(other) => Verdict::Keep(format!(
                        "it has a record of this boot and no tombstone, and its place is vm/{other}'s: stop it by hand if it is not wanted"
                    )),
                });
            }
            Found::Unreadable(why) => {
                return Ok(Verdict::Keep(format!(
                    "its record cannot be read ({why}), and there is no tombstone"
                )));
            }
            Found::None | Found::EarlierBoot => {}
        }
        match disk::is_of_boot(self.processes.disk_dir(), label, boot)? {
            true => Ok(Verdict::Keep(
                "its disk was made or used in this boot, and there is no tombstone: it is removed after the next boot".to_owned(),
            )),
            false => Ok(Verdict::Remove),
        }
    }

    /// VMs that have no object and must not be taken for deleted.
    pub(super) fn protected(&self) -> BTreeSet<Uid> {
        let dirs = subdirectories(&self.run_dir.vm_dirs()).unwrap_or_default();
        let uid = |dir: &std::path::PathBuf| dir.file_name()?.to_str()?.parse::<Uid>().ok();
        let uids = dirs.iter().filter_map(uid);
        uids.filter(|uid| !self.store.has_tombstone(*uid)).collect()
    }

    pub(super) fn tell_kept(&self, label: &Label, why: &str, now: Timestamp) {
        let events = self.store.events();
        events.note(
            now,
            EventType::Warning,
            &label.to_string(),
            "OrphanKept",
            why,
        );
    }

    fn label(&self, text: Option<&str>) -> Option<Label> {
        let label: Label = text?.parse().ok()?;
        (label.instance == self.instance).then_some(label)
    }
}

/// Whether no object describes what bears this label; [`Engine::judge_orphan`] says what follows from that.
pub(super) fn is_orphan(world: &World, label: &Label) -> bool {
    match &label.owner {
        Owner::Vm { uid, .. } => world.vm(*uid).is_none(),
        Owner::Ground => false,
    }
}

/// Of whom the record in a run directory tells, whatever boot it is of; one that cannot be read in full may still tell that.
fn record_meta(dir: &Path) -> Result<Option<Meta>, host::Error> {
    #[derive(serde::Deserialize)]
    struct Of {
        vm: OfVm,
    }
    #[derive(serde::Deserialize)]
    struct OfVm {
        meta: Meta,
    }
    let text = fs::read_text(&dir.join(RECORD))?;
    let of = text.and_then(|text| serde_json::from_str::<Of>(&text).ok());
    Ok(of.map(|of| of.vm.meta))
}
