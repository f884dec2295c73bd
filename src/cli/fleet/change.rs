//! `apply`, `diff`, `delete` and `scale` with `--fleet`.
//! Out of scope: what changes on the nodes.

use std::time::Duration;

use super::super::args::{ApplyArgs, DeleteArgs, DiffArgs, DryRun, Goal};
use super::super::change_args::{ChangeOutput, ScaleArgs};
use super::super::diff::{Shown, exit_status, summary};
use super::super::effects::{names, shown, warn_about};
use super::super::failure::Failure;
use super::super::{manifests, print, validate};
use super::object::fetch;
use super::target::{self, FleetKind, FleetTarget};
use super::wait::{Awaited, until};
use crate::api::view::{ApplyResult, DiffResult, Scale, Source};
use crate::clock;
use crate::wire::{Client, Effect};

/// `apply --fleet -f`.
pub async fn apply(client: &Client, args: ApplyArgs) -> Result<(), Failure> {
    let sources = manifests::read_all(&args.files)?;
    let output = args.flags.output;
    match args.dry_run {
        Some(DryRun::Server) => return dry_run(client, &sources, output).await,
        Some(DryRun::Client) => {
            let checked = validate::check(&sources, " (client dry run)")?;
            return args.progress.print(&checked);
        }
        None => {}
    }
    let begin = clock::monotonic();
    let results = client.fleet_apply(sources.clone(), Effect::Commit).await;
    let results = results.map_err(|error| manifests::refused(&error, &sources))?;
    warn_about(&results);
    args.progress.print(&shown(output, &results)?)?;
    let Some(timeout) = args.progress.timeout() else {
        return Ok(());
    };
    let targets = groups(&results);
    until(client, &targets, Goal::Ready, timeout).await?;
    match output {
        ChangeOutput::Table => args
            .progress
            .print(&done(&targets, "ready", begin.elapsed())),
        ChangeOutput::Json | ChangeOutput::Name => Ok(()),
    }
}

async fn dry_run(client: &Client, sources: &[Source], output: ChangeOutput) -> Result<(), Failure> {
    let result = difference(client, sources).await?;
    let shown = Shown {
        unchanged: true,
        steps: false,
        note: " (dry run)",
    };
    match output {
        ChangeOutput::Table => print::out(&summary(&result, &shown)),
        ChangeOutput::Json => print::json(&result),
        ChangeOutput::Name => print::out(&names(result.groups.iter().map(|it| &it.result))),
    }
}

/// `diff --fleet -f`.
pub async fn diff(client: &Client, args: DiffArgs) -> Result<(), Failure> {
    if args.flags.verbose {
        let usage = "--verbose is not supported with --fleet: the steps are those of the node that a VM gets";
        return Err(Failure::Usage(usage.to_owned()));
    }
    let has_status = args.flags.exit_code;
    exit_status(show(client, args).await, has_status)
}

async fn show(client: &Client, args: DiffArgs) -> Result<bool, Failure> {
    let sources = manifests::read_all(&args.files)?;
    let result = difference(client, &sources).await?;
    let shown = Shown {
        unchanged: false,
        steps: false,
        note: "",
    };
    print::answer(args.output, &result, |result| summary(result, &shown))?;
    Ok(result.has_differences())
}

async fn difference(client: &Client, sources: &[Source]) -> Result<DiffResult, Failure> {
    let result = client.fleet_diff(sources.to_vec()).await;
    let result = result.map_err(|error| manifests::refused(&error, sources))?;
    warn_about(result.groups.iter().map(|group| &group.result));
    Ok(result)
}

/// `delete --fleet`. Deletes nothing if a group does not exist.
pub async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    if args.force {
        let usage = "--force is not supported with --fleet: the nodes stop the VMs; see `slicectl node gone` for a node that is lost";
        return Err(Failure::Usage(usage.to_owned()));
    }
    let targets = match args.files.is_empty() {
        true => only_groups(target::targets(&args.targets)?, "deleted")?,
        false => named(client, &args).await?,
    };
    let (objects, missing) = fetch(client, &targets).await?;
    if !missing.is_empty() && !args.ignore_not_found {
        return Err(Failure::Failed(missing));
    }
    let begin = clock::monotonic();
    let (mut deleting, mut errors) = (Vec::new(), Vec::new());
    for object in objects {
        let target = FleetTarget {
            kind: object.kind(),
            name: object.name().clone(),
        };
        // Not another group that has its name by now.
        match client.fleet_delete(&target.name, object.uid()).await {
            Ok(()) => {
                args.progress
                    .print(&format!("{target} deletion requested\n"))?;
                deleting.push(Awaited {
                    target,
                    uid: object.uid(),
                });
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.progress.timeout() {
        until(client, &deleting, Goal::Deleted, timeout).await?;
        args.progress
            .print(&done(&deleting, "deleted", begin.elapsed()))?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

/// `scale --fleet`. Continues after a failure, and fails at the end.
pub async fn scale(client: &Client, args: ScaleArgs) -> Result<(), Failure> {
    let targets = only_groups(target::targets(&args.targets)?, "scaled")?;
    let begin = clock::monotonic();
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for target in &targets {
        // `count` alone is changed, whatever the generation is.
        let scale = Scale {
            count: args.count,
            uid: None,
            generation: None,
        };
        match client.fleet_scale(&target.name, &scale).await {
            Ok(result) => results.push(result),
            Err(error) => errors.extend(error.causes()),
        }
    }
    warn_about(&results);
    args.progress.print(&shown(args.flags.output, &results)?)?;
    if let Some(timeout) = args.progress.timeout() {
        let targets = groups(&results);
        until(client, &targets, Goal::Ready, timeout).await?;
        if args.flags.output == ChangeOutput::Table {
            args.progress
                .print(&done(&targets, "ready", begin.elapsed()))?;
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

fn only_groups(targets: Vec<FleetTarget>, verb: &str) -> Result<Vec<FleetTarget>, Failure> {
    let is_other = |target: &&FleetTarget| target.kind != FleetKind::HostGroup;
    match targets.iter().find(is_other) {
        None => Ok(targets),
        Some(target) => Err(Failure::Usage(format!(
            "only host groups of the fleet can be {verb}, not {target}"
        ))),
    }
}

async fn named(client: &Client, args: &DeleteArgs) -> Result<Vec<FleetTarget>, Failure> {
    let sources = manifests::read_all(&args.files)?;
    let names = client.names(sources.clone()).await;
    let names = names.map_err(|error| manifests::refused(&error, &sources))?;
    Ok(names.into_iter().map(group).collect())
}

fn groups(results: &[ApplyResult]) -> Vec<Awaited> {
    let names = results.iter().map(|result| result.name.clone());
    names.map(|name| group(name).into()).collect()
}

fn group(name: crate::api::meta::Name) -> FleetTarget {
    FleetTarget {
        kind: FleetKind::HostGroup,
        name,
    }
}

/// `hostgroup/web ready (in 1.2s)`.
fn done(targets: &[Awaited], state: &str, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    targets
        .iter()
        .map(|it| format!("{} {state} (in {seconds:.1}s)\n", it.target))
        .collect()
}
