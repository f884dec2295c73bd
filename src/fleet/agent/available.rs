//! What this node has for VMs of the fleet, for its admission and for its status.
//! Out of scope: the decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::local::Local;
use crate::api::allowed::{Purpose, files_of};
use crate::api::secret::SecretName;
use crate::api::vm::{Hypervisor, VmSpec};
use crate::engine::Engine;
use crate::fleet::mirror::Mirror;
use crate::fleet::node::{self, Available};
use crate::fleet::object::Resources;
use crate::reconcile::disk::disk_path;
use crate::store::World;
use crate::vmm::FileAccess;

/// The /30 networks of 169.254.0.0/16.
const ISOLATED: u64 = 1 << 14;
/// More than the ports of all bridges: the limit is that of each bridge.
const BRIDGE_PORTS: u64 = 1 << 16;
/// The most files of groups that are looked for.
const MAX_FILES: usize = 10_000;
/// The unit of the reported disk space: a status that followed every byte would be written without end.
const DISK_UNIT: u64 = 1 << 30;
/// The part of the memory that VMs do not get, and its least amount.
const RESERVED_PART: u64 = 20;
const RESERVED_LEAST: u64 = 256 << 20;

/// See [`Available::files`].
pub(super) type Files = BTreeMap<PathBuf, Result<u64, String>>;

/// What was found on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostFacts {
    /// It was read.
    pub(super) is_read: bool,
    pub(super) hypervisors: Vec<Hypervisor>,
    /// See [`Available::files`].
    pub(super) files: Files,
    pub(super) secrets: BTreeSet<SecretName>,
    /// See [`Available::networks`].
    pub(super) networks: BTreeSet<String>,
    /// See [`Available::no_agent`].
    pub(super) no_agent: Option<String>,
    cpus: u64,
    ram_bytes: u64,
    disk_total: u64,
    disk_available: u64,
    /// The directory of the disks of VMs, and the bytes that each file in it has allocated: an image is copied with holes.
    disk_dir: PathBuf,
    allocated: BTreeMap<PathBuf, u64>,
}

impl HostFacts {
    /// Reads the host, without files. Blocks.
    pub(super) fn read(engine: &Engine) -> Self {
        let processes = &engine.processes;
        let secrets = engine.secrets.list().unwrap_or_default();
        let all = [
            Hypervisor::Qemu,
            Hypervisor::Firecracker,
            Hypervisor::CloudHypervisor,
        ];
        // It is created with the first disk.
        let mut dirs = processes.disk_dir().ancestors();
        let disk = dirs.find_map(|dir| rustix::fs::statvfs(dir).ok());
        let disk = disk.as_ref();
        let bytes = |blocks: u64, unit: u64| blocks.saturating_mul(unit);
        Self {
            is_read: true,
            hypervisors: all
                .into_iter()
                .filter(|it| processes.can_start(*it))
                .collect(),
            files: Files::new(),
            secrets: secrets.into_iter().map(|secret| secret.name).collect(),
            networks: engine.cni.complete_networks(),
            no_agent: processes.files().find_agent().err(),
            cpus: std::thread::available_parallelism().map_or(1, |it| it.get() as u64),
            ram_bytes: memory(),
            disk_total: disk.map_or(0, |it| bytes(it.f_blocks, it.f_frsize)),
            disk_available: disk.map_or(0, |it| bytes(it.f_bavail, it.f_frsize)),
            disk_dir: processes.disk_dir().to_owned(),
            allocated: allocated(processes.disk_dir()),
        }
    }
}

#[cfg(test)]
impl HostFacts {
    /// A host with this many CPUs and bytes of disk space, and these images.
    pub(super) fn of_test<const N: usize>(
        dir: &Path,
        cpus: u64,
        disk: u64,
        files: [(&str, u64); N],
    ) -> Self {
        Self {
            is_read: true,
            files: files
                .map(|(path, bytes)| (PathBuf::from(path), Ok(bytes)))
                .into(),
            cpus,
            ram_bytes: 64 << 30,
            disk_total: 2 * disk,
            disk_available: disk,
            disk_dir: dir.to_owned(),
            ..Self::default()
        }
    }

    /// The same with a disk that has allocated so much.
    pub(super) fn with_disk(&self, name: &str, bytes: u64) -> Self {
        let mut host = self.clone();
        host.disk_available -= bytes;
        host.allocated.insert(self.disk_dir.join(name), bytes);
        host
    }
}

/// Adds what was found of a file that is looked for. `None`: the look has failed, so what was found before holds.
pub(super) fn add(
    files: &mut Files,
    before: &Files,
    path: PathBuf,
    found: Option<Result<u64, String>>,
) {
    let Some(found) = found.or_else(|| before.get(&path).cloned()) else {
        return;
    };
    // It may have two purposes.
    match files.get(&path) {
        Some(Err(_)) => {}
        Some(Ok(_)) | None => drop(files.insert(path, found)),
    }
}

