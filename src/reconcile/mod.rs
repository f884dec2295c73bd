//! DECIDES: desired, observe, plan, act, observe again, until the plan is empty.
//! Out of scope: waiting, output for people.
//!
//! From the one loop fall out: `diff` (print the plan), verification (the next, empty, plan), events (each action taken),
//! drift (a plan that is not empty on a converged generation), garbage collection (desired is nothing), adoption after a
//! restart (the first look sees what is there), crash tests (stop before any action).

pub mod adopt;
pub mod connection;
pub mod contest;
pub mod disk;
pub mod engine;
pub mod explain;
pub mod firewall;
pub mod flows;
pub mod fold;
pub mod fresh;
pub mod ground;
pub mod group;
pub mod life;
pub mod limits;
pub mod net;
pub mod orphans;
pub mod places;
pub mod processes;
pub mod record;
pub mod storage;
pub mod translation;
pub mod vmm;

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::host;
use crate::host::process::Identity;

/// Rounds of looking and acting before we own up to not converging.
const ROUNDS: usize = 3;

/// One rung, or the ground: how it is looked at, what is to be done, how it is done.
pub trait Reconcile: Sync {
    /// What ought to be; nothing, too, is a thing to want.
    type Desired: Sync;
    /// What is.
    type Observed: Send + Sync;
    /// One step, in words a person reads.
    type Action: Display + Clone + Send + Sync;

    /// Pure: no I/O, no clock. Empty means converged, and nothing else does.
    ///
    /// # Errors
    /// Something foreign stands in the way.
    fn plan(
        desired: &Self::Desired,
        observed: &Self::Observed,
    ) -> Result<Vec<Self::Action>, Conflict>;

    /// That this step is not ours to take: it comes by itself, or is taken elsewhere. The loop ends there, and whoever runs it
    /// looks again when it has come.
    fn waits(_: &Self::Action) -> Option<Wait> {
        None
    }

    /// Whether the rung above stands on what this step makes: until it is taken, nothing can be foreseen there.
    fn is_footing(_: &Self::Action) -> bool {
        false
    }

    /// The program that takes this step, and how long it may: told while it runs. None: no program does.
    fn program(&self, _: &Self::Action) -> Option<Program> {
        None
    }

    /// Looks. What cannot be seen is an error, never "absent".
    fn observe(
        &self,
        desired: &Self::Desired,
    ) -> impl Future<Output = Result<Self::Observed, host::Error>> + Send;

    /// Takes one step. Absent on delete and present on create are success: the next look decides.
    fn act(
        &self,
        desired: &Self::Desired,
        action: &Self::Action,
    ) -> impl Future<Output = Result<(), host::Error>> + Send;
}

/// A program that takes a step, and its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// As people know it.
    pub name: &'static str,
    /// Then it is killed.
    pub deadline: Duration,
}

/// What is waited for without anybody standing by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// This process ends; after so long it is helped along.
    End(Identity, Duration),
    /// How a process ended is written down and judged: look again at once.
    Judgement,
}

/// A foreign thing in our way. It is never touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{thing} is not ours: {remedy}")]
pub struct Conflict {
    /// What stands there.
    pub thing: String,
    /// What a person can do about it.
    pub remedy: String,
}

/// Why a loop ended before its plan was empty.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something foreign stands in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Looking failed.
    #[error("{}", chain(.0))]
    Observe(host::Error),
    /// A step failed.
    #[error("{action}: {}", chain(source))]
    Act {
        /// The step.
        action: String,
        /// How.
        source: host::Error,
    },
    /// The next step comes by itself.
    #[error("waits: {step}")]
    Waits {
        /// The step.
        step: String,
        /// What for.
        wait: Wait,
    },
    /// Steps were taken, and the plan did not become empty.
    #[error("still to do after {ROUNDS} rounds: {}", .0.join("; "))]
    NotConverging(Vec<String>),
}

impl Error {
    /// Whether another attempt fails in the same way until the VM's spec or the network's configuration changes.
    pub fn waits_for_a_change(&self) -> bool {
        match self {
            Self::Act { source, .. } => net::cni::waits_for_a_change(source),
            Self::Conflict(_) | Self::Observe(_) | Self::Waits { .. } | Self::NotConverging(_) => {
                false
            }
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &host::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Asked before every step. A test answers with an error to stand for a crash or a failure at exactly that step.
pub type Probe = Arc<dyn Fn(&str) -> Result<(), host::Error> + Send + Sync>;

/// A probe that never objects.
pub fn unprobed() -> Probe {
    Arc::new(|_| Ok(()))
}

/// How a loop ended, and what it did on the way.
pub struct Convergence<O> {
    /// The steps taken, in words.
    pub taken: Vec<String>,
    /// The last look, whose plan was empty; or why there is none.
    pub result: Result<O, Error>,
}

/// The loop.
pub async fn converge<R: Reconcile>(
    reconciler: &R,
    desired: &R::Desired,
    probe: &Probe,
) -> Convergence<R::Observed> {
    let mut taken = Vec::new();
    let result = rounds(reconciler, desired, probe, &mut taken).await;
    Convergence { taken, result }
}

async fn rounds<R: Reconcile>(
    reconciler: &R,
    desired: &R::Desired,
    probe: &Probe,
    taken: &mut Vec<String>,
) -> Result<R::Observed, Error> {
    let mut left = Vec::new();
    for round in 0..=ROUNDS {
        let observed = reconciler.observe(desired).await.map_err(Error::Observe)?;
        let plan = R::plan(desired, &observed)?;
        if plan.is_empty() {
            return Ok(observed);
        }
        if round == ROUNDS {
            left = plan.iter().map(ToString::to_string).collect();
            break;
        }
        for (at, action) in plan.iter().enumerate() {
            let text = action.to_string();
            match R::waits(action) {
                None => {}
                // What was done before it may have brought it about.
                Some(_) if at > 0 => break,
                Some(wait) => return Err(Error::Waits { step: text, wait }),
            }
            let done = match probe(&text) {
                Ok(()) => reconciler.act(desired, action).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => taken.push(text),
                Err(source) => {
                    return Err(Error::Act {
                        action: text,
                        source,
                    });
                }
            }
        }
    }
    Err(Error::NotConverging(left))
}

/// The plan alone, what the loop would do first, and the look that it was made from.
///
/// # Errors
/// As the loop's, without having touched anything.
pub async fn diff<R: Reconcile>(
    reconciler: &R,
    desired: &R::Desired,
) -> Result<(Vec<R::Action>, R::Observed), Error> {
    let observed = reconciler.observe(desired).await.map_err(Error::Observe)?;
    let mut plan = R::plan(desired, &observed)?;
    // What comes by itself is no step of ours.
    plan.retain(|action| R::waits(action).is_none());
    Ok((plan, observed))
}
