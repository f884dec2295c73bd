//! Finds the socket through which the agent of a VM is reached, and records who uses it.
//! Out of scope: the agent's protocol ([`crate::guest`]), forwarding requests (`wire`).

use std::path::PathBuf;

use super::group_events::requester;
use super::not_found::not_found;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api::view::Kind;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::engine::Engine;
use crate::guest::endpoint::Access;
use crate::reconcile::vmm::VmmPaths;
use crate::vmm::VSOCK;
use crate::wire::Refusal;

/// The socket of the vsock device of a VM.
///
/// # Errors
/// [`Refusal::Conflict`] with one sentence if the guest does not run.
pub(super) fn socket(engine: &Engine, name: &Name) -> Result<PathBuf, Refusal> {
    let (vm, paths) = engine.store.read(|world| {
        let vm = world.vm_named(name);
        let vm = vm.ok_or_else(|| not_found(world, Kind::Vm, name))?;
        let paths = VmmPaths::of(&engine.run_dir, world, vm);
        Ok::<_, Refusal>((vm.clone(), paths))
    })?;
    let is_running = engine.processes.running(vm.meta.uid).is_some();
    match obstacle(&vm, is_running) {
        Some(message) => Err(Refusal::Conflict(vec![message])),
        None => Ok(paths.dir.join(VSOCK)),
    }
}

/// Records an access to a guest: the kind and the user, and nothing that a user has entered.
pub(super) fn record(engine: &Engine, name: &Name, access: Access) {
    let message = format!("{access} {}", requester());
    let (object, reason) = (ObjectRef::vm(name), EventReason::GuestAccess);
    let events = engine.store.events();
    events.note(clock::now(), EventType::Normal, &object, reason, &message);
}

/// Why the guest of a VM cannot answer.
fn obstacle(vm: &Vm, is_running: bool) -> Option<String> {
    let name = &vm.meta.name;
    match (vm.spec.hypervisor, vm.power) {
        (Hypervisor::None, _) => Some(format!("vm/{name} has no agent: hypervisor is none")),
        _ if !vm.spec.guest_access.vsock => Some(format!(
            "vm/{name} has no guest access: vsock is false, set it to true in its group"
        )),
        (_, Power::Paused) => Some(format!(
            "vm/{name} is paused: resume it with slicectl vm resume {name}"
        )),
        (_, Power::Stopped) if is_running => Some(format!("vm/{name} is stopping")),
        (_, Power::Stopped) => Some(format!(
            "vm/{name} is stopped: start it with slicectl vm start {name}"
        )),
        (_, Power::Restarting) => Some(format!("vm/{name} is restarting")),
        (_, Power::Running) if !is_running => Some(format!("vm/{name} is not running")),
        (_, Power::Running) => None,
    }
}
