//! `--check-config`: checks the settings file and the manifest directory, and changes nothing.
//! Out of scope: groups that were applied, and files that manifests name.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use super::settings;
use crate::cli::sliced::Args;
use crate::clock;
use crate::intake::{self, History, Input};

/// What a check found.
#[derive(Default)]
struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
    files: usize,
    groups: usize,
}

/// Prints errors and warnings to standard error and a summary to standard output. Exit status 1 if there are errors.
pub(super) fn main(args: &Args) -> ExitCode {
    let found = check(args);
    let lines = found.errors.iter().map(|line| format!("error: {line}\n"));
    let warnings = found
        .warnings
        .iter()
        .map(|line| format!("warning: {line}\n"));
    let lines: String = lines.chain(warnings).map(|line| printable(&line)).collect();
    // A failed write has no other place to be reported; the exit status is that of the check nevertheless.
    let _ = io::stderr().write_all(lines.as_bytes());
    if !found.errors.is_empty() {
        return ExitCode::FAILURE;
    }
    let (files, groups) = (found.files, found.groups);
    let summary = format!(
        "{}: valid\n{}: valid, manifests: {files}, groups: {groups}\n",
        args.settings.display(),
        args.config_dir.display()
    );
    match io::stdout().write_all(summary.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn check(args: &Args) -> Findings {
    let mut found = Findings::default();
    let settings = match settings::read_all(args) {
        Ok(settings) => settings,
        Err(error) => {
            // Without the settings, it is unknown which directories manifests may use.
            found.errors.push(error.to_string());
            return found;
        }
    };
    let listing = match intake::read_directory(&args.config_dir) {
        Ok(listing) => listing,
        Err(error) => {
            let source = &error.source;
            found.errors.push(format!("{error}: {source}"));
            return found;
        }
    };
    let input = Input {
        stored: &[],
        listing: &listing,
        allowed: &settings.allowed,
        now: clock::monotonic(),
        // A file that is open for writing is checked as it is.
        grace: Duration::ZERO,
    };
    let plan = intake::plan(&input, &mut History::default());
    let problems = plan.problems.iter().flat_map(|(_, problems)| problems);
    found.errors.extend(problems.map(ToString::to_string));
    let warnings = plan.warnings.into_iter().flat_map(|(_, lines)| lines);
    found.warnings.extend(warnings);
    let others = plan.others.iter();
    found.warnings.extend(others.map(|path| {
        format!(
            "{}: not a manifest: only *.yaml and *.yml in lower case are read",
            path.display()
        )
    }));
    found.files = listing.files.len();
    found.groups = plan.upserts.len();
    found
}

/// Text of files must not control the terminal.
fn printable(line: &str) -> String {
    line.chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}
