//! Observes the resources on the host that carry labels of ours.
//! Out of scope: which of them are orphans ([`super::orphans`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use futures::future::BoxFuture;

use super::Engine;
use super::adopt::subdirectories;
use crate::api::meta::{Meta, Name, Uid};
use crate::api::vm::Vm;
use crate::host::link::Link;
use crate::host::netns::Netns;
use crate::host::{self, Kind, fs, link, netns};
use crate::owner::{self, Label};
use crate::reconcile::disk;
use crate::reconcile::net::RECORD;
use crate::store::World;

/// The links of the host, when they are listed.
pub type Links<'a> = BoxFuture<'a, Result<Vec<Link>, host::Error>>;

/// A resource on the host, in the order in which they are displayed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A link in the host's namespace.
    Link(String),
    /// A network namespace.
    Namespace(String),
    /// The run directory of a VM.
    RunDirectory,
    /// A process of a VMM.
    Process(u32),
    /// A disk that is not persistent.
    Disk,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::RunDirectory => f.write_str("run directory"),
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Disk => f.write_str("disk"),
        }
    }
}

/// The resources with one label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeSet<Resource>);

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(Resource::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

/// What was found, by label.
type Found = BTreeMap<Label, Resources>;

fn add(found: &mut Found, label: Label, resource: Resource) {
    found.entry(label).or_default().0.insert(resource);
}

impl Engine {
    /// The links, namespaces, run directories, processes and disks of VMs, by their labels. A namespace or directory with the name of a
    /// known VM is not opened: it is observed when that VM is reconciled.
    ///
    /// # Errors
    /// A failure to observe is not treated as absence.
    pub(super) async fn labelled(&self, links: Links<'_>) -> Result<Found, host::Error> {
        let known: HashSet<String> = self.store.read(|world| {
            let names = |vm: &Vm| {
                let uid = vm.meta.uid;
                [owner::vm_names(&self.instance, uid).netns, uid.to_string()]
            };
            world.vms().flat_map(names).collect()
        });
        let mut found = Found::new();
        for link in links.await? {
            if let Some(label) = self.label(link.alias.as_deref()) {
                add(&mut found, label, Resource::Link(link.name));
            }
        }
        for path in netns::list(&self.run_dir.netns_dir())? {
            let Some(name) = name_of(&path).filter(|name| !known.contains(*name)) else {
                continue;
            };
            let handle = match Netns::open(&path) {
                Ok(netns) => netns.netlink()?,
                // An empty file that a crash left behind; the next namespace with this name is mounted on it.
                Err(error) if error.kind == Kind::Absent => continue,
                Err(error) => return Err(error),
            };
            let lo = link::get(&handle, "lo").await?;
            if let Some(label) = self.label(lo.and_then(|lo| lo.alias).as_deref()) {
                add(&mut found, label, Resource::Namespace(name.to_owned()));
            }
        }
        for dir in subdirectories(&self.run_dir.vm_dirs())? {
            if name_of(&dir).is_none_or(|name| known.contains(name)) {
                continue;
            }
            if let Some(meta) = record_meta(&dir)? {
                let label = self.instance.vm_label(&meta.name, meta.uid);
                add(&mut found, label, Resource::RunDirectory);
            }
        }
        self.add_processes(&mut found).await?;
        self.add_disks(&mut found)?;
        Ok(found)
    }

    /// Other resources of a VM may have its name where its process does not.
    async fn add_processes(&self, found: &mut Found) -> Result<(), host::Error> {
        let users = self.store.read(World::vmm_users);
        self.processes.stage.set_users(users);
        let labels: HashMap<Uid, Label> = found
            .keys()
            .map(|label| (owner::uid_of(label), label.clone()))
            .collect();
        for (label, pid) in self.processes.stage.claimed(&self.instance).await? {
            let named = labels.get(&owner::uid_of(&label)).cloned();
            add(found, named.unwrap_or(label), Resource::Process(pid));
        }
        Ok(())
    }

    fn add_disks(&self, found: &mut Found) -> Result<(), host::Error> {
        let known: HashSet<Name> = self
            .store
            .read(|world| world.vms().map(|vm| vm.meta.name.clone()).collect());
        let disks = disk::claimed(self.processes.disk_dir(), &known)?.into_iter();
        for label in disks.filter(|label| label.instance == self.instance) {
            add(found, label, Resource::Disk);
        }
        Ok(())
    }

    fn label(&self, text: Option<&str>) -> Option<Label> {
        let label: Label = text?.parse().ok()?;
        (label.instance == self.instance).then_some(label)
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
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
