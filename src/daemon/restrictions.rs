//! Changes that only restrict a group, which are accepted while the database is not writable.
//! Out of scope: where they are kept ([`crate::store`]).

use crate::api::host_group::Origin;
use crate::api::manifest::Draft;
use crate::api::view::{Applied, ApplyResult};
use crate::store::Store;

/// How often such a change is retried after it failed together with others.
pub(super) const RETRIES: u32 = 8;

/// Whether each draft is for an existing group and does not loosen it.
pub(super) fn only(store: &Store, drafts: &[Draft]) -> bool {
    drafts
        .iter()
        .all(|draft| only_restricts(store, draft, None))
}

/// Warns, for each accepted change, that it is not in the database yet.
pub(super) fn warn(store: &Store, results: &mut [ApplyResult]) {
    let Some(read_only) = store.read_only() else {
        return;
    };
    let warning = format!(
        "{}: this change is in effect and kept in the reserve until it can be stored",
        read_only.why
    );
    let changed = results
        .iter_mut()
        .filter(|result| result.applied != Applied::Unchanged);
    changed.for_each(|done| done.warnings.push(warning.clone()));
}

/// Whether the group exists, has this origin (if given), and the draft does not loosen it.
pub(super) fn only_restricts(store: &Store, draft: &Draft, origin: Option<&Origin>) -> bool {
    store.read(|world| {
        let group = world.group(&draft.name);
        let group = group.filter(|group| !group.meta.deleting);
        let group = group.filter(|group| origin.is_none_or(|origin| group.origin == *origin));
        group.is_some_and(|group| {
            let (now, before) = (&draft.spec.template.network, &group.spec.template.network);
            now.is_at_most_as_permissive_as(before)
        })
    })
}
