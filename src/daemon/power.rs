//! Stores the desired power state of a VM, as requested on the socket.
//! Out of scope: the transition ([`crate::engine`]), HTTP.

use super::failure::Failure;
use super::group_events::requester;
use super::not_found::not_found;
use crate::api::condition::{Condition, Reason};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api::stage::{STAGES, Stage};
use crate::api::view::{Applied, Kind};
use crate::api::vm::{Hypervisor, Power, PowerCommand, Vm};
use crate::clock;
use crate::engine::{Engine, update_checkpoint};
use crate::reconcile::power::VmmCheckpoint;
use crate::reconcile::vmm::VmmPaths;
use crate::store::World;
use crate::vmm::{Control, GuestState};
use crate::wire::Refusal;

/// Stores the desired power state. The change enqueues the VM's key and resets its backoff.
pub async fn set_power(
    engine: &Engine,
    name: Name,
    verb: PowerCommand,
) -> Result<Applied, Refusal> {
    let guest_is_paused =
        verb == PowerCommand::Resume && is_paused_by_another_program(engine, &name).await;
    let stored = engine.store.write(|txn| {
        let Some(mut vm) = txn.world().vm_named(&name).cloned() else {
            let refusal = not_found(txn.world(), Kind::Vm, &name);
            return Err(Failure::Refused(refusal));
        };
        let power = desired_power(txn.world(), &vm, verb, guest_is_paused).map_err(refused)?;
        let Some(power) = power else {
            return Ok((vm.meta.uid, Applied::Unchanged));
        };
        let uid = vm.meta.uid;
        vm.power = power;
        vm.meta.generation += 1;
        if verb == PowerCommand::Start {
            update_checkpoint(txn, uid, VmmCheckpoint::answer)?;
        }
        txn.put_vm(vm)?;
        Ok((uid, Applied::Configured))
    });
    let (uid, applied) = stored.await?;
    if applied == Applied::Configured {
        match verb {
            // Earlier conflicts no longer delay its repair.
            PowerCommand::Start | PowerCommand::Restart => engine.conflicting_writers.remove(uid),
            PowerCommand::Pause | PowerCommand::Resume | PowerCommand::Stop => {}
        }
        let (now, object) = (clock::now(), ObjectRef::vm(&name));
        let message = format!("{verb} requested {}", requester());
        let events = engine.store.events();
        events.note(
            now,
            EventType::Normal,
            &object,
            EventReason::Power,
            &message,
        );
    }
    Ok(applied)
}

/// Whether the guest of a VM that is to run is paused although nobody requested that here, or its VMM does not answer.
async fn is_paused_by_another_program(engine: &Engine, name: &Name) -> bool {
    let found = engine.store.read(|world| {
        let vm = world
            .vm_named(name)
            .filter(|vm| vm.power == Power::Running)?;
        let paths = VmmPaths::of(&engine.run_dir, world, vm);
        let control = Control::of(vm.spec.hypervisor)?;
        let process = engine.processes.running(vm.meta.uid)?;
        Some((control, paths.dir, process.pid))
    });
    match found {
        None => false,
        Some((control, dir, pid)) => match control.state(&dir, pid).await {
            Ok(GuestState::Paused) | Err(_) => true,
            Ok(GuestState::Running | GuestState::Starting | GuestState::Ended) => false,
        },
    }
}

fn refused(message: String) -> Failure {
    Failure::Refused(Refusal::Conflict(vec![message]))
}

