//! `gc`: reports orphans with what was found of each, and after their removal what was observed again.
//! Out of scope: finding and removing them ([`crate::engine`]).

use crate::api::event::ObjectRef;
use crate::api::view;
use crate::clock;
use crate::engine::{Engine, Orphan};
use crate::host;
use crate::owner::{Label, Owner};
use crate::wire::{Effect, Refusal};

pub(super) async fn collect(engine: &Engine, effect: Effect) -> Result<Vec<view::Orphan>, Refusal> {
    let fail = |error: host::Error| Refusal::Failed(error.to_string());
    let orphans = engine.orphans(clock::now()).await.map_err(fail)?;
    let reason = "it has a record of this boot and no tombstone: it will be adopted as a VM";
    let adopted = orphans.adopted.into_iter();
    let adopted = adopted.map(|orphan| describe(orphan, None).kept(reason));
    let kept = orphans.kept.into_iter();
    let kept = kept.map(|(orphan, why)| describe(orphan, None).kept(&why));
    let kept = adopted.chain(kept);
    let removable = orphans.removable;
    let abandoned = engine.unreleased_containers();
    if effect == Effect::DryRun {
        let removed = removable.into_iter().map(|orphan| describe(orphan, None));
        let abandoned = abandoned.into_iter();
        let abandoned = abandoned.map(|container| attachment(container, None));
        return Ok(removed.chain(abandoned).chain(kept).collect());
    }
    let refused = engine.release_orphaned_attachments().await;
    let error_of = |container: &String| {
        let mut refused = refused.iter();
        refused
            .find(|(name, _)| name == container)
            .map(|(_, why)| why.clone())
    };
    let remaining = engine.unreleased_containers();
    let attachments = abandoned.into_iter().map(|container| {
        let is_recorded = remaining.contains(&container);
        let why = is_recorded.then(|| "its record is still in the CNI cache".to_owned());
        let why = error_of(&container).or(why);
        attachment(container, why)
    });
    let removed = engine.remove_orphans(removable).await.map_err(fail)?;
    let removed = removed.into_iter();
    Ok(removed
        .map(|(orphan, removed)| describe(orphan, removed.err()))
        .chain(attachments)
        .chain(kept)
        .collect())
}

/// An attachment that plugins failed to release, for a container that no longer exists.
fn attachment(container: String, error: Option<String>) -> view::Orphan {
    view::Orphan {
        thing: "CNI attachment that plugins failed to release".to_owned(),
        owner: container,
        kept: None,
        error,
    }
}

fn describe(orphan: Orphan, error: Option<String>) -> view::Orphan {
    view::Orphan {
        kept: None,
        thing: orphan.resources.to_string(),
        error,
        owner: owner_text(&orphan.label),
    }
}

fn owner_text(label: &Label) -> String {
    match &label.owner {
        Owner::HostNetwork => ObjectRef::Host.to_string(),
        Owner::Vm { name, uid } => format!("vm/{name}@{uid}"),
    }
}
