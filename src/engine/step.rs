//! One stage: its loop with its events, its condition, the delay after conflicting writers, and storing the result.
//! Out of scope: the order of the stages; the desired state of each.

use std::borrow::Cow;
use std::future::Future;

use parking_lot::Mutex;
use tracing::debug;

use super::pending::CurrentStep;
use super::{Engine, HOST_NETWORK_RETRY, Key, SLOW_RETRY};
use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Name, Uid};
use crate::api::network::{Connection, Mode};
use crate::api::stage::{STAGES, Stage};
use crate::api::vm::{Hypervisor, Vm};
use crate::clock;
use crate::host;
use crate::host::rule::Generation;
use crate::reconcile::checkpoint;
use crate::reconcile::net::cni::CheckMode;
use crate::reconcile::{Conflict, Convergence, Error, OnHost, Program, Reconcile, Wait, converge};
use crate::runtime::queue::Outcome;
use crate::store::{self, Acquisition, Change, Durable, Txn};

/// What a pass over the stages does with a stage: converges it (bring-up, teardown) or computes its plan (preview).
pub(super) trait StageRunner: Send {
    /// Why the pass ends here.
    type Break: Send;

    /// Handles one stage and returns its observed state.
    fn run_stage<R: OnHost>(
        &mut self,
        stage: Stage,
        reconciler: &R,
        desired: &R::Desired,
    ) -> impl Future<Output = Result<R::Observed, Self::Break>> + Send;
}

/// A pass from the first stage to the last, in which the result of each stage is stored (bring-up) or evaluated (preview).
pub(super) trait BringUpRunner: StageRunner {
    /// Whether CNI plugins are called with CHECK.
    fn cni_checking(&self) -> CheckMode;

    /// The user that a VM's VMM runs as. None: it has no user, or no VMM.
    fn vmm_user(&self, uid: Uid) -> Option<u32>;

    /// Whether refused packets of the VM are counted and reported.
    fn counts_refused(&self) -> bool;

    /// Called when a stage is Ready, before the next one is handled.
    fn ready(
        &mut self,
        stage: Stage,
        ready: ReadyStage,
    ) -> impl Future<Output = Result<(), Self::Break>> + Send;
}

/// The result of a stage that is Ready.
#[derive(Default)]
pub(super) struct ReadyStage {
    /// The new checkpoint. None: the stored one is kept.
    pub(super) checkpoint: Option<String>,
    /// The message of the stage's condition.
    pub(super) message: Cow<'static, str>,
    /// The address that CNI plugins assigned, to be stored as the VM's lease.
    pub(super) address: Option<Address>,
    /// The generation of an isolated VM's rules that was verified.
    pub(super) rules: Option<Generation>,
}

impl ReadyStage {
    pub(super) fn with_checkpoint(checkpoint: String) -> Self {
        Self {
            checkpoint: Some(checkpoint),
            ..Self::default()
        }
    }

    pub(super) fn with_connection(connection: &Connection) -> Self {
        Self {
            checkpoint: Some(checkpoint::encode(connection)),
            ..Self::default()
        }
    }
}

/// The bring-up of a VM.
pub(super) struct BringUp<'a> {
    pub(super) engine: &'a Engine,
    pub(super) vm: &'a Vm,
    /// Completes when the transaction that acquired the next stage is on disk.
    pub(super) acquired: Durable,
    /// The message about a conflicting writer that reverts repairs of the Net stage. The stage continues to repair.
    pub(super) conflict_message: Option<String>,
    /// The stage changes because the VM has ended, not because the host differs from the desired state.
    pub(super) is_transition: bool,
    /// The last stage that was run has changed the host.
    pub(super) has_acted: bool,
}

/// A stage with an acquisition that may not be on disk yet: it is observed meanwhile, and changed only when the acquisition is on disk.
struct DurableStage<'a, R> {
    stage: &'a R,
    durable: Mutex<Durable>,
    /// Records the action in progress, for the condition.
    current: Option<&'a CurrentStep>,
}

