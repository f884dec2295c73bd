//! `delete`: deletes objects by name, or the groups of a manifest.
//! Out of scope: the teardown.

use super::args::{DeleteArgs, Goal};
use super::failure::Failure;
use super::target::{self, Target};
use super::{manifests, print, wait};
use crate::api::view::{Kind, Object};
use crate::wire::{Client, Deletion};

/// `delete KIND/NAME | -f FILE`. Continues after a failure, and fails at the end.
pub async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    let targets = match args.files.is_empty() {
        true => target::targets(&args.targets)?,
        false => named(client, &args).await?,
    };
    let (deletion, result) = match args.force {
        true => (Deletion::Forced, "force deleted"),
        false => (Deletion::Graceful, "deleted"),
    };
    let mut errors = Vec::new();
    let mut deleting = Vec::new();
    for target in targets {
        let on_demand_vms = count_on_demand(client, &target).await;
        match client.delete(target.kind, &target.name, deletion).await {
            Ok(()) => {
                let suffix = match on_demand_vms {
                    0 => String::new(),
                    1 => ", and its VM created on demand".to_owned(),
                    vms => format!(", and its {vms} VMs created on demand"),
                };
                print::out(&format!("{target} {result}{suffix}\n"))?;
                deleting.push(target);
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.wait {
        wait::until(client, &deleting, Goal::Deleted, timeout).await?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

/// Number of VMs that are deleted with the group and that no manifest recreates; 0 if the group cannot be read, since the deletion
/// reports that error.
async fn count_on_demand(client: &Client, target: &Target) -> u32 {
    match target.kind {
        Kind::Vm | Kind::Lease => return 0,
        Kind::HostGroup => {}
    }
    let found = client.get(target.kind, Some(&target.name)).await;
    match found.ok().and_then(|list| list.items.into_iter().next()) {
        Some(Object::HostGroup(group)) => group.status.on_demand,
        Some(Object::Vm(_) | Object::Lease(_)) | None => 0,
    }
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
