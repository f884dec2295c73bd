//! Releases attachments that a crashed daemon has not released, of VMs that no object references any more.
//! Out of scope: VMs that are still known; the engine tears them down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::detach::{path_of, release};
use super::{DelInput, IFNAME, one_line};
use crate::api::meta::Uid;
use crate::cni::{self, Attachment, Cached, Network, Runtime, ValidAttachment};
use crate::host::link;
use crate::host::netns::Netns;
use crate::owner::{self, Instance, Label};

/// The result of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Container ids with released attachments.
    pub detached: Vec<String>,
    /// Reservations of `host-local` that were removed.
    pub reservations: Vec<PathBuf>,
    /// Container ids with attachments that could not be released, and the error.
    pub kept: Vec<(String, String)>,
    /// Error messages.
    pub failures: Vec<String>,
}

/// Runs DEL with the cache's record, also of an interrupted ADD, for every container of this daemon that belongs to no existing VM. For the
/// networks of these containers it also runs GC (for networks of 1.1.0), with the attachments recorded by all runtimes of this host as
/// valid. Then it removes the reservations of `host-local` in these networks and in the given `networks`, except for containers if their DEL
/// has failed: their interface may still have the address. Containers without our name are not touched. Errors are collected, and stop
/// nothing else.
///
/// VMs are created concurrently. Each is stored before its plugins run, and its uid is never used again; so a VM that is not among the
/// `living` *after* something of it was observed does not exist any more. `living` is called after each observation, never before it.
pub async fn sweep(
    runtime: &Runtime,
    instance: &Instance,
    existing_vms: &(impl Fn() -> BTreeSet<Uid> + Sync),
    networks: &[String],
) -> Swept {
    let stale = |living: &BTreeSet<Uid>, container: &str| {
        let uid = instance.uid_from_container_id(container);
        uid.is_some_and(|uid| !living.contains(&uid))
    };
    let mut swept = Swept::default();
    let mut networks_with_leftovers: BTreeMap<String, Network> = BTreeMap::new();
    let is_ours = |container: &str| instance.uid_from_container_id(container).is_some();
    record_error(runtime.migrate_records(is_ours), &mut swept);
    let lists = [
        runtime.attachments(),
        runtime.unfinished(),
        runtime.abandoned(),
    ];
    let recorded = lists.map(|list| record_error(list, &mut swept).unwrap_or_default());
    let existing = existing_vms();
    let mut remembered = recorded.concat();
    remembered.retain(|cached| stale(&existing, &cached.attachment.container_id));
    for cached in remembered {
        if let Some(network) = detach(runtime, &cached, &mut swept).await {
            networks_with_leftovers.insert(network.name.clone(), network);
        }
    }
    for network in networks_with_leftovers.values() {
        let existing_containers = || {
            let living = existing_vms().into_iter();
            living.map(|uid| instance.container_id(uid)).collect()
        };
        collect(runtime, network, existing_containers, &mut swept).await;
    }
    for name in networks {
        if let Ok(network) = runtime.find(name) {
            networks_with_leftovers
                .entry(name.clone())
                .or_insert(network);
        }
    }
    let Some(attached) = remembered_containers(runtime, &mut swept) else {
        return swept;
    };
    let attached = &attached;
    let is_removable = || {
        let alive = existing_vms();
        move |container: &str| stale(&alive, container) && !attached.contains(container)
    };
    for network in networks_with_leftovers.values() {
        let removed = runtime.sweep_host_local(network, is_removable).await;
        let removed = record_error(removed, &mut swept).unwrap_or_default();
        swept.reservations.extend(removed);
    }
    swept
}

/// Returns every container that is recorded in the cache; `None` if the cache cannot be read.
fn remembered_containers(runtime: &Runtime, swept: &mut Swept) -> Option<BTreeSet<String>> {
    let finished = record_error(runtime.attachments(), swept)?;
    let unfinished = record_error(runtime.unfinished(), swept)?;
    let abandoned = record_error(runtime.abandoned(), swept)?;
    let all = finished.into_iter().chain(unfinished).chain(abandoned);
    Some(all.map(|cached| cached.attachment.container_id).collect())
}

fn record_error<T>(result: Result<T, cni::Error>, swept: &mut Swept) -> Option<T> {
    let failed = |error| swept.failures.push(one_line(&error));
    result.map_err(failed).ok()
}

/// Returns the network that the container was or should be detached from.
async fn detach(runtime: &Runtime, cached: &Cached, swept: &mut Swept) -> Option<Network> {
    let network = record_error(cached.config(), swept)?;
    let netns = owned_netns(&cached.attachment).await;
    let del_input = DelInput {
        network: network.clone(),
        attachment: Attachment {
            netns: netns.as_ref().map(path_of),
            ..cached.attachment.clone()
        },
        addresses_lost: true,
    };
    match release(runtime, &del_input).await {
        Ok(()) => swept.detached.push(del_input.attachment.container_id),
        Err(error) => {
            let reason = error.to_string();
            swept.failures.push(reason.clone());
            swept.kept.push((del_input.attachment.container_id, reason));
        }
    }
    Some(network)
}

/// Returns the VM's namespace. A foreign namespace at its path does not concern the plugins.
async fn owned_netns(attachment: &Attachment) -> Option<Netns> {
    let netns = Netns::open(attachment.netns.as_ref()?).ok()?;
    let netlink = netns.netlink().ok()?;
    let lo = link::get(&netlink, "lo").await.ok()??;
    let label: Label = lo.alias?.parse().ok()?;
    let container_id = label.instance.container_id(owner::uid_of(&label));
    (container_id == attachment.container_id).then_some(netns)
}

/// Runs GC of the plugins, with the existing VMs and the attachments recorded by any runtime as valid. If these cannot be read, GC is not
/// run.
async fn collect(
    runtime: &Runtime,
    network: &Network,
    existing: impl FnOnce() -> Vec<String>,
    swept: &mut Swept,
) {
    let valid = || {
        let recorded = runtime.attachments()?;
        let of_network = recorded
            .into_iter()
            .filter(|cached| cached.network == network.name)
            .map(|cached| ValidAttachment::from(&cached.attachment));
        let existing_attachments = existing().into_iter().map(|container_id| ValidAttachment {
            container_id,
            ifname: IFNAME.to_owned(),
        });
        let valid: BTreeSet<ValidAttachment> = of_network.chain(existing_attachments).collect();
        Ok(valid.into_iter().collect())
    };
    if let Err(errors) = runtime.gc(network, valid).await {
        swept.failures.extend(errors.iter().map(one_line));
    }
}
