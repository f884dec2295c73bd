//! The reconcile loop of what is in the store: it runs within one transaction.
//! Out of scope: the transaction itself ([`crate::store`]), and the loop of what is on the host ([`super::converge`]).
//!
//! # Why
//! Two VMs must not get the same address, and a crash must not leave half a group: what is observed, planned and written is one
//! transaction.

use super::{Error, MAX_ROUNDS, Reconcile};
use crate::store::{self, Txn, World};

/// A reconciler whose actual state is in the store: a group, or the Lease stage of a VM.
pub trait InStore: Reconcile {
    /// Why a plan is not carried out.
    type Error: From<store::Error> + From<Error>;

    /// Returns the actual state.
    fn observe(&self, world: &World, desired: &Self::Desired) -> Self::Observed;

    /// Called before a plan is carried out.
    ///
    /// # Errors
    /// It must not be carried out now.
    fn admit(
        &self,
        _: &World,
        _: &Self::Desired,
        _: &[Self::Action],
    ) -> Result<(), <Self as InStore>::Error> {
        Ok(())
    }

    /// Carries out one step.
    ///
    /// # Errors
    /// The steps before it are part of the transaction: the caller rolls it back, or stores the error with them.
    fn act(
        &self,
        txn: &mut Txn<'_>,
        desired: &Self::Desired,
        action: &Self::Action,
    ) -> Result<(), <Self as InStore>::Error>;
}

/// The result of a loop in a transaction.
pub struct Stored<O> {
    /// The steps that were carried out, as text.
    pub actions: Vec<String>,
    /// The last observation, for which the plan was empty.
    pub observed: O,
}

/// Runs the loop.
///
/// # Errors
/// Those of the steps; or the plan does not become empty.
pub fn converge_in<R: InStore>(
    txn: &mut Txn<'_>,
    reconciler: &R,
    desired: &R::Desired,
) -> Result<Stored<R::Observed>, <R as InStore>::Error> {
    let mut actions = Vec::new();
    let mut remaining = Vec::new();
    for round in 0..=MAX_ROUNDS {
        let observed = reconciler.observe(txn.world(), desired);
        let plan = R::plan(desired, &observed).map_err(Error::from)?;
        if plan.is_empty() {
            return Ok(Stored { actions, observed });
        }
        if round == MAX_ROUNDS {
            remaining = plan.iter().map(ToString::to_string).collect();
            break;
        }
        reconciler.admit(txn.world(), desired, &plan)?;
        for action in &plan {
            reconciler.act(txn, desired, action)?;
            actions.push(action.to_string());
        }
    }
    Err(Error::NotConverging(remaining).into())
}
