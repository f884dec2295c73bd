//! The lifecycle of a VM's VMM: stores how it ended, applies the resulting power decision, and stops it.
//! Out of scope: the power decision ([`crate::reconcile::power`]); starting the VMM (`bring_up`).

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::step::{BringUp, BringUpError, StageRunner};
use super::{Engine, Key, SLOW_RETRY};
use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::fleet::HOLD_AFTER_BOOT;
use crate::api::life::GracePeriod;
use crate::api::meta::Uid;
use crate::api::stage::Stage;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::host::process::Identity;
use crate::owner::{self, Label};
use crate::reconcile::power::{
    ExitCause, PowerDecision, ProcessExit, StartedProcess, VmmCheckpoint,
};
use crate::reconcile::vmm::{self, DesiredGuest, EvaluatedExits, Need, Retain};
use crate::reconcile::{Error, Wait};
use crate::reconcile::{checkpoint, group};
use crate::runtime::queue::Outcome;
use crate::store::{self, Txn, World};

/// Number of lines of a VMM's log that are stored when it has ended.
const STORED_LOG_LINES: usize = 5;

impl Engine {
    /// The checkpoint of a VM's Vmm stage.
    pub(super) fn process_checkpoint(&self, uid: Uid) -> VmmCheckpoint {
        self.store
            .read(|world| checkpoint::vmm(world.status(uid, Stage::Vmm)))
    }

    /// Lets the starts of VMMs depend on what is stored of their VMs.
    pub fn require_permissions(&self) {
        let store = self.store.clone();
        let needs = move |vm| store.read(|world| needs_permission(world, vm));
        self.processes.stage.permission.set_needs(Arc::new(needs));
    }

    /// The power decision for a VM: run, stay stopped, or restart. A VM that the fleet has stopped stays stopped whatever a user requests;
    /// what the user has requested last applies when the fleet starts it again.
    pub(super) fn power_decision(&self, vm: &Vm) -> PowerDecision {
        if vm.fleet().is_some_and(|fleet| fleet.stopped) {
            let message =
                "stopped by the fleet: contact to etcd was lost, or another node has the VM";
            return PowerDecision::Stop(Reason::Stopped, message.to_owned());
        }
        let decision = self
            .process_checkpoint(vm.meta.uid)
            .evaluate_exit(vm.power, vm.exit_policy());
        match (&decision, vm.power) {
            // It was started, and the daemon ended before that was stored.
            (
                PowerDecision::Stop(..) | PowerDecision::Delete(_),
                Power::Running | Power::Paused,
            ) if self.processes.may_be_running(vm.meta.uid) => PowerDecision::Run,
            _ => decision,
        }
    }

    /// Whether the condition of the Vmm stage is that of a completed stop for this reason.
    fn is_stored(&self, uid: Uid, decision: &PowerDecision) -> bool {
        let PowerDecision::Stop(reason, _) = decision else {
            return false;
        };
        self.store.read(|world| {
            let status = world.status(uid, Stage::Vmm);
            status.is_some_and(|status| {
                let condition = &status.condition;
                (condition.status, condition.reason) == (Status::False, *reason)
            })
        })
    }

    /// Deletes the host's connection tracking entries of a guest that has ended, once for each stop. The VM's next run retries a failure;
    /// the number of remaining entries is bounded by the VM's limit.
    async fn delete_flows_when_stopped(&self, vm: &Vm, decision: &PowerDecision) {
        let uid = vm.meta.uid;
        let address = self.store.read(|world| {
            let lease = world.lease(&vm.meta.name);
            lease.map(|lease| lease.address.ip())
        });
        let Some(address) = address.filter(|_| !self.is_stored(uid, decision)) else {
            return;
        };
        if let Err(error) = self.delete_flows(address).await {
            let (_, reason, message) = error.found;
            let object = ObjectRef::vm(&vm.meta.name);
            self.record_event(EventType::Warning, &object, reason, &message);
        }
    }

    /// The desired process of a VM that is stopped: none.
    pub(super) fn desired_when_stopped(&self, vm: &Vm) -> vmm::Desired {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let no_process = vmm::Desired {
            left: Retain::Log,
            ..self.processes.nothing(&label)
        };
        self.with_lifecycle(vm, no_process)
    }

    /// Adds the grace period, the desired guest state and the last evaluated exit to a desired process.
    pub(super) fn with_lifecycle(&self, vm: &Vm, desired: vmm::Desired) -> vmm::Desired {
        let checkpoint = self.process_checkpoint(vm.meta.uid);
        let is_ready = self.store.read(|world| {
            let status = world.status(vm.meta.uid, Stage::Vmm);
            status.is_some_and(|status| status.condition.is_true_at(vm.meta.generation))
        });
        let guest = match vm.power {
            Power::Paused => DesiredGuest::Paused,
            // It may have been paused before.
            Power::Running if checkpoint.process.is_some() && !is_ready => DesiredGuest::Running,
            Power::Running | Power::Stopped | Power::Restarting => DesiredGuest::Any,
        };
        vmm::Desired {
            grace: vm.spec.lifecycle.graceful_shutdown,
            guest,
            evaluated_exits: EvaluatedExits::Of(checkpoint.last_exit.map(|end| end.process)),
            ..desired
        }
    }

