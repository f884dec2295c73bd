//! Files that conflict with others, or with stored groups that are kept.
//! Out of scope: what a conflict is ([`crate::api::validate`]).

use std::path::PathBuf;

use super::files::Files;
use super::{Input, missing};
use crate::api::host_group::{HostGroup, Origin};
use crate::api::manifest::Problem;
use crate::api::validate::{self, Claim};

/// Moves files that conflict with others to the broken ones. The stored groups of such a file are kept, which may cause another
/// conflict. The loop ends, since every round removes a file.
pub(super) fn remove_conflicts(files: &mut Files<'_>, stored: &[HostGroup], input: &Input<'_>) {
    loop {
        let names = files.names();
        let is_kept = |group: &&HostGroup| {
            files.holds(group)
                || !names.contains(&group.meta.name)
                    && missing::reason(input, stored, files, group).is_some()
        };
        let kept: Vec<&HostGroup> = stored.iter().filter(is_kept).collect();
        let claim = |(draft, path): (_, &PathBuf)| Claim {
            draft,
            origin: Origin::File(path.clone()),
        };
        let claims =
            validate::by_precedence(stored, files.claims().into_iter().map(claim).collect());
        let refused: Vec<(Origin, Problem)> = validate::conflicts(stored, &kept, &claims)
            .into_iter()
            .chain(validate::on_demand_problems(stored, &claims))
            .map(|(index, problem)| (claims[index].origin.clone(), problem))
            .collect();
        if refused.is_empty() {
            return;
        }
        for (origin, problem) in refused {
            if let Origin::File(path) = origin {
                files.refuse(path, problem);
            }
        }
    }
}
