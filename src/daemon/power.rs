//! Stores the desired power state of a VM, as requested on the socket.
//! Out of scope: the transition ([`crate::engine`]), HTTP.

use super::failure::Failure;
use super::not_found::not_found;
use crate::api::condition::Reason;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api::stage::Stage;
use crate::api::view::{Applied, Kind};
use crate::api::vm::{Hypervisor, Power, PowerCommand, Vm};
use crate::clock;
use crate::engine::{Engine, update_checkpoint};
use crate::reconcile::power::VmmCheckpoint;
use crate::store::World;
use crate::wire::Refusal;

/// Stores the desired power state. The change enqueues the VM's key and resets its backoff.
pub async fn set_power(
    engine: &Engine,
    name: Name,
    verb: PowerCommand,
) -> Result<Applied, Refusal> {
    let stored = engine.store.write(|txn| {
        let Some(mut vm) = txn.world().vm_named(&name).cloned() else {
            let refusal = not_found(txn.world(), Kind::Vm, &name);
            return Err(Failure::Refused(refusal));
        };
        let Some(power) = desired_power(txn.world(), &vm, verb).map_err(refused)? else {
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
        let message = format!("by slicectl vm {verb}");
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

fn refused(message: String) -> Failure {
    Failure::Refused(Refusal::Conflict(vec![message]))
}

/// The power state to store; `None` if it does not change.
fn desired_power(world: &World, vm: &Vm, verb: PowerCommand) -> Result<Option<Power>, String> {
    let name = &vm.meta.name;
    if vm.meta.deleting {
        return Err(format!("vm/{name} is being deleted"));
    }
    if vm.spec.hypervisor == Hypervisor::None {
        return Err(format!("cannot {verb} vm/{name}: hypervisor is none"));
    }
    let reason = world
        .status(vm.meta.uid, Stage::Vmm)
        .map(|status| status.condition.reason);
    let is_down = matches!(reason, Some(Reason::Stopped | Reason::Failed));
    match (verb, vm.power) {
        (PowerCommand::Pause | PowerCommand::Resume, Power::Stopped) => Err(format!(
            "vm/{name} is stopped: start it with slicectl vm start {name}"
        )),
        (PowerCommand::Pause | PowerCommand::Resume, Power::Restarting) => {
            Err(format!("vm/{name} is restarting"))
        }
        (PowerCommand::Pause | PowerCommand::Resume, _) if is_down => Err(format!(
            "vm/{name} is not running: start it with slicectl vm start {name}"
        )),
        (PowerCommand::Start, Power::Paused) if !is_down => Err(format!(
            "vm/{name} is paused: resume it with slicectl vm resume {name}"
        )),
        (PowerCommand::Pause, Power::Paused)
        | (PowerCommand::Stop, Power::Stopped)
        | (PowerCommand::Restart | PowerCommand::Start, Power::Restarting) => Ok(None),
        (PowerCommand::Start, Power::Running) if world.is_ready(vm) => Ok(None),
        (PowerCommand::Pause, Power::Running) => Ok(Some(Power::Paused)),
        // A running VM may have been paused by another program: it is observed again.
        (PowerCommand::Resume, Power::Running | Power::Paused) => Ok(Some(Power::Running)),
        (PowerCommand::Stop, Power::Running | Power::Paused | Power::Restarting) => {
            Ok(Some(Power::Stopped))
        }
        (PowerCommand::Start, Power::Running | Power::Paused | Power::Stopped) => {
            Ok(Some(Power::Running))
        }
        (PowerCommand::Restart, Power::Running | Power::Paused | Power::Stopped) => {
            Ok(Some(Power::Restarting))
        }
    }
}