    /// Whether the deletion of a VM is forced.
    pub(super) fn is_forced(&self, uid: Uid) -> bool {
        self.store
            .read(|world| world.vm(uid).is_some_and(|vm| vm.meta.forced))
    }

    /// How long to wait for the guest of a VM that is deleted to power down.
    pub(super) fn grace_period(&self, uid: Uid) -> GracePeriod {
        let lifecycle = self
            .store
            .read(|world| world.vm(uid).map(|vm| vm.spec.lifecycle.clone()));
        lifecycle.unwrap_or_default().graceful_shutdown
    }

    /// If the VMM has ended and this is not stored yet, stores how it ended, before any action that depends on it. Returns a message if
    /// the VMM failed at startup: it ended by itself before it was observed to run.
    pub(super) async fn record_exit(&self, vm: &Vm) -> Result<Option<String>, store::Error> {
        if vm.spec.hypervisor == Hypervisor::None {
            return Ok(None);
        }
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let no_process = self.processes.nothing(&label);
        let checkpoint = self.process_checkpoint(uid);
        let known_process = checkpoint.process.as_ref().map(|started| &started.identity);
        // If this cannot be observed, the stage cannot be observed either (`check_stop`), and reports the error.
        let Ok(Some(ended)) = vmm::ended(&no_process, known_process) else {
            return Ok(None);
        };
        let stored = checkpoint.last_exit.as_ref().map(|end| &end.process);
        if stored == Some(&ended.process) {
            return Ok(None);
        }
        let failed_at_startup = !ended.stopped && known_process != Some(&ended.process);
        let end = ProcessExit {
            exit: ended.exit,
            at: clock::now(),
            cause: ExitCause::of(vm.spec.hypervisor, ended.exit, ended.stopped),
            console: vmm::last_lines(&no_process.dir, STORED_LOG_LINES),
            handled: ended.stopped,
            process: ended.process,
        };
        debug!(vm = %vm.meta.name, exit = %end.exit, "VMM ended");
        let (message, exit) = (end.message(), end.exit);
        self.write(|txn| {
            update_checkpoint(txn, uid, |vmm_checkpoint| vmm_checkpoint.record_exit(end))
        })
        .await?;
        let event_type = match (ended.stopped, exit) {
            (true, _) | (false, crate::host::process::Exit::Code(0)) => EventType::Normal,
            (false, _) => EventType::Warning,
        };
        let reason = match ended.stopped {
            true => EventReason::Stopped,
            false => EventReason::Ended,
        };
        self.record_event(event_type, &ObjectRef::vm(&vm.meta.name), reason, &message);
        Ok(failed_at_startup.then_some(message))
    }

    /// Deletes a VM after its guest has ended by itself. Decided again in the transaction: a user may have requested a power state meanwhile.
    async fn delete_ended(&self, vm: &Vm, why: &str) -> Result<(), store::Error> {
        let uid = vm.meta.uid;
        let removed = self
            .write(|txn| {
                let world = txn.world();
                let Some(now) = world.vm(uid).filter(|now| !now.meta.deleting) else {
                    return Ok(false);
                };
                let checkpoint = checkpoint::vmm(world.status(uid, Stage::Vmm));
                let decision = checkpoint.evaluate_exit(now.power, now.exit_policy());
                if !matches!(decision, PowerDecision::Delete(_)) {
                    return Ok(false);
                }
                Ok(group::remove(txn, &vm.meta.name)? == group::Removed::Going)
            })
            .await?;
        if removed {
            let message = format!("deletion requested by delete_on_exit: {why}");
            let object = ObjectRef::vm(&vm.meta.name);
            self.record_event(EventType::Normal, &object, EventReason::Deleting, &message);
        }
        Ok(())
    }

    /// The checkpoint while this process runs. The start time is kept while the process is the same.
    pub(super) fn running_checkpoint(&self, uid: Uid, identity: &Identity) -> Option<String> {
        let mut checkpoint = self.process_checkpoint(uid);
        checkpoint.record_start(StartedProcess {
            started_at: clock::ago(identity.age().unwrap_or_default()),
            identity: identity.clone(),
            confined_by: self.processes.confined_by(uid),
        });
        checkpoint::vmm_text(&checkpoint)
    }

    /// If a loop waits for a process, returns when to run the key again, and enqueues the key when the process has ended.
    pub(super) fn await_change(&self, key: Key, uid: Uid, error: &Error) -> Option<Outcome> {
        match error {
            Error::Waiting { wait, .. } => Some(match wait {
                Wait::Exit(process, left) => {
                    self.processes.watch_as(key, uid, process);
                    Outcome::AwaitChange(*left)
                }
                Wait::Evaluation => Outcome::AwaitChange(Duration::ZERO),
            }),
            Error::Conflict(_)
            | Error::Observe(_)
            | Error::Act { .. }
            | Error::NotConverging(_) => None,
        }
    }