/// The power state to store; `None` if the request changes nothing. `guest_is_paused`: another program has paused the guest.
fn desired_power(
    world: &World,
    vm: &Vm,
    verb: PowerCommand,
    guest_is_paused: bool,
) -> Result<Option<Power>, String> {
    let name = &vm.meta.name;
    if vm.meta.deleting {
        return Err(format!("vm/{name} is being deleted"));
    }
    if vm.spec.hypervisor == Hypervisor::None {
        return Err(format!("cannot {verb} vm/{name}: hypervisor is none"));
    }
    let progress = Progress::of(world, vm);
    let start_it = format!("start it with slicectl vm start {name}");
    match (verb, vm.power) {
        (PowerCommand::Pause | PowerCommand::Resume, Power::Stopped) => Err(match progress {
            Progress::Down => format!("vm/{name} is stopped: {start_it}"),
            Progress::Pending | Progress::Settled | Progress::Faulty => {
                format!("vm/{name} is stopping")
            }
        }),
        (PowerCommand::Pause | PowerCommand::Resume, Power::Restarting) => {
            Err(format!("vm/{name} is restarting"))
        }
        (PowerCommand::Pause | PowerCommand::Resume, _) if progress == Progress::Down => {
            Err(format!("vm/{name} is not running: {start_it}"))
        }
        (PowerCommand::Start, Power::Paused) if progress != Progress::Down => Err(format!(
            "vm/{name} is paused: resume it with slicectl vm resume {name}"
        )),
        (PowerCommand::Pause, Power::Paused)
        | (PowerCommand::Stop, Power::Stopped)
        | (PowerCommand::Restart | PowerCommand::Start, Power::Restarting) => Ok(None),
        (PowerCommand::Pause, Power::Running) => Ok(Some(Power::Paused)),
        // The new generation lets the Vmm stage observe the guest, and resume it.
        (PowerCommand::Resume, Power::Running) => Ok(guest_is_paused.then_some(Power::Running)),
        (PowerCommand::Resume, Power::Paused) => Ok(Some(Power::Running)),
        (PowerCommand::Stop, Power::Running | Power::Paused | Power::Restarting) => {
            Ok(Some(Power::Stopped))
        }
        (PowerCommand::Start, Power::Running) => Ok(match progress {
            Progress::Settled | Progress::Pending => None,
            Progress::Down | Progress::Faulty => Some(Power::Running),
        }),
        (PowerCommand::Start, Power::Paused) => Ok(Some(Power::Running)),
        // A VMM that was requested to stop ends: the stop is completed first, so that it is not mistaken for drift.
        (PowerCommand::Start, Power::Stopped) => Ok(Some(match progress {
            Progress::Down => Power::Running,
            Progress::Pending | Progress::Settled | Progress::Faulty => Power::Restarting,
        })),
        (PowerCommand::Restart, Power::Running | Power::Paused | Power::Stopped) => {
            Ok(Some(Power::Restarting))
        }
    }
}

/// How far the desired state of a VM's current generation is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It was not observed yet, or actions are in progress.
    Pending,
    /// It is reached, and the VMM runs.
    Settled,
    /// The VMM has ended and is not started again.
    Down,
    /// A stage fails and is retried, possibly much later.
    Faulty,
}

impl Progress {
    fn of(world: &World, vm: &Vm) -> Self {
        let current = |stage| {
            let status = world.status(vm.meta.uid, stage);
            let condition = status.map(|status| &status.condition);
            condition.filter(|found| found.observed_generation == vm.meta.generation)
        };
        let vmm = current(Stage::Vmm).map(|condition| condition.reason);
        if matches!(vmm, Some(Reason::Stopped | Reason::Failed)) {
            return Self::Down;
        }
        let is_faulty = |condition: &Condition| match condition.reason {
            Reason::Converged
            | Reason::Waiting
            | Reason::Converging
            | Reason::NotObserved
            | Reason::Paused
            | Reason::Stopping
            | Reason::Stopped
            | Reason::Answering
            | Reason::NotAnswering
            | Reason::Disabled
            | Reason::UserdataRunning
            | Reason::UserdataFailed
            | Reason::NotProvisioned
            | Reason::Terminating => false,
            Reason::Conflict
            | Reason::Contested
            | Reason::NotConverging
            | Reason::ActionFailed
            | Reason::ObserveFailed
            | Reason::Invalid
            | Reason::RangeExhausted
            | Reason::CrashLoop
            | Reason::Failed
            | Reason::ManifestInvalid
            | Reason::StateNotWritable => true,
        };
        if STAGES.into_iter().filter_map(current).any(is_faulty) {
            return Self::Faulty;
        }
        match world.is_settled(vm) {
            true => Self::Settled,
            false => Self::Pending,
        }
    }
}
