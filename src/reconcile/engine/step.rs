//! One rung's loop with its events, its condition, and the patience for those who want the opposite.
//! Not here: the order of the rungs.

use tracing::debug;

use super::{Engine, SLOW};
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::clock;
use crate::reconcile::{Conflict, Convergence, Error, Reconcile, converge};
use crate::runtime::queue::Outcome;
use crate::store;

/// What a rung's loop came to.
pub(super) enum Step<O> {
    /// The plan is empty.
    Ready(O),
    /// It is not; the condition says why.
    Not(Outcome),
}

impl Engine {
    /// The loop, with its steps counted.
    pub(super) async fn converge<R: Reconcile>(
        &self,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Convergence<R::Observed> {
        let done = converge(reconciler, desired, &self.probe).await;
        let taken = u64::try_from(done.taken.len()).unwrap_or(u64::MAX);
        self.steps
            .fetch_add(taken, std::sync::atomic::Ordering::Relaxed);
        done
    }

    /// A rung's loop, its events and, if it failed, its condition.
    pub(super) async fn step<R: Reconcile>(
        &self,
        vm: &Vm,
        rung: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<Step<R::Observed>, store::Error> {
        let was_ready = self.store.read(|world| {
            let page = world.page(vm.meta.uid, rung);
            page.is_some_and(|page| page.condition.is_true_at(vm.meta.generation))
        });
        let Convergence { taken, result } = self.converge(reconciler, desired).await;
        let object = format!("vm/{}", vm.meta.name);
        if !taken.is_empty() {
            debug!(vm = %vm.meta.name, %rung, ?taken, "acted");
        }
        if was_ready && !taken.is_empty() {
            let message = format!("{rung} repaired: {}", taken.join("; "));
            self.note(EventType::Warning, &object, "Drift", &message);
            if let Some(count) = self.contests.count(vm.meta.uid, rung, clock::monotonic()) {
                let steps = taken.join("; ");
                let (reason, message) = match rung {
                    Rung::Vmm => (
                        Reason::CrashLoop,
                        format!("{count} times in a minute: {steps}"),
                    ),
                    Rung::Lease | Rung::Net | Rung::Firewall => (
                        Reason::Contested,
                        format!(
                            "repaired {count} times in a minute: somebody wants the opposite of: {steps}"
                        ),
                    ),
                };
                self.note(EventType::Warning, &object, &reason.to_string(), &message);
                self.set_condition(vm, rung, (Status::False, reason, message))
                    .await?;
                return Ok(Step::Not(Outcome::Shun(SLOW)));
            }
        }
        match &result {
            Ok(_) => {}
            Err(_) => {
                let found = describe(&result);
                self.note(EventType::Warning, &object, &found.1.to_string(), &found.2);
                self.set_condition(vm, rung, found).await?;
            }
        }
        Ok(result.map_or(Step::Not(Outcome::Failed), Step::Ready))
    }
}

/// An ended loop as a condition.
pub(super) fn describe<O>(result: &Result<O, Error>) -> (Status, Reason, String) {
    match result {
        Ok(_) => (Status::True, Reason::Converged, String::new()),
        Err(error) => {
            let (status, reason) = match error {
                Error::Conflict(Conflict { .. }) => (Status::False, Reason::Conflict),
                Error::Observe(_) => (Status::Unknown, Reason::ObserveFailed),
                Error::Act { .. } => (Status::False, Reason::ActionFailed),
                Error::NotConverging(_) => (Status::False, Reason::NotConverging),
            };
            (status, reason, error.to_string())
        }
    }
}