impl<R: Reconcile> Reconcile for DurableStage<'_, R> {
    type Desired = R::Desired;
    type Observed = R::Observed;
    type Action = R::Action;

    fn plan(desired: &R::Desired, observed: &R::Observed) -> Result<Vec<R::Action>, Conflict> {
        R::plan(desired, observed)
    }

    fn waits_for(action: &R::Action) -> Option<Wait> {
        R::waits_for(action)
    }

    fn is_repair(action: &R::Action) -> bool {
        R::is_repair(action)
    }
}

impl<R: OnHost> OnHost for DurableStage<'_, R> {
    fn program(&self, action: &R::Action) -> Option<Program> {
        self.stage.program(action)
    }

    async fn observe(&self, desired: &R::Desired) -> Result<R::Observed, host::Error> {
        self.stage.observe(desired).await
    }

    async fn act(&self, desired: &R::Desired, action: &R::Action) -> Result<(), host::Error> {
        let durable = std::mem::take(&mut *self.durable.lock());
        let written = durable.wait().await;
        written.map_err(|error| host::Error::other("acquire", "the stage", error))?;
        let Some(current) = self.current else {
            return self.stage.act(desired, action).await;
        };
        current.begins(action.to_string(), self.stage.program(action));
        let result = self.stage.act(desired, action).await;
        current.ends();
        result
    }
}

/// Why a bring-up ends before the last stage is Ready.
pub(super) enum BringUpError {
    /// The stage is not Ready; its condition contains the reason.
    Outcome(Outcome),
    /// The store failed.
    Store(store::Error),
}

impl From<store::Error> for BringUpError {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl StageRunner for BringUp<'_> {
    type Break = BringUpError;

    /// Converges a stage, records its events and, if it failed, its condition.
    async fn run_stage<R: OnHost>(
        &mut self,
        stage: Stage,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let was_ready = engine.store.read(|world| {
            let status = world.status(vm.meta.uid, stage);
            status.is_some_and(|status| {
                let is_contested = status.condition.reason == Reason::Contested;
                is_contested || status.condition.is_settled_at(vm.meta.generation)
            })
        });
        let current = CurrentStep::default();
        let reconciler = DurableStage {
            current: Some(&current),
            stage: reconciler,
            durable: Mutex::new(std::mem::take(&mut self.acquired)),
        };
        let inputs = desired_inputs(vm.meta.uid, &vm.meta.name);
        // On the heap: a future contains the futures that it awaits, and would be moved with all of them.
        let work = Box::pin(engine.converge(&reconciler, desired, &inputs));
        let Convergence {
            actions,
            has_repaired,
            result,
        } = engine.report_pending(vm, stage, &current, work).await;
        // If no step has waited for the disk, the next stage does.
        self.acquired = reconciler.durable.into_inner();
        let object = ObjectRef::vm(&vm.meta.name);
        if !actions.is_empty() {
            debug!(vm = %vm.meta.name, %stage, ?actions, "acted");
        }
        // Also in the Net stage: when forwarding is disabled, the kernel enables `accept_redirects` (`inet_forward_change`).
        let forwarding_was_off = engine.enforcement.is_forwarding_off(vm.meta.uid);
        if stage == Stage::Firewall && result.is_ok() {
            engine.enforcement.forget(vm.meta.uid);
        }
        self.has_acted = !actions.is_empty();
        if stage == Stage::Firewall && result.is_ok() && self.has_acted {
            engine.report_updated_rules(vm);
        }
        if was_ready && !self.is_transition && !forwarding_was_off && has_repaired {
            self.report_drift(stage, &object, &actions).await?;
        }
        let Err(error) = &result else {
            return result.map_err(|_| BringUpError::Outcome(Outcome::Failed));
        };
        let condition = condition_of(&result);
        let await_outcome = engine.await_change(Key::Vm(vm.meta.uid), vm.meta.uid, error);
        match (&await_outcome, error) {
            (None, _) => {
                engine.record_event(EventType::Warning, &object, condition.1, &condition.2)
            }
            // The VM is run again at once, and that run sets the condition.
            (
                Some(outcome),
                Error::Waiting {
                    wait: Wait::Evaluation,
                    ..
                },
            ) => {
                return Err(BringUpError::Outcome(*outcome));
            }
            (Some(_), _) => {}
        }
        engine.set_condition(vm, stage, condition).await?;
        // No event may report that the foreign object is gone, so the VM is run again after a fixed delay.
        let is_net_conflict = matches!(error, Error::Conflict(_)) && stage == Stage::Net;
        let default_outcome = match is_net_conflict {
            true => Outcome::RequeueAfter(HOST_NETWORK_RETRY),
            // A change of the configuration file or of the VM's spec enqueues the VM. Until then it fails in the same way.
            false if error.is_permanent() => Outcome::Converged,
            false => Outcome::Failed,
        };
        Err(BringUpError::Outcome(
            await_outcome.unwrap_or(default_outcome),
        ))
    }
}

