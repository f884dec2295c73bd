//! The reconcile loop: desired state, observe, plan, act, observe again, until the plan is empty.
//! Out of scope: waiting, output for users.
//!
//! This loop also provides: `diff` (print the plan), verification (the next plan is empty), events (each action that was carried out),
//! drift detection (a plan that is not empty for a converged generation), garbage collection (empty desired state), adoption after a
//! restart (the first observation finds what exists), crash tests (stop before any action).

pub mod checkpoint;
pub mod connection;
pub mod disk;
pub mod firewall;
pub mod fresh;
pub mod group;
pub mod host_network;
mod in_store;
pub mod lease;
pub mod limits;
pub mod net;
pub mod power;
pub mod record;
pub mod storage;
pub mod vmm;

pub use in_store::{InStore, Stored, converge_in};

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::host;
use crate::host::process::Identity;

/// The number of rounds of observing and acting after which a loop reports that it does not converge.
const MAX_ROUNDS: usize = 3;

/// Desired state, actual state, and the steps from one to the other: the part of a reconciler without I/O. The actual state is either
/// [on the host](OnHost) or [in the store](InStore).
pub trait Reconcile {
    /// The desired state. It may be empty: then everything is removed.
    type Desired: Sync;
    /// The actual state.
    type Observed: Send + Sync;
    /// One step of a plan. Its text is displayed to users. The alternate form (`{:#}`) is for a VM that does not exist yet: it omits what
    /// depends on the uid that the VM will get, such as MACs and digests of rules.
    type Action: Display + Clone + Send + Sync;

    /// Computes the steps from the actual to the desired state. Pure: no I/O, no clock. The plan is empty if and only if the state is
    /// converged.
    ///
    /// # Errors
    /// An object that is not ours is in the way.
    fn plan(
        desired: &Self::Desired,
        observed: &Self::Observed,
    ) -> Result<Vec<Self::Action>, Conflict>;

    /// Returns what to wait for if this step happens by itself or is carried out elsewhere. The loop ends there, and its caller observes
    /// again when the step has happened.
    fn waits_for(_: &Self::Action) -> Option<Wait> {
        None
    }

    /// Whether this step, in a converged state, means that the host was changed. False for what only follows a change in the store that has
    /// no new generation, such as tags: it is no drift.
    fn is_repair(_: &Self::Action) -> bool {
        true
    }

    /// Whether the next stage depends on the result of this step: a preview cannot compute the plan of that stage.
    fn is_prerequisite(_: &Self::Action) -> bool {
        false
    }

    /// The state from which the stage of a new VM is planned if it cannot be observed because the stages before it, or the host network,
    /// have created nothing yet. `None`: their result is not known in advance.
    fn unbuilt(_: &Self::Desired) -> Option<Self::Observed> {
        None
    }

    /// The state after these steps, for a stage that plans further steps then. `None`: no further steps are known.
    fn predict(
        _: &Self::Desired,
        _: &Self::Observed,
        _: &[Self::Action],
    ) -> Option<Self::Observed> {
        None
    }
}

/// A reconciler whose actual state is on the host: a stage of a VM, or the host network.
pub trait OnHost: Reconcile + Sync {
    /// The program that carries out this step and its deadline, which are reported while it runs. None: the step runs no program.
    fn program(&self, _: &Self::Action) -> Option<Program> {
        None
    }

    /// Reads the actual state. A failure to read is an error, never "absent".
    fn observe(
        &self,
        desired: &Self::Desired,
    ) -> impl Future<Output = Result<Self::Observed, host::Error>> + Send;

    /// Carries out one step. Absent on delete and present on create are success: the next observation decides.
    fn act(
        &self,
        desired: &Self::Desired,
        action: &Self::Action,
    ) -> impl Future<Output = Result<(), host::Error>> + Send;
}

/// A program that carries out a step, and its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The name that is displayed.
    pub name: &'static str,
    /// The program is killed after this time.
    pub deadline: Duration,
}

/// What a loop waits for without occupying a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The exit of this process; after this time the stage observes again and may kill it.
    Exit(Identity, Duration),
    /// The exit of a process is recorded and evaluated: observe again at once.
    Evaluation,
}

/// An object that is not ours is in the way. It is never changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object} is not ours: {remedy}")]
pub struct Conflict {
    /// The object.
    pub object: String,
    /// What the user can do about it.
    pub remedy: String,
}

/// The reason why a loop ended before its plan was empty.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object that is not ours is in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The actual state could not be read.
    #[error("{0}")]
    Observe(host::Error),
    /// A step failed.
    #[error("{action}: {reason}")]
    Act {
        /// The step.
        action: String,
        /// The cause.
        reason: host::Error,
    },
    /// The next step happens by itself.
    #[error("waiting: {step}")]
    Waiting {
        /// The step.
        step: String,
        /// What to wait for.
        wait: Wait,
    },
    /// Steps were carried out, and the plan did not become empty.
    #[error("not converged after {MAX_ROUNDS} rounds, remaining steps: {}", .0.join("; "))]
    NotConverging(Vec<String>),
}

