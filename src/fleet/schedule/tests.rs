//! Tests of the scheduler.
//! Out of scope: etcd; real nodes.

mod checks;
mod deletion;
mod disruption;
mod looks;
mod model;
mod placement;
mod properties;
mod refusals;
mod replacement;
mod scale;
mod transactions;
pub(super) mod world;
