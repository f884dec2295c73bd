//! `delete`: deletes objects by name, or the groups of a manifest.
//! Out of scope: the teardown.

use super::args::{DeleteArgs, Goal};
use super::failure::{Failure, warn};
use super::get::fetch;
use super::target::{self, Target};
use super::{disks, manifests, resolve, wait};
use crate::api::view::{Kind, Object, VmView};
use crate::clock;
use crate::wire::{Client, Deletion};

/// `delete KIND/NAME | -f FILE`. Deletes nothing if an object does not exist; continues after another failure, and fails at the end.
pub async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    let targets = match args.files.is_empty() {
        true => target::targets(&args.targets)?,
        false => named(client, &args).await?,
    };
    let (deletion, result) = match args.force {
        true => (Deletion::Forced, "forced deletion requested"),
        false => (Deletion::Graceful, "deletion requested"),
    };
    let objects = match args.ignore_not_found {
        true => fetch(client, &targets).await?.0,
        false => resolve::all(client, &targets, &args.progress).await?,
    };
    let mut errors = Vec::new();
    let mut deleting = Vec::new();
    let begin = clock::monotonic();
    for object in objects {
        let on_demand_vms = count_on_demand(&object);
        let target = Target::of(&object);
        let lost = disk_loss(client, &target).await;
        match client.delete(target.kind, &target.name, deletion).await {
            Ok(()) => {
                let suffix = match on_demand_vms {
                    0 => String::new(),
                    1 => ", and its VM created on demand".to_owned(),
                    vms => format!(", and its {vms} VMs created on demand"),
                };
                lost.iter().for_each(|text| warn(text));
                let line = format!("{target} {result}{suffix}\n");
                args.progress.print(&line)?;
                deleting.push(target);
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.progress.timeout() {
        let reached = wait::until(client, &deleting, Goal::Deleted, timeout).await?;
        let lines = wait::deleted_lines(&reached, begin.elapsed());
        args.progress.print(&lines)?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

/// Number of VMs that are deleted with the group and that no manifest recreates.
fn count_on_demand(object: &Object) -> u32 {
    match object {
        Object::HostGroup(group) => group.status.on_demand,
        Object::Vm(_) | Object::Lease(_) => 0,
    }
}

/// The warning about disks that are deleted with the object; none if the objects cannot be read, since the deletion reports that error.
pub(super) async fn disk_loss(client: &Client, target: &Target) -> Option<String> {
    let vm = match target.kind {
        Kind::Vm => Some(&target.name),
        Kind::HostGroup => None,
        Kind::Lease => return None,
    };
    let items = client.get(Kind::Vm, vm).await.ok()?.items;
    let lost: Vec<&VmView> = match target.kind {
        Kind::HostGroup => disks::lost_disks(&items, &target.name).collect(),
        Kind::Vm | Kind::Lease => disks::lost_disk(&items).collect(),
    };
    disks::disk_warning(&target.to_string(), &lost)
}

async fn named(client: &Client, args: &DeleteArgs) -> Result<Vec<Target>, Failure> {
    let sources = manifests::read_all(&args.files)?;
    let names = client
        .names(sources.clone())
        .await
        .map_err(|error| manifests::refused(&error, &sources))?;
    let group = |name| Target {
        kind: Kind::HostGroup,
        name,
    };
    Ok(names.into_iter().map(group).collect())
}
