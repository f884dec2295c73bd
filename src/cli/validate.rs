//! `validate`: checks manifests without a daemon.
//! Out of scope: checks that need the groups, the settings and the files of a host.

use std::path::PathBuf;

use super::failure::{Failure, note, warn};
use super::{manifests, print};
use crate::api::manifest::{self, Draft, Problem};
use crate::api::validate;
use crate::api::view::{Kind, Source};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The errors are those of `apply`. Needs no daemon, so these are not checked: conflicts with groups that exist, allowed directories of \
programs and images, and whether files, programs, links and CNI networks exist. With a daemon, `apply --dry-run` checks the first two.

`sliced --check-config` checks the settings file and the manifest directory, in which `host_groups: []` is valid.

Examples:
  slicectl validate -f sandbox.yaml
  slicectl validate -f groups/
  slicectl new sandbox --net=isolated | slicectl validate -f -")]
pub struct ValidateArgs {
    /// Manifest file, directory of *.yaml and *.yml files, or - for stdin; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE|DIR|-",
        required = true
    )]
    pub files: Vec<PathBuf>,
}

/// `validate -f`.
pub fn validate(args: &ValidateArgs) -> Result<(), Failure> {
    let sources = manifests::read_all(&args.files)?;
    print::out(&check(&sources, "")?)?;
    note("not checked: existing groups, allowed directories, files, programs, links, CNI networks");
    Ok(())
}

/// Validates manifests, prints their warnings, and returns a line for each group that ends with `note`.
pub fn check(sources: &[Source], note: &str) -> Result<String, Failure> {
    let drafts = parse(sources).map_err(|problems| {
        let problems = manifest::shown(problems);
        let lines = problems.iter().map(ToString::to_string).collect();
        manifests::report(lines, sources)
    })?;
    for warning in drafts.iter().flat_map(|draft| &draft.warnings) {
        warn(warning);
    }
    let line = |draft: &Draft| format!("{}/{} valid{note}\n", Kind::HostGroup, draft.name);
    Ok(drafts.iter().map(line).collect())
}

fn parse(sources: &[Source]) -> Result<Vec<Draft>, Vec<Problem>> {
    let mut drafts = Vec::new();
    let mut problems = Vec::new();
    for Source { name, text } in sources {
        let source = manifest::Source {
            name: name.clone(),
            text: text.clone(),
        };
        match manifest::parse_nonempty(&source, manifest::Scope::Host) {
            Ok(parsed) => drafts.extend(parsed),
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    validate::check_apply(&[], &drafts)?;
    Ok(drafts)
}
