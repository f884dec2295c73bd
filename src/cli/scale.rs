//! `scale`: changes the number of VMs of groups.
//! Out of scope: which VMs are created and deleted.

use std::collections::BTreeSet;

use super::args::Goal;
use super::change_args::{ChangeOutput, ScaleArgs};
use super::disks::{disk_warning, lost_disks};
use super::effects::{groups, ready_lines, shown, warn_about};
use super::failure::{Failure, warn};
use super::target::{self, Target};
use super::{confirm, wait};
use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::api::view::{GroupView, Kind, Object, Scale, VmView};
use crate::clock;
use crate::wire::Client;

/// `scale KIND/NAME… --count N`. Continues after a failure, and fails at the end.
pub async fn scale(client: &Client, args: ScaleArgs) -> Result<(), Failure> {
    let targets = target::targets(&args.targets)?;
    if let Some(target) = targets.iter().find(|it| it.kind != Kind::HostGroup) {
        let usage = format!("only host groups can be scaled, not {target}");
        return Err(Failure::Usage(usage));
    }
    let begin = clock::monotonic();
    let mut errors = Vec::new();
    let mut results = Vec::new();
    for target in &targets {
        let group = match seen(client, target).await {
            Ok(group) => group,
            Err(Failure::Failed(causes)) => {
                errors.extend(causes);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let mut warned = None;
        if !args.flags.yes && confirm::can_ask() {
            warned = confirm_disks(client, &group, args.count).await?;
        }
        let scale = Scale {
            count: args.count,
            uid: group.metadata.uid,
            generation: group.metadata.generation,
        };
        match client.scale(&target.name, &scale).await {
            Ok(mut result) => {
                result.warnings.retain(|text| warned.as_ref() != Some(text));
                results.push(result);
            }
            Err(error) => errors.extend(error.causes()),
        }
    }
    warn_about(&results);
    args.progress.print(&shown(args.flags.output, &results)?)?;
    if let Some(timeout) = args.progress.timeout() {
        let targets = groups(&results);
        let reached = wait::until(client, &targets, Goal::Ready, timeout).await?;
        if args.flags.output == ChangeOutput::Table {
            args.progress
                .print(&ready_lines(&reached, begin.elapsed()))?;
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

/// The group as it is before the change, which is refused if the group changes meanwhile.
async fn seen(client: &Client, target: &Target) -> Result<GroupView, Failure> {
    let list = client.get(target.kind, Some(&target.name)).await?;
    let mut items = list.items.into_iter();
    match items.next() {
        Some(Object::HostGroup(group)) => Ok(*group),
        Some(Object::Vm(_) | Object::Lease(_)) | None => {
            Err(Failure::one(format!("{target} not found")))
        }
    }
}

/// Asks if VMs are deleted with disks that are not persistent. Returns the warning that was printed.
async fn confirm_disks(
    client: &Client,
    group: &GroupView,
    count: u32,
) -> Result<Option<String>, Failure> {
    let name = &group.metadata.name;
    let kept: BTreeSet<Name> = (1..=count)
        .filter_map(|index| HostGroup::vm_name(name, index))
        .collect();
    let list = client.get(Kind::Vm, None).await?;
    let lost = lost_disks(&list.items, name);
    let lost: Vec<&VmView> = lost
        .filter(|vm| vm.on_demand.is_none() && !kept.contains(&vm.metadata.name))
        .collect();
    let warning = disk_warning(&format!("hostgroup/{name}"), &lost);
    if let Some(warning) = &warning {
        warn(warning);
        confirm::delete_disks(lost.len())?;
    }
    Ok(warning)
}