impl BringUp<'_> {
    /// Records a drift event. Ends the bring-up if a conflicting writer reverts the repairs.
    async fn report_drift(
        &mut self,
        stage: Stage,
        object: &ObjectRef,
        actions: &[String],
    ) -> Result<(), BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let steps = actions.join("; ");
        let message = format!("{stage} differed from the desired state; restored: {steps}");
        engine.record_event(EventType::Warning, object, EventReason::Drift, &message);
        let Some(count) = engine
            .conflicting_writers
            .count(vm.meta.uid, stage, clock::monotonic())
        else {
            return Ok(());
        };
        let (reason, message) = match stage {
            Stage::Vmm => (
                Reason::CrashLoop,
                format!("failed {count} times in a minute: {steps}"),
            ),
            Stage::Lease | Stage::Net | Stage::Firewall => (
                Reason::Contested,
                format!(
                    "repaired {count} times in a minute: a conflicting writer reverts: {steps}"
                ),
            ),
        };
        engine.record_event(EventType::Warning, object, reason, &message);
        if stage == Stage::Net && vm.spec.network.mode() != Mode::Cni {
            // Repairs by netlink messages are cheap, so they continue at the rate of event batches, and few packets are lost.
            self.conflict_message = Some(message);
            return Ok(());
        }
        if stage == Stage::Firewall {
            // The rules are not repaired during the delay, so they are not known to be in place.
            engine.disable_forwarding(vm).await;
        }
        let found = (Status::False, reason, message);
        engine.set_condition(vm, stage, found).await?;
        Err(BringUpError::Outcome(Outcome::HoldOff(SLOW_RETRY)))
    }
}

impl BringUpRunner for BringUp<'_> {
    fn cni_checking(&self) -> CheckMode {
        self.engine.checking(self.vm.meta.uid)
    }

    fn vmm_user(&self, uid: Uid) -> Option<u32> {
        self.engine.store.read(|world| world.vmm_id(uid))
    }

    fn counts_refused(&self) -> bool {
        true
    }

    async fn ready(&mut self, stage: Stage, ready: ReadyStage) -> Result<(), BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        if stage == Stage::Net {
            let count = engine
                .conflicting_writers
                .ongoing(vm.meta.uid, stage, clock::monotonic());
            let lasting_conflict = count.map(|count| {
                format!(
                    "repaired {count} times in a minute: a conflicting writer reverts the repairs"
                )
            });
            self.conflict_message = self.conflict_message.take().or(lasting_conflict);
            let next_is_acquired = engine.store.read(|world| {
                let status = world.status(vm.meta.uid, Stage::Firewall);
                status.is_some_and(|status| status.acquired)
            });
            if let Some(message) = self.conflict_message.clone().filter(|_| next_is_acquired) {
                let found = (Status::False, Reason::Contested, message);
                return Ok(engine.set_condition(vm, stage, found).await?);
            }
        }
        // The host's rules were lost while forwarding was being enabled for this VM.
        if stage == Stage::Firewall && self.engine.enforcement.is_lost() {
            self.engine.disable_forwarding(self.vm).await;
        }
        if let Some(generation) = ready.rules {
            self.engine
                .verified_rules
                .record(self.vm.meta.uid, generation);
        }
        let (next_acquired, acquired) = self
            .engine
            .store_ready_and_acquire_next(self.vm, stage, ready)?;
        self.acquired = std::mem::take(&mut self.acquired).followed_by(acquired);
        match next_acquired {
            true => Ok(()),
            // The VM was changed or deleted meanwhile, or the host network does not meet its requirements yet.
            false => Err(BringUpError::Outcome(Outcome::Converged)),
        }
    }
}

