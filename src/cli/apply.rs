//! `apply` and `diff`: send manifests to the daemon and print the results.
//! Out of scope: parsing YAML.

use super::args::{ApplyArgs, DiffArgs, Goal};
use super::failure::{Failure, warn};
use super::target::Target;
use super::{manifests, print, wait};
use crate::api::view::{Applied, ApplyResult, DiffResult, Kind, Source};
use crate::wire::{Client, Effect};

/// `apply -f`.
pub async fn apply(client: &Client, args: ApplyArgs) -> Result<(), Failure> {
    let sources = manifests::read_all(&args.files)?;
    if args.dry_run {
        return dry_run(client, sources).await;
    }
    let results = client
        .apply(sources.clone(), Effect::Commit)
        .await
        .map_err(|error| manifests::refused(&error, &sources))?;
    warn_about(&results);
    let lines: String = results
        .iter()
        .map(|result| format!("{}\n", line(result)))
        .collect();
    print::out(&lines)?;
    match args.wait {
        None => Ok(()),
        Some(timeout) => {
            let (deleted, existing): (Vec<_>, Vec<_>) = results
                .iter()
                .partition(|result| result.applied == Applied::Deleted);
            wait::until(client, &groups(&existing), Goal::Ready, timeout).await?;
            wait::until(client, &groups(&deleted), Goal::Deleted, timeout).await
        }
    }
}

/// `apply --dry-run`: what `apply` would print, and the steps that `diff` shows.
async fn dry_run(client: &Client, sources: Vec<Source>) -> Result<(), Failure> {
    let result = client
        .diff(sources.clone())
        .await
        .map_err(|error| manifests::refused(&error, &sources))?;
    warn_about(&result.groups);
    for (object, reason) in &result.stuck {
        warn(&format!("{object} would wait: {reason}"));
    }
    let lines: String = result
        .groups
        .iter()
        .map(|group| format!("{} (dry run)\n", line(group)))
        .collect();
    print::out(&(lines + &steps(&result)))
}

fn warn_about(results: &[ApplyResult]) {
    for result in results {
        result.warnings.iter().for_each(|text| warn(text));
    }
}

/// `diff -f`.
pub async fn diff(client: &Client, args: DiffArgs) -> Result<(), Failure> {
    let sources = manifests::read_all(&args.files)?;
    let result = client
        .diff(sources.clone())
        .await
        .map_err(|error| manifests::refused(&error, &sources))?;
    warn_about(&result.groups);
    print::answer(args.output, &result, differences)?;
    let failures: Vec<String> = result
        .stuck
        .iter()
        .map(|(object, reason)| format!("{object}: cannot determine the actions: {reason}"))
        .collect();
    match failures.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(failures)),
    }
}

fn differences(result: &DiffResult) -> String {
    let groups = result
        .groups
        .iter()
        .filter(|group| group.applied != Applied::Unchanged)
        .map(|group| format!("{}\n", line(group)));
    groups.chain([steps(result)]).collect()
}

/// The steps for each VM.
fn steps(result: &DiffResult) -> String {
    let actions = result.actions.iter().map(|(object, actions)| {
        let actions: String = actions.iter().map(|a| format!("  {a}\n")).collect();
        format!("{object}\n{actions}")
    });
    let more = (result.more > 0).then(|| {
        let more = result.more;
        format!("and {more} more actions for VMs that would be created, changed or deleted\n")
    });
    actions.chain(more).collect()
}

fn line(result: &ApplyResult) -> String {
    let action = match result.applied {
        Applied::Created => "created",
        Applied::Configured => "configured",
        Applied::Unchanged => "unchanged",
        Applied::Deleted => "deleted",
    };
    format!("{}/{} {action}", Kind::HostGroup, result.name)
}

fn groups(results: &[&ApplyResult]) -> Vec<Target> {
    results
        .iter()
        .map(|result| Target {
            kind: Kind::HostGroup,
            name: result.name.clone(),
        })
        .collect()
}
