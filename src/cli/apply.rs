//! `apply`: sends manifests to the daemon and prints the results.
//! Out of scope: parsing YAML; what would change (`diff`).

use std::collections::BTreeSet;

use super::args::{ApplyArgs, DryRun, Goal};
use super::change_args::ChangeOutput;
use super::diff::{Shown, summary};
use super::disks::confirm_change;
use super::effects::{groups, names, ready_lines, shown, warn_about};
use super::failure::{Failure, warn};
use super::{confirm, manifests, print, validate, wait};
use crate::api::view::Source;
use crate::clock;
use crate::wire::{Client, Detail, Effect};

/// `apply -f`.
pub async fn apply(client: &Client, args: ApplyArgs) -> Result<(), Failure> {
    let sources = manifests::read_all(&args.files)?;
    let output = args.flags.output;
    match args.dry_run {
        Some(DryRun::Server) => return dry_run(client, sources, output).await,
        Some(DryRun::Client) => {
            return args
                .progress
                .print(&validate::check(&sources, " (client dry run)")?);
        }
        None => {}
    }
    let mut warned = BTreeSet::new();
    if !args.flags.yes && confirm::can_ask() {
        warned = confirm_change(client, &sources).await?;
    }
    let begin = clock::monotonic();
    let mut results = client
        .apply(sources.clone(), Effect::Commit)
        .await
        .map_err(|error| manifests::refused(&error, &sources))?;
    for result in &mut results {
        result.warnings.retain(|text| !warned.contains(text));
    }
    warn_about(&results);
    args.progress.print(&shown(output, &results)?)?;
    let Some(timeout) = args.progress.timeout() else {
        return Ok(());
    };
    let targets = groups(&results);
    let reached = wait::until(client, &targets, Goal::Ready, timeout).await?;
    match output {
        ChangeOutput::Table => args.progress.print(&ready_lines(&reached, begin.elapsed())),
        ChangeOutput::Json | ChangeOutput::Name => Ok(()),
    }
}

/// `apply --dry-run`: what `diff` shows.
async fn dry_run(
    client: &Client,
    sources: Vec<Source>,
    output: ChangeOutput,
) -> Result<(), Failure> {
    let result = manifests::difference(client, &sources, Detail::Steps).await?;
    warn_about(result.groups.iter().map(|group| &group.result));
    for (object, reason) in &result.stuck {
        warn(&format!("{object} would wait: {reason}"));
    }
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
