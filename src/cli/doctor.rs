//! `doctor`: prints the checks of the host, those with problems first.
//! Out of scope: the checks.

use std::path::Path;

use clap::Parser;
use futures::future::BoxFuture;

use super::args::FormatArgs;
use super::failure::Failure;
use super::paint::{Colors, one_line, terminal_width};
use super::table::{Field, Table};
use super::{print, sliced};
use crate::api::view::{Check, CheckStatus};
use crate::wire::{Client, Url};

/// The checks of the host for a daemon with these arguments, without asking a daemon.
pub type HostChecks = fn(sliced::Args) -> BoxFuture<'static, Result<Vec<Check>, String>>;

/// `doctor`: fails if a check fails. Without a daemon, slicectl runs the checks itself.
pub async fn doctor(
    client: &Client,
    args: FormatArgs,
    host_checks: HostChecks,
) -> Result<(), Failure> {
    let mut checks = match client.doctor().await {
        Ok(checks) => checks,
        Err(error) if error.is_unreachable() => {
            let Url::Unix(socket) = client.url() else {
                let message = format!(
                    "{error} Without it, `slicectl doctor` checks a host only when it runs on that host."
                );
                return Err(Failure::one(message));
            };
            let mut checks = vec![not_running(&error.to_string())];
            checks.extend(without_daemon(socket, host_checks).await?);
            checks
        }
        Err(error) => return Err(error.into()),
    };
    checks.sort_by_key(|check| std::cmp::Reverse(check.status));
    print::answer(args.output, &checks, |checks| findings(checks))?;
    match count(&checks, CheckStatus::Fail) {
        0 => Ok(()),
        1 => Err(Failure::one("1 check failed")),
        many => Err(Failure::one(format!("{many} checks failed"))),
    }
}

fn not_running(error: &str) -> Check {
    let error = error.trim_end_matches(". Is it running?");
    Check {
        name: "sliced".to_owned(),
        status: CheckStatus::Warn,
        found: format!("not running, so slicectl checks the host itself: {error}"),
        remedy: "Start it: `systemctl enable --now sliced`.".to_owned(),
    }
}

/// The checks for a daemon with the directories of the environment and the run directory of the socket.
async fn without_daemon(socket: &Path, host_checks: HostChecks) -> Result<Vec<Check>, Failure> {
    let args = sliced::Args::try_parse_from(["sliced"]);
    let mut args = args.map_err(|error| Failure::one(error.to_string()))?;
    if let Some(run_dir) = socket.parent() {
        args.run_dir = run_dir.to_owned();
    }
    host_checks(args).await.map_err(Failure::one)
}

fn findings(checks: &[Check]) -> String {
    let rows = checks
        .iter()
        .map(|check| {
            vec![
                Field::with_severity(check.status.to_string(), check.status),
                Field::from(&check.name),
                Field::from(&check.found),
            ]
        })
        .collect();
    let header = vec!["RESULT", "CHECK", "FOUND"];
    let mut text = Table::new(header, Colors::for_stdout()).draw(rows);
    let remedies: String = checks
        .iter()
        .filter(|check| !check.remedy.is_empty())
        .map(|check| remedy(check, terminal_width()))
        .collect();
    if !remedies.is_empty() {
        text.push_str("\nSuggested fixes:\n");
        text.push_str(&remedies);
    }
    format!("{text}\n{}\n", summary(checks))
}

/// The remedy of a check, within the width of the terminal.
fn remedy(check: &Check, width: Option<usize>) -> String {
    let text = format!("{}: {}", check.name, one_line(&check.remedy));
    match width {
        None => format!("  {text}\n"),
        Some(width) => {
            let options = textwrap::Options::new(width)
                .initial_indent("  ")
                .subsequent_indent("    ");
            format!("{}\n", textwrap::fill(&text, options))
        }
    }
}

fn count(checks: &[Check], status: CheckStatus) -> usize {
    checks.iter().filter(|check| check.status == status).count()
}

/// `33 checks: 31 ok, 2 warnings`.
fn summary(checks: &[Check]) -> String {
    let parts = [
        (CheckStatus::Fail, "failed", "failed"),
        (CheckStatus::Ok, "ok", "ok"),
        (CheckStatus::Warn, "warning", "warnings"),
        (CheckStatus::Skipped, "skipped", "skipped"),
    ];
    let parts = parts.map(|(status, one, many)| match count(checks, status) {
        0 => None,
        1 => Some(format!("1 {one}")),
        number => Some(format!("{number} {many}")),
    });
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("{} checks: {}", checks.len(), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_each_result() {
        let checks = |statuses: &[CheckStatus]| -> Vec<Check> {
            let check = |status: &CheckStatus| Check {
                name: "x".to_owned(),
                status: *status,
                found: "y".to_owned(),
                remedy: String::new(),
            };
            statuses.iter().map(check).collect()
        };
        use CheckStatus::{Fail, Ok, Skipped, Warn};
        for (statuses, text) in [
            (&[Ok, Ok, Warn, Warn][..], "4 checks: 2 ok, 2 warnings"),
            (&[Ok, Warn], "2 checks: 1 ok, 1 warning"),
            (
                &[Fail, Skipped, Ok, Fail],
                "4 checks: 2 failed, 1 ok, 1 skipped",
            ),
        ] {
            assert_eq!(summary(&checks(statuses)), text);
        }
    }
}