impl Engine {
    /// Runs the loop and counts its steps. No step is carried out before the changes of the objects in `about` are on disk: the desired
    /// state was read from memory, and another task may have changed it just before.
    pub(super) async fn converge<R: OnHost>(
        &self,
        reconciler: &R,
        desired: &R::Desired,
        inputs: &[Change],
    ) -> Convergence<R::Observed> {
        let reconciler = DurableStage {
            stage: reconciler,
            durable: Mutex::new(self.store.durable(inputs)),
            current: None,
        };
        let convergence = converge(&reconciler, desired, &self.probe).await;
        let step_count = u64::try_from(convergence.actions.len()).unwrap_or(u64::MAX);
        self.step_count
            .fetch_add(step_count, std::sync::atomic::Ordering::Relaxed);
        convergence
    }

    /// Stores that a stage is Ready and acquires the next one, in one transaction. False: the next one cannot be acquired.
    fn store_ready_and_acquire_next(
        &self,
        vm: &Vm,
        stage: Stage,
        ready: ReadyStage,
    ) -> Result<(bool, Durable), store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        let next = STAGES.into_iter().find(|next| *next > stage);
        let change = |txn: &mut Txn<'_>| {
            let found = (Status::True, Reason::Converged, ready.message.into_owned());
            txn.set_condition(uid, stage, found, generation, now)?;
            if ready.checkpoint.is_some() {
                txn.set_checkpoint(uid, stage, ready.checkpoint)?;
            }
            let lease = txn.world().lease(&vm.meta.name);
            let stored = lease.map(|lease| lease.address.clone());
            if let Some(address) = ready
                .address
                .filter(|assigned| stored.as_ref() != Some(assigned))
            {
                txn.put_lease(Lease {
                    name: vm.meta.name.clone(),
                    group: vm.group.clone(),
                    address,
                    since: now,
                })?;
            }
            let Some(next) = next else {
                return Ok(true);
            };
            Ok(match txn.acquire(uid, next, now)? {
                Acquisition::Acquired(now) => now.meta.generation == generation,
                Acquisition::Waiting(_) => {
                    self.wait_for_host_network(uid);
                    false
                }
                Acquisition::Gone => false,
            })
        };
        let nothing_to_run =
            vm.spec.hypervisor == Hypervisor::None && vm.spec.storage.image.is_none();
        match next {
            Some(stage) if stage < Stage::Vmm || !nothing_to_run => self
                .store
                .begin_for(&desired_inputs(uid, &vm.meta.name), change),
            // No change of the host follows.
            Some(_) | None => {
                let next_acquired = self.store.write_behind(change)?;
                Ok((next_acquired, Durable::default()))
            }
        }
    }
}

/// The stored objects that a VM's desired state is computed from.
pub(super) fn desired_inputs(uid: Uid, name: &Name) -> [Change; 3] {
    [
        Change::Vm(uid),
        Change::StageStatus(uid),
        Change::Lease(name.clone()),
    ]
}

/// The condition for the result of a loop.
pub(super) fn condition_of<O>(result: &Result<O, Error>) -> (Status, Reason, String) {
    match result {
        Ok(_) => (Status::True, Reason::Converged, String::new()),
        Err(error) => {
            let (status, reason) = match error {
                Error::Conflict(Conflict { .. }) => (Status::False, Reason::Conflict),
                Error::Observe(_) => (Status::Unknown, Reason::ObserveFailed),
                Error::Act { .. } if error.is_permanent() => (Status::False, Reason::Invalid),
                Error::Act { .. } => (Status::False, Reason::ActionFailed),
                Error::NotConverging(_) => (Status::False, Reason::NotConverging),
                Error::Waiting { .. } => {
                    let message = "waiting for the guest to power down".to_owned();
                    return (Status::False, Reason::Stopping, message);
                }
            };
            (status, reason, error.to_string())
        }
    }
}