    /// The key that manages the resources with this label.
    pub(super) fn key_of(&self, label: &Label) -> Key {
        let uid = owner::uid_of(label);
        match self.store.read(|world| world.vm(uid).is_some()) {
            true => Key::Vm(uid),
            false => Key::Orphan(label.clone()),
        }
    }
}

impl BringUp<'_> {
    /// Handles a VMM that failed at startup: it is started again after a delay.
    pub(super) async fn handle_startup_failure(
        &mut self,
        message_of_exit: String,
    ) -> Result<Outcome, BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let count = engine
            .conflicting_writers
            .count(vm.meta.uid, Stage::Vmm, clock::monotonic());
        let (reason, message, outcome) = match count {
            Some(count) => (
                Reason::CrashLoop,
                format!("failed {count} times in a minute: {message_of_exit}"),
                Outcome::HoldOff(SLOW_RETRY),
            ),
            None => (Reason::ActionFailed, message_of_exit, Outcome::Failed),
        };
        let found = (Status::False, reason, message);
        engine.set_condition(vm, Stage::Vmm, found).await?;
        Ok(outcome)
    }

    /// Stops the VMM and keeps the other stages, unless its end deletes the VM.
    pub(super) async fn stop_vmm(
        &mut self,
        decision: PowerDecision,
    ) -> Result<Outcome, BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let uid = vm.meta.uid;
        let desired = engine.desired_when_stopped(vm);
        self.is_transition = !engine.is_stored(uid, &decision);
        self.run_stage(Stage::Vmm, &engine.processes.stage, &desired)
            .await?;
        engine.processes.watch(uid, None);
        engine.delete_flows_when_stopped(vm, &decision).await;
        let result = match decision {
            PowerDecision::Stop(reason, message) => {
                let found = (Status::False, reason, message);
                engine.set_condition(vm, Stage::Vmm, found).await
            }
            PowerDecision::Delete(message) => engine.delete_ended(vm, &message).await,
            PowerDecision::Restart | PowerDecision::Run => {
                engine.write(|txn| run_again(txn, vm)).await
            }
        };
        result?;
        Ok(Outcome::Converged)
    }

    /// Reports that the VM is paused: its process runs and its vCPUs are stopped.
    pub(super) async fn set_paused(
        &mut self,
        checkpoint: Option<String>,
    ) -> Result<Outcome, BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let (uid, generation, now) = (vm.meta.uid, vm.meta.generation, clock::now());
        let message = "paused by slicectl vm pause; continue it with slicectl vm resume";
        let found = (Status::False, Reason::Paused, message.to_owned());
        engine
            .write(|txn| {
                txn.set_condition(uid, Stage::Vmm, found, generation, now)?;
                match checkpoint {
                    Some(vmm_checkpoint) => {
                        txn.set_checkpoint(uid, Stage::Vmm, Some(vmm_checkpoint))
                    }
                    None => Ok(()),
                }
            })
            .await?;
        Ok(Outcome::Converged)
    }
}

/// A VM that a fleet may replace runs only while the fleet knows when this node stops it; one that was stopped since another node has it, not
/// at all. Another VM of a fleet waits for contact directly after a boot only: later it is started without contact, without an agent, and
/// without settings of a fleet.
fn needs_permission(world: &World, vm: Uid) -> Need {
    match world.vm(vm).and_then(Vm::fleet) {
        None => Need::No,
        Some(fleet) if fleet.stop.is_some() || fleet.stopped => Need::Replaceable,
        Some(_) if clock::boottime() < HOLD_AFTER_BOOT => Need::Booted,
        Some(_) => Need::No,
    }
}

/// The VMM has stopped: turns the requested restart into a start, unless another request was stored meanwhile.
fn run_again(txn: &mut Txn<'_>, vm: &Vm) -> Result<(), store::Error> {
    let Some(mut now) = txn.world().vm(vm.meta.uid).cloned() else {
        return Ok(());
    };
    if now.meta.generation != vm.meta.generation {
        return Ok(());
    }
    now.power = Power::Running;
    now.meta.generation += 1;
    update_checkpoint(txn, vm.meta.uid, VmmCheckpoint::answer)?;
    txn.put_vm(now)
}

/// Changes the checkpoint of a VM's Vmm stage.
///
/// # Errors
/// [`store::Error::Write`].
pub fn update_checkpoint(
    txn: &mut Txn<'_>,
    uid: Uid,
    change: impl FnOnce(&mut VmmCheckpoint),
) -> Result<(), store::Error> {
    let mut checkpoint = checkpoint::vmm(txn.world().status(uid, Stage::Vmm));
    change(&mut checkpoint);
    txn.set_checkpoint(uid, Stage::Vmm, checkpoint::vmm_text(&checkpoint))
}
