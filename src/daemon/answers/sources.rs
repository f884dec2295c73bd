//! Parses manifests that a client sent, on the blocking thread pool.
//! Out of scope: applying them.

use crate::api::manifest::{self, Draft, Scope};
use crate::api::validate;
use crate::api::view::Source;
use crate::wire::Refusal;

pub(in crate::daemon) fn parse_all(
    sources: Vec<Source>,
    scope: Scope,
) -> Result<Vec<Draft>, Refusal> {
    let mut drafts = Vec::new();
    let mut problems = Vec::new();
    for Source { name, text } in sources {
        match manifest::parse_nonempty(&manifest::Source { name, text }, scope) {
            Ok(parsed) => drafts.extend(parsed),
            Err(found) => problems.extend(manifest::shown(found).iter().map(ToString::to_string)),
        }
        // The parser enforces the limit for each file; this enforces it for all files together.
        if let Some(first_excess) = drafts.get(validate::MAX_GROUPS) {
            let found = drafts.len();
            let max = validate::MAX_GROUPS;
            let message = format!("found {found} groups so far, expected at most {max} on a host");
            problems.push(first_excess.problem("name", message).to_string());
        }
        if problems.len() > MAX_PROBLEMS || drafts.len() > validate::MAX_GROUPS {
            break;
        }
    }
    match problems.is_empty() {
        true => Ok(drafts),
        false => Err(Refusal::Invalid(problems)),
    }
}

/// Number of problems after which no further manifest is parsed.
const MAX_PROBLEMS: usize = 200;

/// The first problems of each file, and at most [`MAX_PROBLEMS`] of all files.
pub(super) fn truncated(problems: &[manifest::Problem]) -> Vec<String> {
    let shown = manifest::shown(problems.to_vec());
    let more = shown.len().saturating_sub(MAX_PROBLEMS);
    let more = (more > 0).then(|| format!("and {more} more problems"));
    let first = shown.iter().take(MAX_PROBLEMS);
    first.map(ToString::to_string).chain(more).collect()
}

/// Runs `work` on the blocking thread pool: parsing a megabyte of YAML on a worker thread of the runtime would delay the engine.
pub(in crate::daemon) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Refusal::Failed(error.to_string())),
    }
}