/// The size of a file as a VMM would get it: a file that exists may be one that it would not get. Blocks.
pub(super) fn file_size(access: &FileAccess, purpose: Purpose, path: &Path) -> Result<u64, String> {
    let shown = path.display();
    match access.open(purpose, path) {
        Ok(file) if file.device().is_some() => Ok(0),
        Ok(file) => file
            .metadata()
            .map(|found| found.len())
            .map_err(|error| format!("this node cannot use {shown}: {error}")),
        Err(error) if error.is_absent() => Err(format!("this node has no file {shown}")),
        Err(error) => Err(format!("this node cannot use a file: {error}")),
    }
}

/// The bytes that each file of a directory has allocated; empty if it cannot be read: then less is available.
fn allocated(dir: &Path) -> BTreeMap<PathBuf, u64> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return BTreeMap::new();
    };
    let files = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let found = entry.metadata().ok()?;
        let bytes = found.blocks().saturating_mul(512);
        found.is_file().then(|| (entry.path(), bytes))
    });
    files.collect()
}

/// `MemTotal`, in bytes.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut lines = text.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|it| it.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0u64) * 1024
}

/// The files that the groups of the fleet name.
pub(super) fn files(mirror: &Mirror) -> BTreeSet<(Purpose, PathBuf)> {
    let groups = mirror.groups.values();
    let specs = groups.filter_map(|stored| stored.value.as_ref().ok());
    let files = specs.flat_map(|group| files_of(&group.spec.template));
    files.take(MAX_FILES).collect()
}

/// What the node has, and what VMs of the fleet may use of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amounts {
    pub(super) capacity: Resources,
    pub(super) allocatable: Resources,
    pub(super) free: Resources,
}

/// Computes the amounts. `overcommit`: vCPUs for each CPU.
pub(super) fn amounts(world: &World, host: &HostFacts, overcommit: u64) -> Amounts {
    let (mut own, mut others) = (Resources::default(), Resources::default());
    for vm in world.vms() {
        let of = match vm.fleet() {
            Some(_) => &mut own,
            None => &mut others,
        };
        *of = of.plus(&uses(&vm.spec, host));
    }
    // Entries whose VMs are not created yet.
    for group in world.groups() {
        let vms = world.vms_of(&group.meta.name).map(|vm| vm.index);
        let existing: BTreeSet<u32> = vms.collect();
        let missing = group
            .orders
            .iter()
            .filter(|(index, entry)| entry.fleet.is_some() && !existing.contains(index));
        let each = uses(&group.spec.template, host);
        own = missing.fold(own, |sum, _| sum.plus(&each));
    }
    let capacity = Resources {
        vcpus: host.cpus.saturating_mul(overcommit),
        ram_bytes: host.ram_bytes,
        disk_bytes: host.disk_total,
        isolated: ISOLATED,
        bridge_ports: BRIDGE_PORTS,
    };
    let reserved = (host.ram_bytes / RESERVED_PART).max(RESERVED_LEAST);
    // The disks of VMs may grow to their sizes. Those that were kept of VMs that are gone are not available.
    let paths = world
        .vms()
        .map(|vm| disk_path(&host.disk_dir, &vm.meta.name));
    let allocated: u64 = paths.filter_map(|path| host.allocated.get(&path)).sum();
    let disk = host.disk_available.saturating_add(allocated) / DISK_UNIT * DISK_UNIT;
    let usable = Resources {
        ram_bytes: capacity.ram_bytes.saturating_sub(reserved),
        ..capacity
    };
    let allocatable = Resources {
        disk_bytes: disk,
        ..usable
    }
    .minus(&others);
    Amounts {
        capacity,
        allocatable,
        free: allocatable.minus(&own),
    }
}

/// What a VM uses. Of a VM that the user starts only its network is known.
fn uses(spec: &VmSpec, host: &HostFacts) -> Resources {
    Resources::of(spec, |image| node::image_size(&host.files, image))
}

/// What the admission decides by.
pub(super) fn available(local: &Local, amounts: &Amounts, host: &HostFacts) -> Available {
    Available {
        free: amounts.free,
        hypervisors: host.hypervisors.clone(),
        files: host.files.clone(),
        secrets: host.secrets.clone(),
        networks: host.networks.clone(),
        no_agent: host.no_agent.clone(),
        groups: local.other_groups.clone(),
        host_groups: Vec::new(),
        conflicts: BTreeMap::new(),
        admitted: BTreeMap::new(),
        vms: local.other_vms.clone(),
        is_known: host.is_read,
    }
}
