//! The effect of `apply` and `scale` on groups, as printed: results, warnings, and the state after `--wait`.
//! Out of scope: making the changes.

use std::time::Duration;

use serde::Serialize;

use super::change_args::ChangeOutput;
use super::failure::{Failure, warn};
use super::print;
use super::target::Target;
use super::wait::Reached;
use crate::api::view::{Applied, ApplyResult, Kind, Object};

/// Prints the warnings of these results.
pub fn warn_about<'r>(results: impl IntoIterator<Item = &'r ApplyResult>) {
    for result in results {
        result.warnings.iter().for_each(|text| warn(text));
    }
}

/// `-o json`, the same as the groups of `diff -o json`.
#[derive(Serialize)]
struct Results<'r> {
    groups: &'r [ApplyResult],
}

/// The effect on each group.
pub fn shown(output: ChangeOutput, results: &[ApplyResult]) -> Result<String, Failure> {
    match output {
        ChangeOutput::Json => print::json_text(&Results { groups: results }),
        ChangeOutput::Name => Ok(names(results)),
        ChangeOutput::Table => {
            let lines = results.iter().map(|result| format!("{}\n", line(result)));
            Ok(lines.collect())
        }
    }
}

/// `-o name`.
pub fn names<'r>(results: impl IntoIterator<Item = &'r ApplyResult>) -> String {
    let results = results.into_iter();
    results
        .map(|result| format!("{}/{}\n", Kind::HostGroup, result.name))
        .collect()
}

fn line(result: &ApplyResult) -> String {
    let action = match result.applied {
        Applied::Created => "created",
        Applied::Configured => "configured",
        Applied::Unchanged => "unchanged",
        Applied::Deleted => "deletion requested",
    };
    format!("{}/{} {action}", Kind::HostGroup, result.name)
}

/// `hostgroup/web ready (3/3 in 1.2s)`.
pub fn ready_lines(reached: &[Reached<'_>], elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let line = |Reached { target, object }: &Reached<'_>| match object {
        Some(Object::HostGroup(group)) => {
            let status = &group.status;
            let (ready, all) = (status.ready_count, status.desired);
            format!("{target} ready ({ready}/{all} in {seconds:.1}s)\n")
        }
        Some(Object::Vm(_) | Object::Lease(_)) | None => {
            format!("{target} ready (in {seconds:.1}s)\n")
        }
    };
    reached.iter().map(line).collect()
}

/// The groups, to wait for.
pub fn groups(results: &[ApplyResult]) -> Vec<Target> {
    results
        .iter()
        .map(|result| Target {
            kind: Kind::HostGroup,
            name: result.name.clone(),
        })
        .collect()
}
