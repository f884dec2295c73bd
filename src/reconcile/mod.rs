//! DECIDES: desired, observe, plan, act, until the plan is empty.
//! Not here: waiting, words for people.

use std::future::Future;

use crate::host;

pub mod vmm;

/// One rung's three verbs.
pub trait Reconcile: Sync {
    /// What is wanted.
    type Desired: Sync;
    /// What is.
    type Observed: Send + Sync;
    /// One step from what is to what is wanted.
    type Action: std::fmt::Display + Clone + Send + Sync;
    /// Pure: no I/O, no clock. Empty means converged.
    fn plan(
        desired: &Self::Desired,
        observed: &Self::Observed,
    ) -> Result<Vec<Self::Action>, Conflict>;
    /// Looks. Failing to look is an error and never "missing".
    fn observe(
        &self,
        desired: &Self::Desired,
    ) -> impl Future<Output = Result<Self::Observed, host::Error>> + Send;
    /// Takes one step.
    fn act(
        &self,
        desired: &Self::Desired,
        action: &Self::Action,
    ) -> impl Future<Output = Result<(), host::Error>> + Send;
}

/// A foreign thing in our way; never touched. `remedy` is a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What it is.
    pub thing: String,
    /// What to do about it.
    pub remedy: String,
}
