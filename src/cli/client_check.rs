//! `apply --dry-run=client`: validates manifests without a daemon.
//! Out of scope: conflicts with objects that exist, which only the daemon knows.

use super::failure::{Failure, warn};
use crate::api::manifest::{self, Draft};
use crate::api::validate;
use crate::api::view::{Kind, Source};

/// Validates the manifests and returns a line for each group.
pub fn check(sources: Vec<Source>) -> Result<String, Failure> {
    let (mut drafts, mut problems) = (Vec::new(), Vec::new());
    for Source { name, text } in sources {
        match manifest::parse_nonempty(&manifest::Source { name, text }) {
            Ok(parsed) => drafts.extend(parsed),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty()
        && let Err(found) = validate::check_apply(&[], &drafts)
    {
        problems.extend(found);
    }
    if !problems.is_empty() {
        let problems = problems.iter().map(ToString::to_string);
        return Err(Failure::Failed(problems.collect()));
    }
    let warnings = drafts.iter().flat_map(|draft| &draft.warnings);
    warnings.for_each(|text| warn(text));
    let line = |draft: &Draft| {
        format!(
            "{}/{} valid (client dry run)\n",
            Kind::HostGroup,
            draft.name
        )
    };
    Ok(drafts.iter().map(line).collect())
}
