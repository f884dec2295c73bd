//! `diff`: shows what `apply` would change: groups with their fields, VMs, and with `--verbose` the steps.
//! Out of scope: computing it.

use std::collections::BTreeMap;

use super::args::DiffArgs;
use super::effects::warn_about;
use super::failure::Failure;
use super::{manifests, print};
use crate::api::changes::{Effect, FieldChange};
use crate::api::host_group::UpdatePolicy;
use crate::api::view::{Applied, DiffResult, GroupDiff, Kind, PlanCounts, VmChange};
use crate::wire::{Client, Detail};

/// Exit status of `diff --exit-code` on an error; 1 means that there are differences, as with `kubectl diff`.
const ERROR_STATUS: u8 = 2;

/// `diff -f`.
pub async fn diff(client: &Client, args: DiffArgs) -> Result<(), Failure> {
    let exit_code = args.flags.exit_code;
    exit_status(show(client, args).await, exit_code)
}

/// The exit status of a difference: with `--exit-code` it is 1 if there are any.
pub fn exit_status(shown: Result<bool, Failure>, exit_code: bool) -> Result<(), Failure> {
    match (shown, exit_code) {
        (Ok(true), true) => Err(Failure::WithStatus(1, Vec::new())),
        (Ok(_), _) => Ok(()),
        (Err(Failure::Failed(causes)), true) => Err(Failure::WithStatus(ERROR_STATUS, causes)),
        (Err(failure), _) => Err(failure),
    }
}

/// Prints the differences, and returns whether there are any.
async fn show(client: &Client, args: DiffArgs) -> Result<bool, Failure> {
    let sources = manifests::read_all(&args.files)?;
    let result = manifests::difference(client, &sources, Detail::Steps).await?;
    warn_about(result.groups.iter().map(|group| &group.result));
    let shown = Shown {
        unchanged: false,
        steps: args.flags.verbose,
        note: "",
    };
    print::answer(args.output, &result, |result| summary(result, &shown))?;
    let failures = unknown_steps(&result);
    match failures.is_empty() {
        true => Ok(result.has_differences()),
        false => Err(Failure::Failed(failures)),
    }
}

/// The VMs whose steps cannot be determined, those with the same reason in one line.
fn unknown_steps(result: &DiffResult) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (object, reason) in &result.stuck {
        by_reason.entry(reason).or_default().push(object);
    }
    let lines = by_reason
        .iter()
        .map(|(reason, objects)| match objects.as_slice() {
            [first, others @ ..] if !others.is_empty() => {
                let more = others.len();
                format!("{first} and {more} more: cannot determine the actions: {reason}")
            }
            objects => format!(
                "{}: cannot determine the actions: {reason}",
                objects.join("")
            ),
        });
    lines.collect()
}

/// What a summary contains.
pub struct Shown {
    /// Also the groups that do not change.
    pub unchanged: bool,
    /// The steps for each VM.
    pub steps: bool,
    /// Added to the line of each group.
    pub note: &'static str,
}

/// The groups with their fields, the VMs, and the number of VMs by change; empty without differences.
pub fn summary(result: &DiffResult, shown: &Shown) -> String {
    let mut text = String::new();
    for group in &result.groups {
        let is_changed = group.result.applied != Applied::Unchanged || !group.vms.is_empty();
        if !is_changed && !shown.unchanged {
            continue;
        }
        let (kind, name) = (Kind::HostGroup, &group.result.name);
        let action = match group.result.applied {
            Applied::Created => "create",
            Applied::Configured => "change",
            Applied::Deleted => "delete",
            Applied::Unchanged if is_changed && !is_progressing(group) => "update blocked",
            Applied::Unchanged if is_changed => "update in progress",
            Applied::Unchanged => "no change",
        };
        text += &format!("{kind}/{name}: {action}{}\n", shown.note);
        for field in &group.fields {
            text += &format!("  {field} ({})\n", effect(group, field));
        }
        for vm in &group.vms {
            let object = format!("{}/{}", Kind::Vm, vm.name);
            text += &format!("{object}: {}\n", vm.change);
            text += &steps(result, shown, &object);
        }
    }
    if shown.steps && result.more > 0 {
        text += &format!("and the steps for {} more VMs\n", result.more);
    }
    if result.has_differences() {
        text += &format!("\n{}\n", footer(&result.plan));
    }
    text
}

fn steps(result: &DiffResult, shown: &Shown, object: &str) -> String {
    let steps = result.actions.get(object).filter(|_| shown.steps);
    let steps = steps.into_iter().flatten();
    steps.map(|step| format!("  {step}\n")).collect()
}

/// How the VMs of the group get the change of a field.
fn effect(group: &GroupDiff, field: &FieldChange) -> String {
    let count = |change| {
        let vms = group.vms.iter();
        vms.filter(|vm| vm.change == change).count()
    };
    if field.field == "count" {
        return match (count(VmChange::Add), count(VmChange::Delete)) {
            (0, 0) => "live".to_owned(),
            (0, deleted) => format!("deletes {}", vms(deleted)),
            (added, 0) => format!("adds {}", vms(added)),
            (added, deleted) => format!("adds {}, deletes {}", vms(added), vms(deleted)),
        };
    }
    match (field.effect, group.update) {
        (Effect::Live, _) => "live".to_owned(),
        (Effect::Replaces, UpdatePolicy::OnDelete) => {
            "VMs get it when they are recreated: update is on-delete".to_owned()
        }
        (Effect::Replaces, UpdatePolicy::Rolling) => match count(VmChange::Replace) {
            0 => "replaces no VM".to_owned(),
            1 => "replaces 1 VM".to_owned(),
            replaced => format!("replaces {}, one at a time", vms(replaced)),
        },
    }
}

/// Whether a VM of the group changes.
fn is_progressing(group: &GroupDiff) -> bool {
    let mut vms = group.vms.iter();
    vms.any(|vm| vm.change != VmChange::NotReplaced)
}

fn vms(count: usize) -> String {
    match count {
        1 => "1 VM".to_owned(),
        count => format!("{count} VMs"),
    }
}

fn footer(plan: &PlanCounts) -> String {
    let PlanCounts {
        add,
        update,
        replace,
        delete,
        not_replaced,
    } = plan;
    let blocked = match not_replaced {
        0 => String::new(),
        vms => format!(", {vms} not replaced"),
    };
    format!(
        "Plan: {add} to add, {replace} to replace, {delete} to delete, {update} to update live{blocked}"
    )
}
