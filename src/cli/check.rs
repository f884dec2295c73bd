//! `gc` and `version`: print orphaned resources and versions.
//! Out of scope: the removal.

use serde::Serialize;

use super::args::{FormatArgs, GcArgs};
use super::failure::{Failure, note};
use super::paint::{Colors, one_line};
use super::print::{self, Format};
use super::table::{Field, Table};
use crate::api::view::{Orphan, ServerInfo};
use crate::wire::{Client, Effect};

/// `gc`.
pub async fn gc(client: &Client, args: GcArgs) -> Result<(), Failure> {
    let effect = match args.dry_run {
        true => Effect::DryRun,
        false => Effect::Commit,
    };
    let leftovers = client.gc(effect).await?;
    if leftovers.is_empty() && args.output == Format::Table {
        note("no orphaned resources found");
        return Ok(());
    }
    let removal_errors: Vec<String> = leftovers.iter().filter_map(removal_error).collect();
    if removal_errors.len() < leftovers.len() || args.output != Format::Table {
        print::answer(args.output, &leftovers, |leftovers| {
            removals(leftovers, effect)
        })?;
    }
    match removal_errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(removal_errors)),
    }
}

/// The error message for a resource that could not be removed.
fn removal_error(leftover: &Orphan) -> Option<String> {
    let reason = leftover.error.as_ref()?;
    Some(format!(
        "{} still exists ({}): {reason}",
        leftover.owner, leftover.thing
    ))
}

fn removals(leftovers: &[Orphan], effect: Effect) -> String {
    let (kept, removed): (Vec<&Orphan>, Vec<&Orphan>) = leftovers
        .iter()
        .filter(|leftover| leftover.error.is_none())
        .partition(|leftover| leftover.kept.is_some());
    let kept: String = kept
        .iter()
        .map(|leftover| {
            let reason = leftover.kept.as_deref().unwrap_or_default();
            format!(
                "{} is not removed: {}\n",
                one_line(&leftover.owner),
                one_line(reason)
            )
        })
        .collect();
    if removed.is_empty() {
        return kept;
    }
    let rows = removed
        .iter()
        .map(|leftover| vec![Field::from(&leftover.thing), Field::from(&leftover.owner)])
        .collect();
    let header = match effect {
        Effect::Commit => vec!["REMOVED", "OWNER"],
        Effect::DryRun => vec!["WOULD REMOVE", "OWNER"],
    };
    Table::new(header, Colors::for_stdout()).draw(rows) + &kept
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    server: Option<ServerInfo>,
}

/// `version`: prints the client's version even if no daemon responds, and fails then.
pub async fn version(client: &Client, args: FormatArgs) -> Result<(), Failure> {
    let (server, failure) = match client.version().await {
        Ok(server) => (Some(server), None),
        Err(error) => (None, Some(Failure::from(error))),
    };
    let versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        server,
    };
    print::answer(args.output, &versions, |versions| {
        let server = versions.server.as_ref().map(|server| {
            format!(
                "sliced    {} (pid {}, state in {})\n",
                one_line(&server.version),
                server.pid,
                server.state_dir.display()
            )
        });
        format!(
            "slicectl  {}\n{}",
            versions.client,
            server.unwrap_or_default()
        )
    })?;
    failure.map_or(Ok(()), Err)
}
