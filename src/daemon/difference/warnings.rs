//! Warnings about a change before it is made: what cannot work on this host, and which disks are deleted.
//! Out of scope: the checks themselves, which are those of the stages.

use std::collections::BTreeMap;
use std::time::Duration;

use super::groups::GroupChange;
use crate::api::event::ObjectRef;
use crate::api::host_group::{HostGroup, HostGroupSpec};
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::api::storage::Bytes;
use crate::api::view::{Applied, VmChange, VmDiff, disk_warning};
use crate::api::vm::Hypervisor;
use crate::engine::Engine;
use crate::host::{fs, link};
use crate::reconcile::group::{BlockedReason, ForeseenVm};
use crate::reconcile::net::bridge;

/// A change is not delayed for longer by checks of this host, which may wait for a file system that does not respond.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The warnings for each group.
pub(super) async fn of(
    engine: &Engine,
    groups: &[GroupChange<'_>],
    new: &BTreeMap<Name, ForeseenVm>,
) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for group in groups {
        let mut found = Vec::new();
        if group.applied != Applied::Unchanged {
            let checks = tokio::time::timeout(TIMEOUT, host(engine, groups, group, new));
            found.extend(checks.await.unwrap_or_default());
        }
        if !group.not_replaced.is_empty() {
            let blocked = BlockedReason::PreflightFailed(group.not_replaced.clone());
            found.push(blocked.message());
        }
        let name = &group.draft.name;
        let mut found: Vec<String> = found
            .into_iter()
            .map(|why| format!("hostgroup/{name}: {why}"))
            .collect();
        found.extend(disks(group));
        all.push(found);
    }
    all
}

/// The disks that are deleted.
fn disks(group: &GroupChange<'_>) -> Option<String> {
    let lost: Vec<&VmDiff> = group
        .changes
        .values()
        .filter(|vm| vm.deletes_disk)
        .collect();
    let replaced = lost.iter().filter(|vm| vm.change == VmChange::Replace);
    let action = match replaced.count() {
        0 => "deletes",
        all if all == lost.len() => "replaces",
        _ => "replaces or deletes",
    };
    let names: Vec<&Name> = lost.iter().map(|vm| &vm.name).collect();
    let group = ObjectRef::host_group(&group.draft.name).to_string();
    disk_warning(&group, action, &names)
}

/// What cannot work on this host.
async fn host(
    engine: &Engine,
    groups: &[GroupChange<'_>],
    group: &GroupChange<'_>,
    new: &BTreeMap<Name, ForeseenVm>,
) -> Vec<String> {
    let spec = &group.draft.spec;
    let added: Vec<&ForeseenVm> = group
        .changes
        .values()
        .filter(|vm| vm.change == VmChange::Add)
        .filter_map(|vm| new.get(&vm.name))
        .collect();
    let mut found = Vec::new();
    if let Some(first) = added.first() {
        let startable = engine.preflight_new(&first.vm).await;
        found.extend(startable.err().map(|why| format!("no VM can start: {why}")));
    }
    let mut unassigned = added
        .iter()
        .filter_map(|vm| Some((&vm.vm.meta.name, vm.assigned.as_ref().err()?)));
    if let Some((vm, why)) = unassigned.next() {
        found.push(match unassigned.count() {
            0 => format!("{vm} gets no address: {why}"),
            more => format!("{vm} and {more} more get no address: {why}"),
        });
    }
    found.extend(memory(engine, groups, group));
    found.extend(processors(spec));
    if spec.count > 0 {
        found.extend(network(engine, &spec.template.network).await);
    }
    found
}

/// Guests with more memory than the host has.
fn memory(engine: &Engine, groups: &[GroupChange<'_>], group: &GroupChange<'_>) -> Option<String> {
    let total = total_memory()?;
    let (spec, vms) = (
        &group.draft.spec,
        size(engine, &group.draft.name, &group.draft.spec),
    );
    let own = required(spec, vms);
    let host = Bytes(total);
    if own > total {
        let ram = Bytes(spec.template.ram_bytes);
        return Some(match vms {
            1 => format!("a VM with {ram} of memory does not fit: this host has {host}"),
            _ => {
                let own = Bytes(own);
                format!("{vms} VMs with {ram} of memory each need {own}: this host has {host}")
            }
        });
    }
    let stored = engine.store.read(|world| {
        let others = world.groups().filter(|stored| {
            let name = &stored.meta.name;
            !groups.iter().any(|changed| changed.draft.name == *name)
        });
        others.map(|it| required(&it.spec, it.size() as u64)).sum()
    });
    let changed = groups.iter().map(|changed| {
        let draft = changed.draft;
        required(&draft.spec, size(engine, &draft.name, &draft.spec))
    });
    let all = changed.fold(stored, u64::saturating_add);
    let is_added = own > 0 && all > total;
    is_added.then(|| {
        let all = Bytes(all);
        format!("the VMs of all groups need {all} of memory: this host has {host}")
    })
}

/// The number of VMs, with those made on demand.
fn size(engine: &Engine, name: &Name, spec: &HostGroupSpec) -> u64 {
    let on_demand = engine.store.read(|world| {
        let living = world.group(name).filter(|group| !group.meta.deleting);
        living.map_or(0, |group: &HostGroup| group.orders.len())
    });
    u64::from(spec.count).saturating_add(on_demand as u64)
}

fn required(spec: &HostGroupSpec, vms: u64) -> u64 {
    match spec.template.hypervisor {
        // The user starts the VMM.
        Hypervisor::None => 0,
        Hypervisor::Qemu | Hypervisor::Firecracker | Hypervisor::CloudHypervisor => {
            vms.saturating_mul(spec.template.ram_bytes)
        }
    }
}

fn total_memory() -> Option<u64> {
    let text = fs::read_text(std::path::Path::new("/proc/meminfo"))
        .ok()
        .flatten()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1 << 10))
}

/// More virtual processors than the host has.
fn processors(spec: &HostGroupSpec) -> Option<String> {
    let vcpu = spec.template.vcpu as usize;
    let host = std::thread::available_parallelism().ok()?.get();
    let has_vms = spec.count > 0 && spec.template.hypervisor != Hypervisor::None;
    let host_cpus = match host {
        1 => "1 CPU".to_owned(),
        cpus => format!("{cpus} CPUs"),
    };
    (has_vms && vcpu > host)
        .then(|| format!("each VM has {vcpu} virtual CPUs: this host has {host_cpus}"))
}

async fn network(engine: &Engine, spec: &NetworkSpec) -> Vec<String> {
    match spec {
        NetworkSpec::Isolated(_) => Vec::new(),
        NetworkSpec::Bridge(spec) => {
            let found = link::get(&engine.host.netlink, &spec.bridge).await;
            let link = found.ok().flatten();
            let foreign = link.filter(|link| link.kind.as_deref() != Some("bridge"));
            let conflict = foreign.map(|_| bridge::not_a_bridge(&spec.bridge));
            conflict.map(|why| why.to_string()).into_iter().collect()
        }
        NetworkSpec::Cni(spec) => {
            let (runtime, name) = (engine.cni.clone(), spec.network_name.clone());
            let found = tokio::task::spawn_blocking(move || match runtime.find(&name) {
                Ok(network) => runtime.missing_plugins(&network),
                Err(error) => vec![error.to_string()],
            });
            found.await.unwrap_or_default()
        }
    }
}
