//! The fields in which the parts of two groups that only a fleet has differ.
//! Out of scope: the spec of the VMs.

use super::super::placement::{Labels, Placement, Reconcile, Replacement, Strategy, Subnets};
use super::{Changes, Effect, FieldChange};

/// The changed fields, in the order of the reference of manifests. Running VMs are not moved by a change.
pub fn placement_changes(
    (old, old_replacement): (&Placement, Option<&Replacement>),
    (new, new_replacement): (&Placement, Option<&Replacement>),
) -> Vec<FieldChange> {
    let mut found = Changes::default();
    let live = Effect::Live;
    let field = |name: &str| format!("placement.{name}");
    let strategies = (&strategy(old.strategy), &strategy(new.strategy));
    found.value(live, &field("strategy"), strategies.0, strategies.1);
    let selectors = (labels(&old.node_selector), labels(&new.node_selector));
    found.list(live, &field("node_selector"), &selectors.0, &selectors.1);
    let architectures = (old.architecture.as_ref(), new.architecture.as_ref());
    found.option(
        live,
        &field("architecture"),
        architectures.0,
        architectures.1,
    );
    let unavailable = (&old.max_unavailable, &new.max_unavailable);
    found.value(
        live,
        &field("max_unavailable"),
        unavailable.0,
        unavailable.1,
    );
    let subnets = (old.subnets.map(subnets), new.subnets.map(subnets));
    found.option(
        live,
        &field("subnets"),
        subnets.0.as_ref(),
        subnets.1.as_ref(),
    );
    let texts = (
        old_replacement.map(replacement),
        new_replacement.map(replacement),
    );
    found.option(live, "replacement", texts.0.as_ref(), texts.1.as_ref());
    found.0
}

fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Spread => "spread",
        Strategy::Pack => "pack",
    }
}

fn labels(labels: &Labels) -> Vec<String> {
    let pairs = labels.iter();
    pairs.map(|(key, value)| format!("{key}={value}")).collect()
}

fn subnets(subnets: Subnets) -> String {
    format!("/{} of {}", subnets.prefix_len, subnets.pool)
}

fn replacement(replacement: &Replacement) -> String {
    let reconcile = match replacement.reconcile {
        Reconcile::KeepReplacement => "keep_replacement",
        Reconcile::KeepOriginal => "keep_original",
    };
    format!(
        "replace_after {}, stop_after {}, {reconcile}",
        humantime::format_duration(replacement.replace_after),
        humantime::format_duration(replacement.stop_after),
    )
}