impl Error {
    /// Whether another attempt fails in the same way until the VM's spec or the network's configuration changes.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Act { reason, .. } => net::cni::waits_for_a_change(reason),
            Self::Conflict(_)
            | Self::Observe(_)
            | Self::Waiting { .. }
            | Self::NotConverging(_) => false,
        }
    }
}

/// Called before every step. A test returns an error to simulate a crash or a failure at exactly that step.
pub type Probe = Arc<dyn Fn(&str) -> Result<(), host::Error> + Send + Sync>;

/// A probe that never returns an error.
pub fn no_probe() -> Probe {
    Arc::new(|_| Ok(()))
}

/// The result of a loop and the steps that it carried out.
pub struct Convergence<O> {
    /// The steps that were carried out, as text.
    pub actions: Vec<String>,
    /// Whether one of them [is a repair](Reconcile::is_repair).
    pub has_repaired: bool,
    /// The last observation, for which the plan was empty; or an error.
    pub result: Result<O, Error>,
}

/// Runs the loop.
pub async fn converge<R: OnHost>(
    reconciler: &R,
    desired: &R::Desired,
    probe: &Probe,
) -> Convergence<R::Observed> {
    let mut taken = Taken::default();
    let result = run_rounds(reconciler, desired, probe, &mut taken).await;
    Convergence {
        actions: taken.actions,
        has_repaired: taken.has_repaired,
        result,
    }
}

/// The steps that were carried out.
#[derive(Default)]
struct Taken {
    actions: Vec<String>,
    has_repaired: bool,
}

async fn run_rounds<R: OnHost>(
    reconciler: &R,
    desired: &R::Desired,
    probe: &Probe,
    taken: &mut Taken,
) -> Result<R::Observed, Error> {
    let mut remaining = Vec::new();
    for round in 0..=MAX_ROUNDS {
        let observed = reconciler.observe(desired).await.map_err(Error::Observe)?;
        let plan = R::plan(desired, &observed)?;
        if plan.is_empty() {
            return Ok(observed);
        }
        if round == MAX_ROUNDS {
            remaining = plan.iter().map(ToString::to_string).collect();
            break;
        }
        for (index, action) in plan.iter().enumerate() {
            let text = action.to_string();
            match R::waits_for(action) {
                None => {}
                // The steps before it may have caused it.
                Some(_) if index > 0 => break,
                Some(wait) => return Err(Error::Waiting { step: text, wait }),
            }
            let result = match probe(&text) {
                Ok(()) => reconciler.act(desired, action).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {
                    taken.actions.push(text);
                    taken.has_repaired |= R::is_repair(action);
                }
                Err(reason) => {
                    return Err(Error::Act {
                        action: text,
                        reason,
                    });
                }
            }
        }
    }
    Err(Error::NotConverging(remaining))
}

/// Whether a VM exists when its steps are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// It exists: what cannot be observed is an error.
    Existing,
    /// It is new: what does not exist yet is as the stages before create it.
    New,
}

/// Returns the steps that the loop would carry out, as far as they are known, and the observation that the first of them were computed from,
/// without carrying them out.
///
/// # Errors
/// Those of the loop; nothing was changed.
pub async fn diff<R: OnHost>(
    reconciler: &R,
    desired: &R::Desired,
    basis: Basis,
) -> Result<(Vec<R::Action>, R::Observed), Error> {
    let observed = match (reconciler.observe(desired).await, basis) {
        (Err(error), Basis::New) if error.kind == host::Kind::Absent => {
            R::unbuilt(desired).ok_or(Error::Observe(error))?
        }
        (observed, _) => observed.map_err(Error::Observe)?,
    };
    let mut steps = plan_known::<R>(&observed, desired)?;
    let mut last = steps.clone();
    let mut predicted = R::predict(desired, &observed, &last);
    for _ in 1..MAX_ROUNDS {
        let Some(state) = predicted.filter(|_| !last.is_empty()) else {
            break;
        };
        // A conflict that shows only then is reported by the loop.
        let Ok(plan) = plan_known::<R>(&state, desired) else {
            break;
        };
        last = plan;
        steps.extend(last.iter().cloned());
        predicted = R::predict(desired, &state, &last);
    }
    Ok((steps, observed))
}

/// The plan without steps that happen by themselves: these are not carried out.
fn plan_known<R: Reconcile>(
    observed: &R::Observed,
    desired: &R::Desired,
) -> Result<Vec<R::Action>, Conflict> {
    let mut plan = R::plan(desired, observed)?;
    plan.retain(|action| R::waits_for(action).is_none());
    Ok(plan)
}
